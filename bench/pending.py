"""Many launches pending at once: requests to the Hub, memory of the service, and how soon it says that it is alive.

Run with ``make bench``. The Hub is the scriptable one of the tests, in this process; the service is a process of its
own, as an operator runs it. Prints a table; nothing here passes or fails by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jhlauncher.ports import SERVICES, free_port
from tests.fake_hub import PLATFORM_TOKEN, SERVICE_TOKEN, FakeHub


async def start_service(
    hub: FakeHub, arguments: tuple[str, ...] = (), **more: str
) -> tuple[asyncio.subprocess.Process, str, float]:
    """The service, its URL, and the seconds from its start to its first answer."""
    url = f"http://127.0.0.1:{free_port(SERVICES)}"
    env = {
        "PATH": os.environ["PATH"],
        "JUPYTERHUB_API_TOKEN": SERVICE_TOKEN,
        "JUPYTERHUB_API_URL": hub.api_url,
        "JUPYTERHUB_SERVICE_PREFIX": "/services/launcher/",
        "JUPYTERHUB_SERVICE_URL": url,
        "LOG_LEVEL": "ERROR",
        **more,
    }
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "jhlauncher", *arguments, env=env)
    async with aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"{url}/services/launcher/health"):
                    return process, f"{url}/services/launcher/", time.perf_counter() - begin
            except aiohttp.ClientError:
                await asyncio.sleep(0.005)


def memory(pid: int, field: str = "VmRSS") -> float:
    """Megabytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


async def health(url: str, samples: int) -> list[float]:
    """Milliseconds of each answer."""
    command = (sys.executable, "-m", "bench.prober", url, str(samples))
    prober = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await prober.communicate()
    return [float(value) for value in json.loads(output)]


async def measure(launches: int, samples: int) -> dict[str, Any]:
    hub = FakeHub()
    hub.auto_finish = False
    hub.slow_spawn_timeout = 10  # as the real one: the answer to the start comes late
    await hub.start()
    folder = tempfile.mkdtemp()
    service, url, _ = await start_service(
        hub, (f"--StartBound.concurrent_starts={launches}",), JHLAUNCHER_DB_URL=f"sqlite:///{folder}/x.sqlite"
    )
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as client:
        idle = memory(service.pid)

        async def launch(number: int) -> int:
            body = {"username": f"user{number}", "image": "image:1"}
            async with client.post(f"{url}containers", json=body) as response:
                await response.read()
                return response.status

        arriving = asyncio.create_task(health(url, samples))
        await asyncio.sleep(0.3)  # the prober has begun
        tasks = [asyncio.create_task(launch(number)) for number in range(launches)]
        streams = lambda: sum(request.endswith("/progress") for request in hub.requests)  # noqa: E731
        while streams() < launches:
            await asyncio.sleep(0.05)
        before = len(hub.requests)
        waiting = await health(url, samples)
        while_pending = len(hub.requests) - before
        loaded = memory(service.pid)
        for server in hub.servers.values():
            server.finish()
        statuses = await asyncio.gather(*tasks)
        result = {
            "launches": launches,
            "ready": statuses.count(200),
            "requests": sum(hub.count().values()) / launches,
            "while_pending": while_pending,
            "idle": idle,
            "loaded": loaded,
            "peak": memory(service.pid, "VmHWM"),
            "arriving": await arriving,
            "waiting": waiting,
        }
    service.terminate()
    await service.wait()
    await hub.stop()
    shutil.rmtree(folder)
    return result


async def start_times(rounds: int) -> list[float]:
    hub = FakeHub()
    await hub.start()
    times = []
    for _ in track(range(rounds), "starting the service", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder:
            service, _, seconds = await start_service(hub, JHLAUNCHER_DB_URL=f"sqlite:///{folder}/x.sqlite")
            service.terminate()
            await service.wait()
        times.append(seconds)
    await hub.stop()
    return times


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def show(result: dict[str, Any], starts: list[float]) -> None:
    table = Table("what", "measured", "aim", title=f"{result['launches']} launches pending at once")
    table.add_row("launches that got their server", str(result["ready"]), str(result["launches"]))
    table.add_row("Hub requests per launch", f"{result['requests']:.2f}", "at most 5")
    table.add_row("Hub requests while all were pending", str(result["while_pending"]), "0: no polling")
    table.add_row(
        "memory idle / pending / peak", "{idle:.0f} / {loaded:.0f} / {peak:.0f} MB".format(**result), "under 150 MB"
    )
    for name in ("arriving", "waiting"):
        values = result[name]
        text = f"{statistics.median(values):.1f} / {p99(values):.1f} / {max(values):.1f} ms"
        table.add_row(f"health while launches are {name}: median / 99 % / most", text, "within 50 ms")
    table.add_row(
        "start to first answer: median / most", f"{statistics.median(starts):.2f} / {max(starts):.2f} s", "under 1.5 s"
    )
    Console().print(table)
    Console().print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=300)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.launches, arguments.samples))
    show(result, asyncio.run(start_times(arguments.rounds)))


if __name__ == "__main__":
    main()
