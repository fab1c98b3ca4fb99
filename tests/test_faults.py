"""Whatever dies in between: every accepted launch reaches a stated end, and the Hub agrees."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Client, LauncherProcess, check_accounts, hub_with_light_servers, starts
from tests.postgres import Postgres
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

PATIENT = "c.Database.retry_timeout = 90\n"
"""Where other tests keep the disks busy, PostgreSQL takes its time to come back."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RealHub]:
    with hub_with_light_servers(tmp_path).running() as hub:
        yield hub


@asynccontextmanager
async def running(*launchers: LauncherProcess) -> AsyncIterator[Client]:
    client = Client(launchers[0].hub, *(launcher.url for launcher in launchers))
    try:
        for launcher in launchers:
            launcher.start()
        yield client
    finally:
        await client.close()
        for launcher in launchers:
            launcher.stop()


async def see_through(client: Client, users: list[str], ended: list[str]) -> dict[str, Any]:
    """Launch for all users, end some of it at some moment, and have all settled."""

    async def one(user: str) -> Any:
        launch = await client.launch(user)
        if user in ended:
            await asyncio.sleep(random.uniform(0, 5))
            await client.end(launch)
        return await client.settled(launch)

    return dict(zip(users, await asyncio.gather(*map(one, users)), strict=True))


def names(count: int) -> tuple[list[str], list[str]]:
    """Users, and those of them whose launches are ended by somebody."""
    users = [f"user{n:03}" for n in range(count)]
    return users, users[::5]


async def test_launcher_killed_twenty_times(hub: RealHub, database_url: str):
    launcher = LauncherProcess(hub, database_url)
    users, ended = names(100)
    async with running(launcher) as client:
        work = asyncio.create_task(see_through(client, users, ended))
        for _ in range(20):
            await client.request("GET", "health")
            await asyncio.sleep(random.uniform(0, 0.7))
            launcher.stop(signal.SIGKILL)
            launcher.start()
        launches = await work
        counts = await check_accounts(hub, launches)
    assert counts["ready"] == 80, counts
    assert counts["cancelled"] + counts["stopped"] == 20
    started = [user for user, _ in starts(hub)]
    assert len(started) == len(set(started)), "a server was started twice"


async def test_hub_killed_in_the_middle(hub: RealHub, database_url: str):
    users, ended = names(50)
    async with running(LauncherProcess(hub, database_url)) as client:
        work = asyncio.create_task(see_through(client, users, ended))
        await some_are(client, "starting")
        hub.end(signal.SIGKILL)
        await asyncio.to_thread(begin_until_it_stays, hub)
        counts = await check_accounts(hub, await work)
    assert counts["ready"] == 40, counts
    assert counts["cancelled"] + counts["stopped"] == 10


def begin_until_it_stays(hub: RealHub) -> None:
    """Start the Hub as its supervisor does, which is another kill of it to the launcher.

    JupyterHub ends itself where a server's stop begins between two steps of its look at the proxy's routes, which is
    the last thing of its start (``check_routes`` in jupyterhub/proxy.py); that was seen once.
    """
    for _ in range(3):
        try:
            return hub.begin()
        except AssertionError as error:
            if "shouldn't be added to the proxy yet" not in str(error):
                raise
    raise AssertionError("the Hub has ended itself three times")


async def test_database_restarted_in_the_middle(hub: RealHub, postgres: Postgres):
    users, ended = names(50)
    async with running(LauncherProcess(hub, postgres.database(), settings=PATIENT)) as client:
        work = asyncio.create_task(see_through(client, users, ended))
        await some_are(client, "starting")
        postgres.stop(signal.SIGQUIT)
        postgres.start()
        counts = await check_accounts(hub, await work)
    assert counts["ready"] == 40, counts
    started = [user for user, _ in starts(hub)]
    assert len(started) == len(set(started)), "a server was started twice"


async def test_one_of_two_replicas_killed(hub: RealHub, postgres: Postgres):
    users, ended = names(50)
    url, settings = postgres.database(), "c.Replicas.lease_timeout = 10\n" + PATIENT
    one, two = (LauncherProcess(hub, url, name, settings) for name in ("one", "two"))
    async with running(one, two) as client:
        work = asyncio.create_task(see_through(client, users, ended))
        await some_are(client, "starting")
        one.stop(signal.SIGKILL)
        counts = await check_accounts(hub, await work)
    assert counts["ready"] == 40, counts
    assert counts["cancelled"] + counts["stopped"] == 10
    started = [user for user, _ in starts(hub)]
    assert len(started) == len(set(started)), "a server was started twice"


async def some_are(client: Client, state: str, number: int = 5) -> None:
    async with asyncio.timeout(120):
        while len((await client.request("GET", f"launches?state={state}"))[1]["items"]) < number:
            pass


async def test_three_hundred_at_once_and_one_in_the_middle(tmp_path: Path):
    """A class at nine o'clock: a queue, not 280 errors; who comes meanwhile waits for one slot, not for the class."""
    limit = "c.JupyterHub.concurrent_spawn_limit = 20\n"
    with hub_with_light_servers(tmp_path, seconds=0.5, more=limit).running() as hub:
        async with running(LauncherProcess(hub, f"sqlite:///{tmp_path}/launches.sqlite")) as client:
            users = [f"user{n:03}" for n in range(300)]
            ids = await asyncio.gather(*map(client.launch, users))
            await some_are(client, "ready", 20)  # how many slots there are has been learned from the Hub's refusals
            other = Client(hub, *client.urls, token=hub.admin_token)
            try:
                late = await other.settled(await other.launch("late"), timeout=300)
            finally:
                await other.close()
            launches = await asyncio.gather(*(client.settled(launch, timeout=300) for launch in ids))
            counts = await check_accounts(hub, dict(zip(users, launches, strict=True)))
    assert counts == {"ready": 300}, counts
    assert late["state"] == "ready"
    ahead = [launch for launch in launches if late["created"] < launch["started"] < late["started"]]
    assert len(ahead) <= 20, "it had to wait for more than the slots that were taken"
    behind = [launch for launch in launches if launch["started"] > late["started"]]
    assert behind, "the class was through before it came: this says nothing"


SLOW_TO_CANCEL = """
import asyncio
from pathlib import Path

async def prepare(spawner):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        while "500 DELETE" not in Path(FOLDER, "hub.log").read_text():  # the Hub has waited for a second
            await asyncio.sleep(0.01)
        raise

c.LauncherLocalSpawner.pre_spawn_hook = prepare
"""


async def test_start_that_the_hub_is_slow_to_cancel(tmp_path: Path):
    """What is left of it, the Hub shows as a server that is ready."""
    with hub_with_light_servers(tmp_path, more=SLOW_TO_CANCEL).running() as hub:
        async with running(LauncherProcess(hub, f"sqlite:///{tmp_path}/launches.sqlite")) as client:
            launch = await client.launch("alice")
            async with asyncio.timeout(60):
                while (await hub.api("GET", "/users/alice"))[1]["servers"].get("", {}).get("pending") != "spawn":
                    pass
            await client.end(launch)
            counts = await check_accounts(hub, {"alice": await client.settled(launch)})
    assert counts == {"cancelled": 1}
    assert "500 DELETE /hub/api/users/alice/server" in (tmp_path / "hub.log").read_text()
