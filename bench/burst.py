"""A class at nine o'clock: 300 launches at once on a real JupyterHub that starts 20 servers at a time.

Run with ``make bench``. The servers are small processes that take three seconds to come up. How long a start takes
while 20 are under way, the Hub itself tells in its log; 300 should take 15 times that, which is to say that the 20
slots are never empty.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.faults import Client, LauncherProcess, hub_with_light_servers

AT_A_TIME = 20


async def seconds_for(client: Client, users: list[str], progress: Progress, what: str) -> float:
    """How long it takes until all of them have a server."""
    task = progress.add_task(what, total=len(users))

    async def one(user: str) -> str:
        launch = await client.settled(await client.launch(user), timeout=900)
        progress.advance(task)
        return str(launch["state"])

    begin = time.perf_counter()
    states = await asyncio.gather(*map(one, users))
    assert states == ["ready"] * len(users), states
    return time.perf_counter() - begin


async def measure(launches: int, seconds: float) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limit = f"c.JupyterHub.concurrent_spawn_limit = {AT_A_TIME}\n"
        with hub_with_light_servers(folder, seconds, limit).running() as hub:
            launcher = LauncherProcess(hub, f"sqlite:///{folder}/launches.sqlite")
            launcher.start()
            client = Client(hub, launcher.url)
            with Progress(console=Console(stderr=True)) as progress:
                users = [f"warm{n:02}" for n in range(AT_A_TIME)]  # a Hub that has started servers before
                await seconds_for(client, users, progress, f"{AT_A_TIME} at once")
                users = [f"user{n:03}" for n in range(launches)]
                total = await seconds_for(client, users, progress, f"{launches} at once")
            await client.close()
            launcher.stop()
            log = (folder / "hub.log").read_text()
    starts = [float(seconds) for seconds in re.findall(r"User user\d+ took ([\d.]+) seconds to start", log)]
    assert len(starts) == launches, len(starts)
    return statistics.mean(starts), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=3, help="that a server takes to come up")
    arguments = parser.parse_args()
    start, total = asyncio.run(measure(arguments.launches, arguments.seconds))
    ideal = arguments.launches / AT_A_TIME * start
    table = Table(
        "what", "measured", "aim", title=f"{arguments.launches} launches at once, {AT_A_TIME} starts at a time"
    )
    table.add_row("one start, as the Hub tells (mean)", f"{start:.1f} s", "")
    table.add_row(f"{arguments.launches} at once, all ready", f"{total:.1f} s", f"{ideal:.1f} s")
    table.add_row("ratio", f"{total / ideal:.2f}", "at most 1.15")
    Console().print(table)


if __name__ == "__main__":
    main()
