"""Thousands of launches waiting in one process, each with a listening event stream: memory, and signs of life.

Run with ``make bench``. The Hub is the scriptable one of the tests, in this process; the service is a process of its
own. Meanwhile the queue moves on, so that positions change and are told. Prints a table; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.pending import health, memory, p99, start_service
from tests.fake_hub import PLATFORM_TOKEN, FakeHub


async def measure(launches: int, samples: int) -> dict[str, Any]:
    hub = FakeHub()
    hub.auto_finish = False
    await hub.start()
    with tempfile.TemporaryDirectory() as folder:
        service, url, _ = await start_service(
            hub, JHLAUNCHER_DB_URL=f"sqlite:///{folder}/x.sqlite", arguments=("--StartBound.concurrent_starts=1",)
        )
        headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        with Progress(console=Console(stderr=True)) as progress:
            async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as client:
                idle = memory(service.pid)
                ids: list[str] = []
                accepting = progress.add_task("accepted", total=launches)
                gate = asyncio.Semaphore(32)

                async def accept(number: int) -> None:
                    async with (
                        gate,
                        client.post(
                            f"{url}launches", json={"username": f"user{number}", "image": "image:1"}
                        ) as response,
                    ):
                        assert response.status == 202, await response.text()
                        ids.append((await response.json())["id"])
                    progress.advance(accepting)

                await asyncio.gather(*(accept(number) for number in range(launches)))
                accepted = memory(service.pid)
                listening = progress.add_task("listening", total=launches)
                told = 0

                async def listen(launch: str) -> None:
                    nonlocal told
                    async with client.get(f"{url}launches/{launch}/events") as response:
                        progress.advance(listening)
                        async for _ in response.content.iter_any():
                            told += 1

                readers = []
                for launch in ids:
                    readers.append(asyncio.create_task(listen(launch)))
                    if len(readers) % 100 == 0:
                        await asyncio.sleep(0.02)
                while not progress.finished:
                    await asyncio.sleep(0.1)
                still = await health(url, samples)
                waiting = memory(service.pid)

                async def move() -> None:
                    while True:
                        for server in list(hub.servers.values()):
                            if server.pending:
                                server.finish()
                        await asyncio.sleep(0.1)

                moving = asyncio.create_task(move())
                before = told
                moved = await health(url, samples)
                moving.cancel()
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(moving, *readers, return_exceptions=True)
                peak = memory(service.pid, "VmHWM")
        service.kill()
        await service.wait()
    await hub.stop()
    return {
        "launches": launches, "idle": idle, "accepted": accepted, "waiting": waiting, "peak": peak,
        "still": still, "moved": moved, "told": told - before,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    each = (result["waiting"] - result["idle"]) / result["launches"] * 1024
    table = Table("what", "measured", "aim", title=f"{result['launches']} launches waiting, each with a listener")
    table.add_row("memory of each", f"{each:.1f} KB", "under 30 KB")
    stages = "{idle:.0f} / {accepted:.0f} / {waiting:.0f} / {peak:.0f} MB".format(**result)
    table.add_row("memory idle / accepted / listening / peak", stages, "")
    for name, what in (("still", "while nothing moves"), ("moved", "while the queue moves")):
        values = result[name]
        text = f"{statistics.median(values):.1f} / {p99(values):.1f} / {max(values):.1f} ms"
        table.add_row(f"health {what}: median / 99 % / most", text, "99 % within 50 ms")
    table.add_row("events told while it moved", str(result["told"]), "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    show(asyncio.run(measure(arguments.launches, arguments.samples)))


if __name__ == "__main__":
    main()
