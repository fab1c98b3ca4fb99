"""The launcher against what people would use instead, on one real JupyterHub, in one run; figures are ratios.

Run with ``make bench``. In each round everybody does everything, in turning order, with users of their own. Writes
``bench/RESULTS.md`` and its plot (with ``--engine docker``, ``bench/RESULTS-docker.md``); nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress

from bench.clients import CLIENTS, Client
from bench.hubs import ENGINES, Measured, measured
from bench.pending import start_times
from bench.results import Results, Run, draw, markdown

HERE = Path(__file__).parent
Load = tuple[int, int]
"""How many launches, and how many at a time."""
LOADS = {"fixed": [(1, 1), (40, 10), (200, 100)], "docker": [(1, 1), (12, 4)], "kubernetes": [(1, 1), (12, 4)]}
GETS = 500
IDLE_SECONDS = 20


async def run(hub: Measured, client: Client, prefix: str, load: Load) -> Run:
    """Launch; the servers are stopped afterwards."""
    number, at_a_time = load
    users = [f"{prefix}-{n}" for n in range(number)]
    gate = asyncio.Semaphore(at_a_time)

    async def one(user: str) -> float:
        async with gate:
            return await client.launch(user)

    cpu, requests = hub.cpu(), hub.requests()
    begin = time.perf_counter()
    answered = await asyncio.gather(*map(one, users))
    seconds = time.perf_counter() - begin
    hub_cpu, service_cpu = (after - before for after, before in zip(hub.cpu(), cpu, strict=True))
    asked = hub.requests() - requests
    ready = hub.ready_since()
    await stop(hub, users)
    late = [moment - ready[user] for user, moment in zip(users, answered, strict=True)]
    return Run(number, seconds, late, hub_cpu, service_cpu, asked)


async def stop(hub: Measured, users: list[str]) -> None:
    """Stop the servers of these users, and forget the users."""
    gate = asyncio.Semaphore(20)

    async def one(user: str) -> None:
        async with gate:
            status, _ = await hub.hub.api("DELETE", f"/users/{user}/server")
            while status == 202:  # it is being stopped, and the Hub does not say when it has
                await asyncio.sleep(0.2)
                status = 202 if (await hub.hub.api("GET", f"/users/{user}"))[1]["servers"] else 204
            await hub.hub.api("DELETE", f"/users/{user}")

    await asyncio.gather(*map(one, users))


async def gets_per_second(url: str, token: str, number: int = GETS, at_a_time: int = 8) -> float:
    gate = asyncio.Semaphore(at_a_time)
    async with aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as session:

        async def one() -> None:
            async with gate, session.get(url) as response:
                assert response.status == 200, await response.text()
                await response.read()

        await one()
        begin = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(number)))
        return number / (time.perf_counter() - begin)


async def status_gets(hub: Measured, client: Client, results: Results, number: int) -> None:
    """How often per second one may ask for the state of a server, at the Hub and here."""
    user = f"status{number}"
    await client.launch(user)
    token, url = hub.hub.platform_token, hub.hub.launcher_url
    page = await client.ask("GET", f"{url}launches?username={user}")
    ways = [
        ("the Hub's", f"{hub.hub.url}hub/api/users/{user}", GETS + 1),
        ("containers", f"{url}containers?username={user}", GETS + 1),
        ("launches", f"{url}launches/{page['items'][0]['id']}", 0),
    ]
    for name, address, expected in ways[:: 1 if number % 2 else -1]:
        before = hub.requests()
        results.gets[name].append(await gets_per_second(address, token))
        results.get_requests += hub.requests() - before - expected
    await stop(hub, [user])


async def idle(hub: Measured, results: Results) -> None:
    """What the service takes while nobody asks anything."""
    results.memory.append(hub.memory())
    _, before = hub.cpu()
    await asyncio.sleep(IDLE_SECONDS)
    results.idle_cpu = (hub.cpu()[1] - before) / IDLE_SECONDS * 100


async def measure(engine: str, rounds: int, seconds: float, loads: list[Load], kinds: list[type[Client]]) -> Results:
    what = f"of a Hub whose servers take {seconds:g} s" if engine == "fixed" else f"on {engine} with real servers"
    results = Results(f"The launcher beside other clients {what}")
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        hub = stack.enter_context(measured(engine, Path(folder), seconds))
        await idle(hub, results)
        clients = [kind(hub.hub.url, hub.hub.admin_token, hub.image) for kind in kinds]
        for client in clients:
            stack.push_async_callback(client.close)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("rounds", total=rounds * (len(loads) * len(clients) + 1))
            await run(hub, clients[0], "warm", loads[-1])
            for number in range(rounds):
                first = number % len(clients)
                for load in loads:
                    name = f"{load[0]} at {load[1]}" if load[0] > 1 else "one alone"
                    for client in clients[first:] + clients[:first]:
                        progress.update(task, description=f"round {number + 1}: {name}, {client.name}")
                        if not (client.slow and load == LOADS["fixed"][-1]):
                            prefix = f"r{number}-{load[0]}-{client.name.replace(' ', '')}"
                            results.runs[name][client.name].append(await run(hub, client, prefix, load))
                        progress.advance(task)
                await status_gets(hub, clients[-1], results, number)
                progress.advance(task)
        results.memory.append(hub.memory())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="fixed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="that a server takes to start, with --engine fixed")
    parser.add_argument("--loads", type=int, default=3, help="only the first so many")
    names = [kind.name for kind in CLIENTS]
    parser.add_argument("--clients", nargs="+", choices=names, default=names, help="direct must be among them")
    arguments = parser.parse_args()
    loads = LOADS[arguments.engine][: arguments.loads]
    kinds = [kind for kind in CLIENTS if kind.name in arguments.clients]
    results = asyncio.run(measure(arguments.engine, arguments.rounds, arguments.seconds, loads, kinds))
    if arguments.engine == "fixed":
        results.starts = asyncio.run(start_times(arguments.rounds))
    name = "RESULTS" if arguments.engine == "fixed" else f"RESULTS-{arguments.engine}"
    text = markdown(results, f"{name}.svg")
    (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    draw(results, HERE / f"{name}.svg")
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
