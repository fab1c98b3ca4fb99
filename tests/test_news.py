"""What happens to all launches, in one stream: on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from jhlauncher import sse
from jhlauncher.news import _Past
from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub
from tests.postgres import Postgres
from tests.test_launches import SETTINGS, accepted, settled

NEWS = {"News": {"news_interval": 0.02}}


@pytest_asyncio.fixture
async def service(hub: FakeHub, database_url: str) -> AsyncIterator[Service]:
    async with running_service(hub, Database={"url": database_url}, **SETTINGS, **NEWS) as service:
        yield service


class Listener:
    """Reads a stream of news."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._events = sse.decode(response.content.iter_any())
        self.seen: list[tuple[str, Any]] = []
        self.last = ""

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(10):
            event = await anext(self._events)
        self.last = event.id
        self.seen.append((event.name, json.loads(event.data)))
        return self.seen[-1]

    async def until(self, name: str, username: str = "") -> Any:
        """What is told with an event; those before it are in ``seen``."""
        while True:
            found, data = await self.next()
            if found == name and (not username or data["username"] == username):
                return data

    async def place_of(self, username: str) -> int:
        """The next place in the queue that is told of this user's launch."""
        while not (data := await self.until("queued", username)).get("position"):
            pass
        assert data["number"] is None, "it is a passing event"
        return int(data["position"])


@asynccontextmanager
async def listening(
    service: Service, query: str = "", token: str = PLATFORM_TOKEN, last: str = ""
) -> AsyncIterator[Listener]:
    headers = {"Authorization": f"token {token}", **({"Last-Event-ID": last} if last else {})}
    async with service.client.get(f"{service.url}launches/events{query}", headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Listener(response)


def states(listener: Listener, username: str) -> list[str]:
    return [name for name, data in listener.seen if data.get("username") == username and "launch" in data]


@pytest.mark.asyncio
async def test_whatever_happens_is_told(service: Service):
    async with listening(service) as listener:
        assert await listener.next() == ("reset", {})
        launch = await accepted(service, "ada")
        ready = await listener.until("ready", "ada")
        assert states(listener, "ada") == ["queued", "starting", "ready"]
        assert ready["id"] == ready["launch"]["id"] == launch["id"]
        numbers = [data["number"] for _, data in listener.seen[1:] if data["number"]]
        assert numbers == list(range(1, len(numbers) + 1))
        await service.request("DELETE", f"launches/{launch['id']}")
        await listener.until("stopped", "ada")


@pytest.mark.asyncio
async def test_who_comes_back_is_told_what_happened_meanwhile(service: Service):
    async with listening(service) as listener:
        await accepted(service, "ada")
        await listener.until("ready", "ada")
    await settled(service, await accepted(service, "bob"))
    async with listening(service, last=listener.last) as again:
        await again.until("ready", "bob")
        assert states(again, "bob") == ["queued", "starting", "ready"]
        assert states(again, "ada") == []
        assert "reset" not in [name for name, _ in again.seen]


@pytest.mark.asyncio
async def test_who_was_away_for_long_must_look_anew(service: Service, monkeypatch: pytest.MonkeyPatch):
    async with listening(service) as listener:
        await accepted(service, "ada")
        await listener.until("ready", "ada")
    monkeypatch.setattr("jhlauncher.news._CATCH_UP", 1)
    await settled(service, await accepted(service, "bob"))
    async with listening(service, last=listener.last) as again:
        assert (await again.next())[0] == "reset"
    # a number that was never given out: another database's
    async with listening(service, last="999999") as again:
        assert (await again.next())[0] == "reset"
    status, error = await service.request("GET", "launches/events", headers={"Last-Event-ID": "x"})
    assert (status, error["reason"]) == (400, "invalid_request")


@pytest.mark.asyncio
async def test_who_does_not_keep_up_must_look_anew(service: Service, monkeypatch: pytest.MonkeyPatch):
    news = service.app.parts.news
    monkeypatch.setattr(news, "_recent", type(news._recent)(maxlen=2))
    chapters = news.follow()
    assert not (await anext(chapters)).complete
    await settled(service, await accepted(service, "ada"))
    await until(lambda: news._told > 2)
    chapter = await anext(chapters)
    assert (chapter.complete, chapter.happenings) == (False, [])
    await chapters.aclose()


@pytest.mark.asyncio
async def test_one_sees_only_what_one_may(service: Service, hub: FakeHub):
    token = hub.identify("token-of-ada", "ada", "user", "access:services", "servers!user=ada")
    async with listening(service, token=token) as listener, listening(service, "?username=bob") as of_bob:
        await listener.next()
        await settled(service, await accepted(service, "bob"))
        await settled(service, await accepted(service, "ada"))
        await listener.until("ready", "ada")
        assert {data["username"] for _, data in listener.seen[1:]} == {"ada"}
        await of_bob.until("ready", "bob")
        assert {data["username"] for _, data in of_bob.seen[1:]} == {"bob"}


@pytest.mark.asyncio
async def test_of_a_group(service: Service, hub: FakeHub):
    hub.users |= {"ada": {"groups": ["course-1"]}, "grace": {"groups": ["course-1"]}}
    async with listening(service, "?group=course-1") as listener:
        await listener.next()
        for user in ("bob", "ada"):
            await settled(service, await accepted(service, user))
        await listener.until("ready", "ada")
        assert {data["username"] for _, data in listener.seen[1:]} == {"ada"}
    status, found = await service.request("GET", "launches?group=course-1")
    assert (status, [launch["username"] for launch in found["items"]]) == (200, ["ada"])


@pytest.mark.asyncio
async def test_a_token_that_is_taken_away_ends_the_stream(hub: FakeHub, database_url: str):
    settings = {**SETTINGS, "Hub": {"retry_timeout": 0.2, "auth_cache_seconds": 0.01}}
    async with running_service(hub, Database={"url": database_url}, **settings, **NEWS) as service:
        token = hub.identify("token-of-ada", "ada", "user", "access:services", "servers")
        async with listening(service, token=token) as listener:
            await listener.next()
            del hub.identities[token]
            await accepted(service, "bob")
            with pytest.raises(StopAsyncIteration):
                await listener.next()


@pytest.mark.asyncio
async def test_places_in_the_queue(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, **NEWS, "StartBound": {"concurrent_starts": 1}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        async with listening(service) as listener:
            await listener.next()
            for user in ("ada", "bob", "carl"):
                await accepted(service, user)
            assert await listener.place_of("carl") == 2
            # who comes later finds the places in the list, and disturbs nobody
            before = len(listener.seen)
            async with listening(service) as later:
                assert (await later.next())[0] == "reset"
                status, found = await service.request("GET", "launches?state=queued")
                assert status == 200
                assert {launch["username"]: launch["position"] for launch in found["items"]} == {"bob": 1, "carl": 2}
            await accepted(service, "dora")
            assert await listener.place_of("dora") == 3
            told = [data["username"] for _, data in listener.seen[before:] if data["number"] is None]
            assert told == ["dora"]


@pytest.mark.asyncio
async def test_other_replicas_launches(hub: FakeHub, postgres: Postgres):
    database = {"url": postgres.database()}
    async with (
        running_service(hub, Database=database, **SETTINGS, **NEWS) as one,
        running_service(hub, Database=database, **SETTINGS, **NEWS) as other,
    ):
        async with listening(one) as listener:
            await listener.next()
            await settled(other, await accepted(other, "ada"))
            await listener.until("ready", "ada")
            assert states(listener, "ada") == ["queued", "starting", "ready"]


@pytest.mark.asyncio
async def test_the_service_s_end_is_the_stream_s(service: Service):
    async with listening(service) as listener:
        await listener.next()
        await asyncio.wait_for(service.app.serving.drain(20), 5)
        with pytest.raises(StopAsyncIteration):
            await listener.next()
        assert service.app.parts.news._listeners == 0


@pytest.mark.asyncio
async def test_nobody_listens_nothing_is_read(service: Service):
    news = service.app.parts.news
    async with listening(service) as listener:
        await listener.next()
        assert news._listeners == 1
    await until(lambda: news._listeners == 0)
    assert news._past is None
    assert not news._recent
    assert not service.app.parts.feed.line_observers


@pytest.mark.asyncio
async def test_values_of_env_are_not_held(service: Service):
    async with listening(service) as listener:
        await accepted(service, "ada", env={"SECRET": "x" * 1000})
        await listener.until("ready", "ada")
        assert all(happening.record.env is None for happening in service.app.parts.news._recent)


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["launches/events", "launches/ID/events", "launches/ID?wait=300"])
async def test_a_client_that_leaves_right_after_asking(service: Service, hub: FakeHub, path: str):
    """Tornado does not tell of one that has left before the handler begins."""
    hub.auto_finish = False
    launch = await accepted(service, "ada")
    address = urlsplit(service.url)
    target = f"{address.path}{path.replace('ID', launch['id'])}"
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: token {PLATFORM_TOKEN}\r\n\r\n".encode()
    for turns in range(8):
        with socket.create_connection((address.hostname, address.port)) as client:  # type: ignore[arg-type]
            await asyncio.sleep(0.02)  # so that it has been taken up
            client.sendall(request)
            for _ in range(turns):
                await asyncio.sleep(0)
    await until(lambda: not service.app.serving.requests)


@pytest.mark.asyncio
async def test_numbers_that_begin_anew(hub: FakeHub, tmp_path: Path):
    """SQLite gives numbers out again when the table was empty meanwhile."""
    database = tmp_path / "launches.sqlite"
    async with running_service(hub, Database={"url": f"sqlite:///{database}"}, **SETTINGS, **NEWS) as service:
        for user in ("ada", "bob"):
            await settled(service, await accepted(service, user))
        async with listening(service) as listener:
            assert await listener.next() == ("reset", {})
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute("DELETE FROM launch_events")
                connection.execute("DELETE FROM launches")
            await accepted(service, "carl")
            while (await listener.next())[0] != "reset":
                pass
            await settled(service, await accepted(service, "dora"))
            await listener.until("ready", "dora")


def test_numbers_that_come_late_are_waited_for():
    """Transactions are not committed in the order of their numbers."""
    past = _Past(10)
    past.read([11, 14])
    assert (past.seq, sorted(past.holes), past.whole) == (14, [12, 13], 11)
    past.read([13, 15])
    assert (past.seq, sorted(past.holes)) == (15, [12])
    past.holes[12] = 0
    past.read([])
    assert (past.holes, past.whole) == ({}, 15)
