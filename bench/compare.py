"""The launcher against what people would use instead, on one real JupyterHub, in one run; figures are ratios.

Run with ``make bench``; takes about half an hour. Each round does everything with everybody, in turning order, with
users of their own. Writes ``bench/RESULTS.md`` and ``bench/results.svg``; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress

from bench.clients import CLIENTS, Client
from bench.fixed_hub import FixedHub, cpu_seconds, memory

HERE = Path(__file__).parent
LOADS = {"one alone": (1, 1), "40 at 10": (40, 10), "200 at 100": (200, 100)}
SLOW = ("polling 10 s",)
"""Not asked to do the largest load: what they take is known from the others."""


@dataclass
class Run:
    """One load, by one client, in one round."""

    seconds: float
    late: list[float]
    """Seconds from the Hub's ``ready`` to the answer, of each launch."""
    hub_cpu: float
    service_cpu: float
    requests: int
    launches: int


@dataclass
class Results:
    """Everything that was measured."""

    runs: dict[tuple[str, str], list[Run]] = field(default_factory=lambda: defaultdict(list))
    gets: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Status requests per second."""
    get_requests: int = 0
    """Requests to the Hub that all of the launcher's status answers took."""
    starts: list[float] = field(default_factory=list)
    idle_memory: float = 0
    idle_cpu: float = 0
    """Per cent of a core."""
    loaded_memory: float = 0
    seconds: float = 0


async def run(hub: FixedHub, client: Client, prefix: str, load: tuple[int, int]) -> Run:
    """Launch, so many at a time; the servers are stopped afterwards."""
    number, at_a_time = load
    gate = asyncio.Semaphore(at_a_time)
    users = [f"{prefix}-{n}" for n in range(number)]

    async def one(user: str) -> float:
        async with gate:
            return await client.launch(user)

    pids = hub.process.pid, hub.service
    cpu, requests = [cpu_seconds(pid) for pid in pids], hub.requests()
    begin = time.perf_counter()
    answered = await asyncio.gather(*map(one, users))
    seconds = time.perf_counter() - begin
    used = [cpu_seconds(pid) - before for pid, before in zip(pids, cpu, strict=True)]
    asked = hub.requests() - requests
    ready = hub.ready_since()
    await stop(hub, users)
    late = [moment - ready[user] for user, moment in zip(users, answered, strict=True)]
    return Run(seconds, late, used[0], used[1], asked, number)


async def stop(hub: FixedHub, users: list[str]) -> None:
    gate = asyncio.Semaphore(20)

    async def one(user: str) -> None:
        async with gate:
            await hub.api("DELETE", f"/users/{user}/server")
            await hub.api("DELETE", f"/users/{user}")

    await asyncio.gather(*map(one, users))


async def gets_per_second(url: str, token: str, number: int = 400, at_a_time: int = 8) -> float:
    gate = asyncio.Semaphore(at_a_time)
    async with aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as session:

        async def one() -> None:
            async with gate, session.get(url) as response:
                assert response.status == 200, await response.text()
                await response.read()

        begin = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(number)))
        return number / (time.perf_counter() - begin)


async def measure(rounds: int, seconds: float, loads: dict[str, tuple[int, int]]) -> Results:
    results = Results(seconds=seconds)
    with tempfile.TemporaryDirectory() as folder, FixedHub.running_with(Path(folder), seconds) as hub:
        results.idle_memory = memory(hub.service)
        before = cpu_seconds(hub.service)
        await asyncio.sleep(20)
        results.idle_cpu = (cpu_seconds(hub.service) - before) / 20 * 100
        clients = [cls(hub.url, hub.admin_token) for cls in CLIENTS]
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("rounds", total=rounds * (len(loads) * len(clients) + 2))
            await run(hub, clients[0], "warm", (5, 5))
            for number in range(rounds):
                turned = clients[number % len(clients) :] + clients[: number % len(clients)]
                for name, load in loads.items():
                    for client in turned:
                        progress.update(task, description=f"round {number + 1}: {name}, {client.name}")
                        if not (client.name in SLOW and load[0] > 100):
                            prefix = f"r{number}-{load[0]}-{client.name.replace(' ', '')}"
                            results.runs[name, client.name].append(await run(hub, client, prefix, load))
                        progress.advance(task)
                await status_gets(hub, clients, results, number)
                progress.advance(task, 2)
        results.loaded_memory = memory(hub.service)
        for client in clients:
            await client.close()
    return results


async def status_gets(hub: FixedHub, clients: list[Client], results: Results, number: int) -> None:
    user = f"status{number}"
    await clients[-1].launch(user)
    ways: list[tuple[str, str]] = [
        ("hub", f"{hub.url}hub/api/users/{user}"),
        ("launcher", f"{hub.launcher_url}containers?username={user}"),
    ]
    for name, url in ways[:: 1 if number % 2 else -1]:
        before = hub.requests()
        results.gets[name].append(await gets_per_second(url, hub.platform_token))
        if name == "launcher":
            results.get_requests += hub.requests() - before - 400
    await stop(hub, [user])


# -- telling


def spread(values: list[float], unit: str = "", digits: int = 2) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):.{digits}f}{unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(results: Results, load: str, name: str, of: Callable[[Run], float]) -> list[float]:
    """To the direct client's, round by round."""
    return [
        of(one) / of(best) for one, best in zip(results.runs[load, name], results.runs[load, "direct"], strict=True)
    ]


def late(results: Results, load: str, name: str, per_cent: int) -> float:
    """Milliseconds from the Hub's ready to the answer, that so many per cent of the launches keep."""
    values = sorted(value for one in results.runs[load, name] for value in one.late)
    return values[min(len(values) - 1, len(values) * per_cent // 100)] * 1000


def report(results: Results, rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# Results", "",
        f"Written by `python -m bench.compare` ({rounds} rounds, medians, in brackets the least and the most).",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"JupyterHub {version('jupyterhub')}; a server takes {results.seconds:g} s to start.", "",
        "![the same as a plot](results.svg)", "",
    ]  # fmt: skip
    for load in {name: None for name, _ in results.runs}:
        lines += [f"## {load}", "", "| | seconds | to direct | ready to answer, ms: median, 99 % | CPU ms per launch: "
                  "Hub, launcher | Hub requests per launch |", "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for name in (cls.name for cls in CLIENTS):
            runs = results.runs[load, name]
            if not runs:
                continue
            cpu = [statistics.median(getattr(one, who) / one.launches * 1000 for one in runs) for who in _CPU]
            lines.append(
                f"| {name} | {spread([one.seconds for one in runs])} "
                f"| {spread(ratios(results, load, name, lambda one: one.seconds), digits=3)} "
                f"| {late(results, load, name, 50):.0f}, {late(results, load, name, 99):.0f} "
                f"| {cpu[0]:.0f}, {cpu[1]:.0f} | {statistics.median(o.requests / o.launches for o in runs):.2f} |"
            )
        lines.append("")
    gets = results.gets
    per_round = [ours / hubs for ours, hubs in zip(gets["launcher"], gets["hub"], strict=True)]
    lines += [
        "## The rest", "", "| what | measured | aim |", "| --- | --- | --- |",
        f"| status GETs per second: Hub | {spread(gets['hub'], digits=0)} | |",
        f"| status GETs per second: launcher | {spread(gets['launcher'], digits=0)} | |",
        f"| ratio | {spread(per_round)} | at least 0.8 |",
        f"| Hub requests beyond one per status GET | {results.get_requests} | 0 but for who the caller is, once |",
        f"| start to first answer | {spread(results.starts, ' s')} | under 1.0 s |",
        f"| CPU idle | {results.idle_cpu:.2f} % of a core | under 0.5 % |",
        f"| memory idle, after all of it | {results.idle_memory:.0f} MB, {results.loaded_memory:.0f} MB "
        "| at most 90 MB idle |", "",
    ]  # fmt: skip
    return "\n".join(lines)


_CPU = ("hub_cpu", "service_cpu")


def plot(results: Results, path: Path) -> None:
    """Seconds of each client beside each other, for each load."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    loads = list({name: None for name, _ in results.runs})
    figure, axes = pyplot.subplots(1, len(loads), figsize=(4 * len(loads), 3.5), layout="constrained")
    for load, axis in zip(loads, axes, strict=True):
        names = [cls.name for cls in CLIENTS if results.runs[load, cls.name]]
        axis.boxplot([ratios(results, load, name, lambda one: one.seconds) for name in names], tick_labels=names)
        axis.axhline(1, color="grey", linewidth=0.5)
        axis.set_title(load)
        axis.set_ylabel("time to direct's")
        axis.tick_params(axis="x", rotation=30)
    figure.savefig(path)


async def service_starts(rounds: int) -> list[float]:
    from bench.pending import start_times

    return await start_times(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="that a server takes to start")
    parser.add_argument("--quick", action="store_true", help="one launch and 40 only, to look whether it works")
    arguments = parser.parse_args()
    loads = dict(list(LOADS.items())[:2]) if arguments.quick else LOADS
    results: Any = asyncio.run(measure(arguments.rounds, arguments.seconds, loads))
    results.starts = asyncio.run(service_starts(arguments.rounds))
    text = report(results, arguments.rounds)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    plot(results, HERE / "results.svg")
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
