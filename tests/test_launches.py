"""The asynchronous face: launches that wait, start, are followed and ended; on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
import sqlalchemy as sa

from jhlauncher import sse
from jhlauncher.feed import _Listeners
from jhlauncher.records import LaunchEvent
from jhlauncher.signing import Signer
from jhlauncher.store import STOP
from jhlauncher.tables import launches
from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub, Misbehaviour
from tests.postgres import Postgres

pytestmark = pytest.mark.asyncio

SETTINGS: dict[str, Any] = {
    "Starter": {"progress_delay": 0.05},
    "Hub": {"retry_timeout": 0.2, "auth_cache_seconds": 600},
    "Feed": {"position_interval": 0.05},
}


@pytest_asyncio.fixture
async def service(hub: FakeHub, database_url: str) -> AsyncIterator[Service]:
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        yield service


async def accepted(service: Service, username: str = "alice", **body: Any) -> Any:
    token, headers = body.pop("token", PLATFORM_TOKEN), body.pop("headers", {})
    body = {"username": username, "image": "image:1", **body}
    status, launch = await service.request("POST", "launches", token, json=body, headers=headers)
    assert status == 202, launch
    return launch


async def settled(service: Service, launch: Any, **query: Any) -> Any:
    status, launch = await service.request("GET", f"launches/{launch['id']}?wait=20")
    assert status == 200
    return launch


async def events(service: Service, launch: Any, last: int | None = None) -> AsyncIterator[sse.Event]:
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    async with service.client.get(f"{service.url}launches/{launch['id']}/events", headers=headers) as response:
        assert response.status == 200
        async for event in sse.decode(response.content.iter_any()):
            yield event


async def names_until(service: Service, launch: Any, last: str, after: int | None = None) -> list[str]:
    """The names of the events that are kept: passing ones leave the id as it is."""
    names, latest = [], ""
    async with asyncio.timeout(20), aclosing(events(service, launch, after)) as stream:
        async for event in stream:
            if event.id != latest:
                names.append(event.name)
            latest = event.id
            if event.name == last:
                return names
    return names


async def test_life_of_a_launch(service: Service):
    body = {"username": "alice", "image": "image:1", "server_name": "p1"}
    async with service.client.post(
        f"{service.url}launches", json=body, headers={"Authorization": f"token {PLATFORM_TOKEN}"}
    ) as response:
        assert response.status == 202
        launch = await response.json()
        assert response.headers["Location"].endswith(f"/launches/{launch['id']}")
    assert launch["state"] == "queued"
    assert launch["caller"] == "service:platform"
    ready = await settled(service, launch)
    assert ready["state"] == "ready"
    assert ready["url"].endswith("/user/alice/p1/")
    assert ready["token"] == "secret-a1"
    assert [ready[key] is not None for key in ("created", "started", "ready", "ended")] == [True, True, True, False]

    for expected in (204, 204):
        status, _ = await service.request("DELETE", f"launches/{launch['id']}?wait=20")
        assert status == expected
    assert not service.hub.servers["alice", "p1"].active
    assert not service.hub.tokens
    stopped = await settled(service, launch)
    assert (stopped["state"], stopped["token"], stopped["ended_by"]) == ("stopped", None, "service:platform")


async def test_events_from_the_beginning_to_the_end(service: Service):
    launch = await accepted(service)
    await settled(service, launch)
    await service.request("DELETE", f"launches/{launch['id']}?wait=20")
    seen = [(event.name, event.id, json.loads(event.data)) async for event in events(service, launch)]
    assert [name for name, _, _ in seen] == ["queued", "starting", "ready", "stopped"]
    assert [number for _, number, _ in seen] == ["1", "2", "3", "4"]
    assert all("time" in data for _, _, data in seen)
    again = [event.name async for event in events(service, launch, last=2)]
    assert again == ["ready", "stopped"]
    status, _ = await service.request("GET", f"launches/{launch['id']}/events", headers={"Last-Event-ID": "4"})
    assert status == 204, "nothing follows: a browser need not come back"


async def test_progress_is_told_as_it_happens(service: Service):
    service.hub.auto_finish = False
    launch = await accepted(service)
    seen = []
    async with aclosing(events(service, launch)) as stream:
        async for event in stream:
            if event.name != "queued" or "position" not in event.data:  # which is told to those who wait for a while
                seen.append(event.name)
            if event.name == "progress":
                service.hub.servers["alice", ""].finish()
            if event.name == "ready":
                ready = json.loads(event.data)["launch"]
                break
    assert seen == ["queued", "starting", "progress", "ready"]
    assert ready["token"]


async def test_what_this_process_keeps_is_told_without_reading_it_again(service: Service):
    store, reads = service.app.parts.store, 0
    read = store.events_of

    async def counted(launch: str, after: int = 0) -> Any:
        nonlocal reads
        reads += 1
        return await read(launch, after)

    store.events_of = counted
    service.hub.auto_finish = False
    launch = await accepted(service)
    progress = []
    async with aclosing(events(service, launch)) as stream:
        async for event in stream:
            if event.name == "progress":
                progress.append(json.loads(event.data)["progress"])
                if progress[-1] < 90:
                    service.hub.servers["alice", ""].emit(progress[-1] + 10, f"step {len(progress)}")
                else:
                    service.hub.servers["alice", ""].finish()
            if event.name == "ready":
                break
    assert progress == [*range(0, 100, 10)]
    if store.database.on_sqlite:  # PostgreSQL's notification may be faster than its answer
        assert reads <= 3, "the first look, and perhaps for what was kept while it lasted"


async def test_news_from_memory_have_no_gap():
    """Other replicas keep events, too."""
    listeners = _Listeners()
    for number in (2, 3, 6):
        listeners.kept(LaunchEvent(number, 0, "progress", {}))
    assert listeners.news(2) is None
    assert listeners.news(6) == []
    listeners.kept(LaunchEvent(7, 0, "progress", {}))
    assert [event.number for event in listeners.news(5) or ()] == [6, 7]
    listeners.heard(8)
    assert listeners.news(6) is None


async def test_outage_after_throttling_is_waited_for_in_peace(service: Service):
    parts, writes = service.app.parts, 0
    write = parts.store.database.write

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal writes
        writes += 1
        return await write(*args, **kwargs)

    parts.store.database.write = counted
    over = asyncio.Event()
    parts.bound.throttled(0, 0.25)
    parts.outage._task = asyncio.create_task(over.wait())
    parts.worker._wake.set()
    await asyncio.sleep(1)
    assert writes < 10
    over.set()


async def test_end_that_comes_as_it_is_taken_up(service: Service):
    """The replica has taken it, and does not know that yet."""
    worker, store = service.app.parts.worker, service.app.parts.store
    service.hub.auto_finish = False
    taking = worker._taking

    def taking_and_stopped(*args: Any) -> Any:
        work = taking(*args)

        def both(connection: sa.Connection) -> Any:
            taken = work(connection)
            for launch in taken.starting:
                connection.execute(launches.update().where(launches.c.id == launch.id).values(stop_by="user:alice"))
                store.database.notify(connection, STOP + launch.id)
            return taken

        return both

    worker._taking = taking_and_stopped
    begin = time.monotonic()
    ended = await settled(service, await accepted(service))
    assert (ended["state"], ended["ended_by"]) == ("cancelled", "user:alice")
    assert time.monotonic() - begin < 4, "before the next sign of life"


async def test_end_that_is_asked_for_as_it_gets_ready(service: Service):
    store = service.app.parts.store
    change = store.change
    asking = []

    async def change_after_an_end_was_asked_for(launch: str, to: str, *args: Any, **kwargs: Any) -> Any:
        if to == "ready":
            asking.append(asyncio.create_task(store.ask_to_stop(launch, "user:alice")))
            await asyncio.sleep(0)
        return await change(launch, to, *args, **kwargs)

    store.change = change_after_an_end_was_asked_for
    begin = time.monotonic()
    launch = await accepted(service)
    _, launch = await service.request("GET", f"launches/{launch['id']}?wait=20")
    while launch["state"] in ("starting", "ready"):
        await asyncio.sleep(0.05)
        _, launch = await service.request("GET", f"launches/{launch['id']}")
    assert launch["state"] in ("cancelled", "stopped")
    assert time.monotonic() - begin < 4, "before the next sign of life"
    await asyncio.gather(*asking)


async def test_failure_is_told(service: Service):
    service.hub.auto_finish = False
    launch = await accepted(service)
    await service.hub.starting.wait()
    service.hub.servers["alice", ""].fail("Spawn failed: no such image")
    failed = await settled(service, launch)
    assert failed["state"] == "failed"
    assert failed["error"] == {
        "error": "The server of alice did not start: no such image",
        "reason": "start_failed",
        "details": {},
        "status": 500,
    }
    assert await names_until(service, launch, "failed") == ["queued", "starting", "failed"]


async def test_wait(service: Service):
    status, launch = await service.request("POST", "launches?wait=20", json={"username": "bob", "image": "i"})
    assert (status, launch["state"]) == (200, "ready")
    service.hub.auto_finish = False
    begin = time.monotonic()
    status, launch = await service.request("POST", "launches?wait=0.2", json={"username": "eve", "image": "i"})
    assert (status, launch["state"] in ("queued", "starting")) == (202, True)
    assert time.monotonic() - begin < 5
    for bad in ("-1", "inf", "x", "100000"):
        assert (await service.request("GET", f"launches/{launch['id']}?wait={bad}"))[0] == 400


async def test_idempotency_key(service: Service):
    keyed = {"headers": {"Idempotency-Key": "k1"}}
    first = await accepted(service, **keyed)
    ready = await settled(service, first)
    status, again = await service.request(
        "POST", "launches", json={"username": "alice", "image": "image:1"}, headers=keyed["headers"]
    )
    assert (status, again["id"], again["state"]) == (200, first["id"], "ready")
    assert again["token"] == ready["token"]
    body = {"username": "alice", "image": "other:1"}
    status, error = await service.request("POST", "launches", json=body, headers=keyed["headers"])
    assert (status, error["reason"]) == (422, "idempotency_key_reused")
    status, answer = await service.request(
        "POST", json={"username": "alice", "image": "image:1"}, headers=keyed["headers"]
    )
    assert (status, answer["token"]) == (200, ready["token"]), "both faces are of one launcher"
    for bad in ("", "x" * 256, "a b"):
        status, _ = await service.request("POST", "launches", json=body, headers={"Idempotency-Key": bad})
        assert status == 400


async def test_conflicts_have_the_codes_that_http_means(service: Service):
    service.hub.auto_finish = False
    launch = await accepted(service)
    body = {"username": "alice", "image": "image:1"}
    status, error = await service.request("POST", "launches", json=body)
    assert (status, error["reason"], error["details"]) == (409, "server_starting", {"launch": launch["id"]})
    await service.hub.starting.wait()
    service.hub.servers["alice", ""].finish()
    await settled(service, launch)
    status, error = await service.request("POST", "launches", json=body)
    assert (status, error["reason"]) == (409, "server_running")


async def test_server_that_ended_unheard_of_is_not_in_the_way(service: Service):
    launch = await settled(service, await accepted(service))
    service.hub.servers["alice", ""].ready = False
    await settled(service, await accepted(service))
    assert (await settled(service, launch))["state"] == "stopped"


async def test_cancel_while_starting(service: Service):
    service.hub.auto_finish = False
    launch = await accepted(service)
    await service.hub.starting.wait()
    status, _ = await service.request("DELETE", f"launches/{launch['id']}?wait=20")
    assert status == 204
    cancelled = await settled(service, launch)
    assert (cancelled["state"], cancelled["error"]["reason"]) == ("cancelled", "cancelled")
    assert not service.hub.servers["alice", ""].active
    assert not service.hub.tokens


async def test_cancel_that_a_busy_hub_does_not_manage_is_asked_for_again(service: Service):
    service.hub.auto_finish = False
    service.hub.misbehaviours.add(Misbehaviour.GOES_ON_AFTER_CANCEL)
    launch = await accepted(service)
    await service.hub.starting.wait()
    assert (await service.request("DELETE", f"launches/{launch['id']}?wait=20"))[0] == 204
    assert not service.hub.servers["alice", ""].active


async def test_queue_with_positions(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, "StartBound": {"concurrent_starts": 1}, "Database": {"url": database_url}}
    async with running_service(hub, **settings) as service:
        launches = [await accepted(service, f"user{n}") for n in range(4)]
        await hub.starting.wait()
        status, last = await service.request("GET", f"launches/{launches[3]['id']}")
        assert (status, last["state"], last["position"]) == (200, "queued", 3)
        positions: list[int] = []
        async with aclosing(events(service, launches[3])) as stream:
            async for event in stream:
                data = json.loads(event.data)
                if event.name == "queued" and "position" in data:
                    positions.append(data["position"])
                    assert event.id == "1", "passing events are not to be resumed from"
                    await until(lambda: any(server.pending for server in hub.servers.values()))
                    next(server for server in hub.servers.values() if server.pending).finish()
                elif event.name == "starting":
                    break
        assert positions == [3, 2, 1]
        assert data["message"]
        # one that waits is cancelled without the Hub
        extra = await accepted(service, "late")
        assert (await service.request("DELETE", f"launches/{extra['id']}"))[0] == 204
        assert "late" not in {user for user, _ in hub.servers}


async def test_who_has_waited_long_enough_expires(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, "StartBound": {"concurrent_starts": 1}, "Database": {"url": database_url}}
    async with running_service(hub, **settings) as service:
        await accepted(service, "first")
        launch = await accepted(service, "second", queue_timeout=0.2)
        assert await names_until(service, launch, "expired") == ["queued", "expired"]
        expired = await settled(service, launch)
        assert (expired["state"], expired["error"]["reason"]) == ("expired", "queue_timeout")
        assert "second" not in {user for user, _ in hub.servers}


async def test_full_queue_says_when_to_come_back(hub: FakeHub):
    hub.auto_finish = False
    settings = {**SETTINGS, "StartBound": {"concurrent_starts": 1}, "Store": {"max_queued": 1}}
    async with running_service(hub, **settings) as service:
        await accepted(service, "first")
        await hub.starting.wait()
        await accepted(service, "second")
        headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
        async with service.client.post(
            f"{service.url}launches", json={"username": "third", "image": "i"}, headers=headers
        ) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["reason"] == "queue_full"


async def test_blocking_caller_who_leaves_the_queue_is_not_started(hub: FakeHub):
    hub.auto_finish = False
    async with running_service(hub, **SETTINGS, StartBound={"concurrent_starts": 1}) as service:
        await accepted(service, "first")
        await hub.starting.wait()
        waiting = asyncio.create_task(service.launch(username="impatient"))
        await until(lambda: "POST /users" in hub.requests and "impatient" in hub.users)
        async with asyncio.timeout(5):
            while not (await service.request("GET", "launches?state=queued"))[1]["items"]:
                await asyncio.sleep(0.01)
        waiting.cancel()
        async with asyncio.timeout(5):
            while (await service.request("GET", "launches?state=queued"))[1]["items"]:
                await asyncio.sleep(0.01)
        hub.servers["first", ""].finish()
        assert "impatient" not in {user for user, _ in hub.servers}


async def test_lifetime(hub: FakeHub, database_url: str):
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        launch = await accepted(service, lifetime=4)
        seen = await names_until(service, launch, "expired")
        assert seen == ["queued", "starting", "ready", "warning", "expired"]
        assert not hub.servers["alice", ""].active
        assert not hub.tokens
        ended = await settled(service, launch)
        assert (ended["state"], ended["ended_by"]) == ("expired", "lifetime")


async def test_token_ends_with_the_lifetime(service: Service):
    await settled(service, await accepted(service, lifetime=60))
    assert next(iter(service.hub.tokens.values()))["expires_in"] == 60


async def test_list_filters_and_pages(service: Service):
    for n in range(5):
        await settled(service, await accepted(service, f"user{n}"))
    failing = await settled(service, await accepted(service, "user5", server_name="s"))
    await service.request("DELETE", f"launches/{failing['id']}?wait=20")
    seen: list[str] = []
    cursor = ""
    while True:
        status, page = await service.request("GET", f"launches?limit=2{cursor}")
        assert status == 200
        seen += [launch["username"] for launch in page["items"]]
        if len(seen) == 2:
            await accepted(service, "newcomer")  # does not shift the pages
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [f"user{n}" for n in (5, 4, 3, 2, 1, 0)]

    async def found(query: str) -> list[str]:
        status, page = await service.request("GET", f"launches?{query}")
        assert status == 200, page
        return [launch["username"] for launch in page["items"]]

    assert await found("state=stopped") == ["user5"]
    assert await found("username=user3") == ["user3"]
    assert await found("server_name=s&state=ready,stopped") == ["user5"]
    assert await found("until=2020-01-01T00:00:00Z") == []
    assert len(await found("since=2020-01-01T00:00:00%2B01:00")) == 7
    assert await found("template=none") == []
    for bad in (
        "state=nowhere",
        "limit=0",
        "limit=501",
        "cursor=x",
        "since=yesterday",
        "colour=red",
        "limit=1&limit=2",
    ):
        assert (await service.request("GET", f"launches?{bad}"))[0] == 400, bad


async def test_only_what_the_caller_may_see(service: Service):
    access, group = "access:services", ("course-1",)
    alice = service.hub.identify("t-alice", "alice", "user", access, "servers!user=alice", "read:servers!user=alice")
    service.hub.identify("t-bob", "bob", "user", access, "read:servers!user=bob")
    teacher = service.hub.identify("t-teacher", "teacher", "user", access, "read:servers!group=course-1")
    service.hub.identify("t-stu", "stu", "user", access, groups=group)
    launches = {name: await settled(service, await accepted(service, name)) for name in ("alice", "stu", "eve")}

    async def seen(token: str) -> set[str]:
        status, page = await service.request("GET", "launches", token)
        assert status == 200, page
        return {launch["username"] for launch in page["items"]}

    assert await seen(alice) == {"alice"}
    assert await seen("t-bob") == set()
    assert await seen(teacher) == {"stu"}
    assert await seen(PLATFORM_TOKEN) == {"alice", "stu", "eve"}
    status, launch = await service.request("GET", f"launches/{launches['stu']['id']}", teacher)
    assert (status, launch["token"]) == (200, None), "to see is not to enter"
    status, launch = await service.request("GET", f"launches/{launches['alice']['id']}", alice)
    assert (status, launch["token"]) == (200, launches["alice"]["token"])
    for path in ("", "/events"):
        status, error = await service.request("GET", f"launches/{launches['alice']['id']}{path}", "t-bob")
        assert (status, error["reason"]) == (404, "launch_not_found")
    status, error = await service.request("DELETE", f"launches/{launches['stu']['id']}", teacher)
    assert (status, error["reason"]) == (403, "missing_scope")
    assert service.hub.servers["stu", ""].active


async def test_dry_run(service: Service):
    body = {"username": "nobody", "image": "image:1", "cpu": {"limit": 1}}
    status, plan = await service.request("POST", "launches?dry_run=true", json=body)
    assert status == 200
    assert (plan["decision"], plan["rule"], plan["position"]) == ("start", "services", 1)
    assert plan["spec"]["image"] == "image:1"
    assert "nobody" not in service.hub.users
    assert not service.hub.servers
    assert (await service.request("GET", "launches"))[1]["items"] == []
    alice = service.hub.identify("t-alice", "alice", "user", "access:services", "servers!user=alice")
    status, plan = await service.request("POST", "launches?dry_run=true", alice, json={**body, "username": "alice"})
    assert (status, plan["decision"], plan["rule"]) == (200, "refuse", "users")
    assert plan["error"]["reason"] == "policy_denied"
    status, _ = await service.request("POST", "launches?dry_run=true", alice, json=body)
    assert status == 403
    await settled(service, await accepted(service, "alice"))
    status, plan = await service.request("POST", "launches?dry_run=true", json={**body, "username": "alice"})
    assert (plan["decision"], plan["error"]["reason"]) == ("refuse", "server_running")


async def test_dry_run_tells_of_a_limit_that_makes_it_wait(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": ["*"], "limits": {"all": {"servers": 1}}, "when_full": "queue"}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        await settled(service, await accepted(service, "alice"))
        body = {"username": "bob", "image": "image:1"}
        _, plan = await service.request("POST", "launches?dry_run=true", json=body)
        assert (plan["decision"], plan["position"]) == ("queue", 1)
        assert plan["limits"] == [{"key": "all", "resource": "servers", "most": 1, "used": 1, "when_full": "queue"}]


@pytest.mark.parametrize(
    "path", ["launches/0123456789abcdef", "launches/0123456789abcdef/events", "launches/nope", "launches/nope/events"]
)
async def test_no_such_launch(service: Service, path: str):
    for method in ("GET", "DELETE"):
        status, error = await service.request(method, path)
        assert (status, error["reason"]) in ((404, "launch_not_found"), (405, "method_not_allowed"))


async def test_nothing_secret_is_kept_in_clear(service: Service, database_url: str):
    launch = await settled(service, await accepted(service, env={"PASSWORD": "very-secret-value"}))
    assert launch["token"]
    store = service.app.parts.store
    record = await store.get(launch["id"])
    kept = f"{record} {await store.events_of(launch['id'])}"
    for secret in ("very-secret-value", launch["token"], PLATFORM_TOKEN):
        assert secret not in kept
    assert record
    assert record.env


async def test_limit_under_200_concurrent_requests(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": ["*"], "limits": {"all": {"servers": 10}}, "when_full": "refuse"}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        body = {"image": "image:1"}
        answers = await asyncio.gather(
            *(service.request("POST", "launches", json={"username": f"user{n}", **body}) for n in range(200))
        )
        statuses = [status for status, _ in answers]
        assert (statuses.count(202), statuses.count(429)) == (10, 190)
        error = next(body for status, body in answers if status == 429)
        assert error["reason"] == "limit_reached"
        assert error["details"]["limit"]["most"] == 10
        for status, launch in answers:
            if status == 202:
                assert (await settled(service, launch))["state"] == "ready"
        assert sum(server.active for server in hub.servers.values()) == 10


async def test_limit_under_concurrent_requests_to_two_replicas(hub: FakeHub, postgres: Postgres):
    rule = {"name": "r", "images": ["*"], "limits": {"all": {"servers": 10}}, "when_full": "refuse"}
    settings = {**SETTINGS, "Database": {"url": postgres.database()}, "Policy": {"rules": [rule]}}
    async with running_service(hub, **settings) as one, running_service(hub, **settings) as two:
        answers = await asyncio.gather(
            *(
                service.request("POST", "launches", json={"username": f"user{n}-{index}", "image": "image:1"})
                for n in range(100)
                for index, service in enumerate((one, two))
            )
        )
        statuses = [status for status, _ in answers]
        assert (statuses.count(202), statuses.count(429)) == (10, 190)
        for status, launch in answers:
            if status == 202:
                # what one has accepted, the other tells about
                assert [(await settled(service, launch))["state"] for service in (one, two)] == ["ready", "ready"]
    assert sum(server.active for server in hub.servers.values()) == 10


async def test_limit_lets_others_wait(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": ["*"], "limits": {"user": {"servers": 1}}}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        first = await settled(service, await accepted(service))
        second = await accepted(service, server_name="p1")
        other = await settled(service, await accepted(service, "bob"))
        assert other["state"] == "ready"
        assert (await service.request("GET", f"launches/{second['id']}"))[1]["state"] == "queued"
        async with aclosing(events(service, second)) as stream:
            async for event in stream:
                if "position" in event.data:
                    assert "Waiting for room: 1 of 1 servers are in use (user:alice)" in event.data
                    break
        await service.request("DELETE", f"launches/{first['id']}?wait=20")
        assert (await settled(service, second))["state"] == "ready"


async def test_what_no_limit_has_room_for_is_refused(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": ["*"], "cpu": None, "limits": {"all": {"cpu": 4}}, "when_full": "queue"}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        body = {"username": "alice", "image": "image:1", "cpu": {"limit": 8}}
        status, error = await service.request("POST", "launches", json=body)
        assert (status, error["reason"]) == (403, "policy_denied")
        assert error["details"]["fields"] == [{"field": "cpu", "problem": "8 is more than the limit of 4 (all)"}]


@pytest.mark.parametrize(
    "query", ["username=%00", "username=a%2Fb", "server_name=%00", "template=%00", "batch=x", "state=lost", "limit=0"]
)
async def test_bad_filters(service: Service, query: str):
    status, error = await service.request("GET", f"launches?{query}")
    assert (status, error["reason"]) == (400, "invalid_request")


async def test_memory_that_no_database_can_count(service: Service):
    body = {"username": "alice", "image": "image:1", "memory": {"limit": "99999999999999999999T"}}
    assert (await service.request("POST", "launches", json=body))[0] == 400


async def test_dry_run_keeps_the_secrets_of_a_template(hub: FakeHub, database_url: str):
    policy = {
        "rules": [{"name": "r", "templates": ["*"]}],
        "templates": {"lab": {"image": "image:1", "env": {"PASSWORD": "very-secret-value"}}},
    }
    async with running_service(hub, Database={"url": database_url}, Policy=policy, **SETTINGS) as service:
        body = {"username": "alice", "template": "lab"}
        status, plan = await service.request("POST", "launches?dry_run=true", json=body)
        assert (status, plan["env"]) == (200, ["PASSWORD"])
        assert "very-secret-value" not in json.dumps(plan)


async def test_metrics(service: Service):
    monitor = service.hub.identify("t-monitor", "prometheus", "service", "read:metrics")
    await settled(service, await accepted(service))
    service.hub.auto_finish = False
    failing = await accepted(service, "bob")
    await until(lambda: ("bob", "") in service.hub.servers)
    service.hub.servers["bob", ""].fail("Spawn failed: no such image")
    await settled(service, failing)
    assert (await service.request("GET", "metrics"))[0] == 403
    assert (await service.request("GET", "metrics", None))[0] == 401
    status, text = await service.request("GET", "metrics", monitor)
    assert status == 200
    lines = text.splitlines()
    for line in (
        'jhlauncher_launches_total{reason="",state="ready"} 1.0',
        'jhlauncher_launches_total{reason="start_failed",state="failed"} 1.0',
        'jhlauncher_launches_kept{state="queued"} 0.0',
        'jhlauncher_phase_seconds_count{phase="queued"} 2.0',
        'jhlauncher_phase_seconds_count{phase="start"} 1.0',
        'jhlauncher_hub_requests_total{code="201",method="POST"} 4.0',
    ):
        assert line in lines, text


async def test_open_metrics(hub: FakeHub):
    async with running_service(hub, LauncherApp={"authenticate_prometheus": False}) as service:
        status, text = await service.request("GET", "metrics", None)
    assert status == 200
    assert "jhlauncher_concurrent_starts_bound 64.0" in text


async def test_audit_trail(hub: FakeHub, tmp_path: Path):
    handler = logging.FileHandler(tmp_path / "launches.jsonl")
    async with running_service(hub, **SETTINGS, EventLogger={"handlers": [handler]}) as service:
        launch = await settled(service, await accepted(service, env={"PASSWORD": "very-secret-value"}))
        await service.request("DELETE", f"launches/{launch['id']}?wait=20")
        hub.auto_finish = False
        failing = await accepted(service, "bob")
        await until(lambda: ("bob", "") in hub.servers)
        hub.servers["bob", ""].fail("Spawn failed: no such image")
        await settled(service, failing)
    handler.close()
    text = (tmp_path / "launches.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [(event["username"], event["action"], event["by"], event["reason"]) for event in events] == [
        ("alice", "accepted", None, None),
        ("alice", "started", None, None),
        ("alice", "ready", None, None),
        ("alice", "stopped", "service:platform", None),
        ("bob", "accepted", None, None),
        ("bob", "started", None, None),
        ("bob", "failed", None, "start_failed"),
    ]
    assert all(event["caller"] == "service:platform" and event["rule"] == "services" for event in events)
    assert "very-secret-value" not in text
    assert launch["token"] not in text


async def test_batch(service: Service):
    body = {"launches": [{"username": f"user{n}", "image": "image:1"} for n in range(3)]}
    body["launches"].insert(1, {"username": "user0", "image": "image:1"})  # the same server again
    headers = {"Idempotency-Key": "class-1"}
    status, batch = await service.request("POST", "batches", json=body, headers=headers)
    assert status == 202, batch
    assert [item["error"] and item["error"]["reason"] for item in batch["items"]] == [
        None,
        "server_starting",
        None,
        None,
    ]
    assert batch["items"][0]["launch"]["username"] == "user0"
    assert (await service.request("POST", "batches", json=body, headers=headers))[1]["id"] == batch["id"]
    body["launches"].pop()
    assert (await service.request("POST", "batches", json=body, headers=headers))[0] == 422
    for item in batch["items"]:
        if item["launch"]:
            await settled(service, item["launch"])
    status, batch = await service.request("GET", f"batches/{batch['id']}")
    assert (status, batch["counts"]) == (200, {"ready": 3, "refused": 1})
    assert len((await service.request("GET", f"launches?batch={batch['id']}"))[1]["items"]) == 3
    service.hub.identify("t-other", "other", "service", "access:services")
    assert (await service.request("GET", f"batches/{batch['id']}", "t-other"))[0] == 404
    async with asyncio.timeout(20):
        while (await service.request("DELETE", f"batches/{batch['id']}"))[0] != 204:
            pass
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    async with service.client.get(f"{service.url}batches/{batch['id']}/events", headers=headers) as response:
        seen = [event async for event in sse.decode(response.content.iter_any())]
    names = [event.name for event in seen]
    assert (names.count("ready"), names.count("stopped"), names[-1]) == (3, 3, "stopped")
    assert json.loads(seen[0].data)["username"].startswith("user")
    middle = {**headers, "Last-Event-ID": seen[4].id}
    async with service.client.get(f"{service.url}batches/{batch['id']}/events", headers=middle) as response:
        assert [event.id async for event in sse.decode(response.content.iter_any())] == [e.id for e in seen[5:]]
    last = {**headers, "Last-Event-ID": seen[-1].id}
    async with service.client.get(f"{service.url}batches/{batch['id']}/events", headers=last) as response:
        assert response.status == 204, "a browser would come back for ever"


async def test_batch_of_which_all_or_none_is_wanted(service: Service):
    await settled(service, await accepted(service, "user1"))
    body = {"mode": "all", "launches": [{"username": f"user{n}", "image": "image:1"} for n in range(3)]}
    status, error = await service.request("POST", "batches", json=body)
    assert (status, error["reason"]) == (400, "batch_refused")
    assert [(item["index"], item["reason"]) for item in error["details"]["items"]] == [(1, "server_running")]
    assert len((await service.request("GET", "launches"))[1]["items"]) == 1
    status, _ = await service.request("POST", "batches", json={**body, "mode": "some"})
    assert status == 202


async def test_options_and_templates(hub: FakeHub):
    policy = {
        "templates": {"course": {"image": "course:1", "description": "For all", "env": {"SECRET": "of-the-template"}}},
        "rules": [
            {
                "name": "students",
                "callers": ["user:*"],
                "images": ["course:1", "lab:*"],
                "volumes": ["home-{username}", "data:ro"],
                "env": ["COURSE_*"],
                "templates": ["course"],
                "lifetime": 3600,
                "limits": {"user": {"servers": 1}},
            },
            {"name": "all", "images": ["*"], "templates": []},
        ],
    }
    alice = hub.identify("t-alice", "alice", "user", "access:services", "servers!user=alice")
    async with running_service(hub, Policy=policy) as service:
        status, options = await service.request("GET", "options", alice)
        assert status == 200, options
        assert (options["rule"], options["username"]) == ("students", "alice")
        fields = options["request"]["properties"]
        assert re.fullmatch(fields["image"]["pattern"], "lab:2")
        assert re.fullmatch(fields["image"]["pattern"], "course:1")
        assert not re.fullmatch(fields["image"]["pattern"], "other:1")
        assert fields["template"]["enum"] == ["course"]
        assert fields["lifetime"]["maximum"] == 3600
        assert "home-alice" in fields["vols"]["description"]
        assert options["limits"] == [
            {"key": "user:alice", "resource": "servers", "most": 1, "used": 0, "when_full": "queue"}
        ]
        jsonschema.Draft202012Validator.check_schema(options["request"])
        status, templates = await service.request("GET", "templates", alice)
        assert templates["course"]["env"] == ["SECRET"]
        assert "of-the-template" not in str(options) + str(templates)
        assert (await service.request("GET", "templates?username=bob"))[1] == {}
        assert (await service.request("GET", "options"))[0] == 400, "a service must say for whom"
        assert (await service.request("GET", "options?username=bob", alice))[0] == 403
        status, launch = await service.request(
            "POST", "launches", alice, json={"username": "alice", "template": "course"}
        )
        assert (status, launch["image"], launch["template"]) == (202, "course:1", "course")


async def test_end_is_believed_only_if_the_hub_does_not_show_it_running(service: Service):
    launch = await settled(service, await accepted(service))
    signer = service.app.parts.signer
    for sealed in (signer.seal({"ended": launch["id"]}, "env"), signer.seal({"ended": launch["id"]}, "token")):
        headers = {"Authorization": f"Sealed {sealed}"}
        async with service.client.post(f"{service.url}ended", headers=headers) as response:
            assert response.status == 401, "what people get to see is good for nothing else"
    headers = {"Authorization": f"Sealed {signer.seal({'ended': launch['id']}, 'ended')}"}
    async with service.client.post(f"{service.url}ended", headers=headers) as response:
        assert response.status == 204
    assert (await service.request("GET", f"launches/{launch['id']}"))[1]["state"] == "ready"


async def test_nobody_waits_for_longer_than_the_administrator_allows(hub: FakeHub, database_url: str):
    settings = {**SETTINGS, "Launcher": {"queue_timeout": 60}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        launch = await accepted(service, queue_timeout=3e8)
        record = await service.app.parts.store.get(launch["id"])
        assert record
        assert record.wait_until
        assert record.wait_until - record.created <= 60.5


async def test_one_user_can_not_fill_the_queue(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, "StartBound": {"concurrent_starts": 1}, "Store": {"max_queued_per_user": 2}}
    rule = {"name": "r", "images": ["*"]}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **settings) as service:
        alice = hub.identify("t-alice", "alice", "user", "access:services", "servers!user=alice")
        statuses = []
        for n in range(6):
            body = {"username": "alice", "server_name": f"s{n}", "image": "image:1"}
            status, answer = await service.request("POST", "launches", alice, json=body)
            statuses.append(status)
        assert statuses[-1] == 503
        assert answer["reason"] == "queue_full"
        await accepted(service, "bob")


@pytest.mark.parametrize("cpu", [{"request": 0.001}, {"request": 0.001, "limit": None}])
async def test_small_request_does_not_get_the_whole_machine(hub: FakeHub, database_url: str, cpu: dict[str, Any]):
    policy = {
        "rules": [
            {
                "name": "r", "images": ["*"], "templates": ["*"], "cpu": 2, "memory": "4G",
                "limits": {"user": {"cpu": 3}}, "when_full": "refuse",
            }
        ],
        "templates": {"small": {"image": "image:1", "cpu": {"limit": 1}}},
    }  # fmt: skip
    async with running_service(hub, Database={"url": database_url}, Policy=policy, **SETTINGS) as service:
        body = {"username": "alice", "image": "image:1", "cpu": cpu}
        _, plan = await service.request("POST", "launches?dry_run=true", json=body)
        assert plan["spec"]["cpu"] == {"request": 0.001, "limit": 2}
        _, plan = await service.request("POST", "launches?dry_run=true", json={**body, "template": "small"})
        assert plan["spec"]["cpu"] == {"request": 0.001, "limit": 1}
        assert (await service.request("POST", "launches", json=body))[0] == 202
        status, error = await service.request("POST", "launches", json={**body, "server_name": "p1"})
        assert (status, error["reason"]) == (429, "limit_reached")


async def test_huge_memory_does_not_stop_the_count(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": ["*"], "memory": None, "limits": {"all": {"servers": 5}}}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        for n in range(3):
            await settled(service, await accepted(service, f"user{n}", memory={"limit": 2**63 - 1}))
        assert (await settled(service, await accepted(service, "other")))["state"] == "ready"


async def test_token_that_was_revoked_meanwhile_gets_nothing(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, "Hub": {"auth_cache_seconds": 0.05}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        token = hub.identify("t-robot", "robot", "service", "access:services", "servers", "admin:users")
        status, launch = await service.request("POST", "launches", token, json={"username": "alice", "image": "i:1"})
        assert status == 202
        headers = {"Authorization": f"token {token}"}
        async with service.client.get(f"{service.url}launches/{launch['id']}/events", headers=headers) as response:
            await until(lambda: ("alice", "") in hub.servers)
            del hub.identities[token]
            await asyncio.sleep(0.1)  # the cache is a matter of time
            hub.servers["alice", ""].finish()
            told = [event.name async for event in sse.decode(response.content.iter_any())]
        assert "ready" not in told


async def test_batch_of_which_nothing_can_be_accepted_is_not_kept(hub: FakeHub, database_url: str):
    rule = {"name": "r", "images": [f"image-{n}:*" for n in range(50)]}
    async with running_service(hub, Database={"url": database_url}, Policy={"rules": [rule]}, **SETTINGS) as service:
        body = {"launches": [{"username": f"user{n}", "image": "other:1"} for n in range(3)]}
        status, error = await service.request("POST", "batches", json=body)
        assert (status, error["reason"]) == (400, "batch_refused")
        assert [item["index"] for item in error["details"]["items"]] == [0, 1, 2]
        assert "image-9:*, ..." in error["details"]["items"][0]["error"]


async def test_batch_that_asks_twice_for_a_server_is_refused_at_once(service: Service):
    body = {"mode": "all", "launches": [{"username": name, "image": "i:1"} for name in ("a", "b", "a")]}
    status, error = await service.request("POST", "batches", json=body)
    assert (status, error["reason"]) == (400, "batch_refused")
    assert [(item["index"], item["reason"]) for item in error["details"]["items"]] == [(2, "server_starting")]
    assert (await service.request("GET", "launches"))[1]["items"] == []


async def test_request_with_a_key_that_is_given_up_can_be_sent_again(hub: FakeHub, database_url: str):
    hub.auto_finish = False
    settings = {**SETTINGS, "StartBound": {"concurrent_starts": 1}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        await accepted(service, "first")
        headers = {"Idempotency-Key": "k1"}
        body = {"username": "alice", "image": "i:1"}
        waiting = [
            asyncio.create_task(service.request("POST", "containers", json=body, headers=headers)) for _ in range(2)
        ]
        async with asyncio.timeout(20):
            while len((await service.request("GET", "launches?state=queued&username=alice"))[1]["items"]) < 1:
                pass
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        hub.auto_finish = True
        await until(lambda: ("first", "") in hub.servers)
        hub.servers["first", ""].finish()
        assert (await asyncio.wait_for(waiting[1], 20))[0] == 200


async def test_changed_signing_key(service: Service):
    launch = await settled(service, await accepted(service))
    service.app.parts.launcher._signer = Signer("another key that is long enough to be one")
    status, page = await service.request("GET", "launches?state=ready")
    assert (status, page["items"][0]["id"], page["items"][0]["token"]) == (200, launch["id"], None)


async def test_event_id_beyond_the_end(service: Service):
    launch = await settled(service, await accepted(service))
    service.app.parts.feed._line.order[launch["id"]] = 1  # the look at the queue that was a moment ago
    headers = {"Authorization": f"token {PLATFORM_TOKEN}", "Last-Event-ID": "999999999"}
    async with service.client.get(f"{service.url}launches/{launch['id']}/events", headers=headers) as response:
        await service.request("DELETE", f"launches/{launch['id']}?wait=20")
        told = [event.name async for event in sse.decode(response.content.iter_any())]
    assert told == ["stopped"]


@pytest.mark.parametrize("path", ["batches", "containers"])
async def test_dry_run_where_there_is_none(service: Service, path: str):
    one = {"username": "alice", "image": "i:1"}
    body = {"launches": [one]} if path == "batches" else one
    status, error = await service.request("POST", f"{path}?dry_run=true", json=body)
    assert (status, error["reason"]) == (400, "invalid_request")
    assert not service.hub.servers


async def test_ready_that_is_told_again_after_the_end(service: Service):
    launch = await settled(service, await accepted(service))
    await service.request("DELETE", f"launches/{launch['id']}?wait=20")
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    async with service.client.get(f"{service.url}launches/{launch['id']}/events", headers=headers) as response:
        told = {event.name: json.loads(event.data) async for event in sse.decode(response.content.iter_any())}
    assert "launch" not in told["ready"], "its URL is nobody's any more"
    assert told["stopped"]["time"].endswith("Z")


async def test_end_while_the_hub_takes_no_start(service: Service):
    launch = await settled(service, await accepted(service))
    service.app.parts.bound.throttled(0, 100)
    assert (await service.request("DELETE", f"launches/{launch['id']}?wait=20"))[0] == 204


async def test_strangers_hold_nobody_up(service: Service):
    """However many they are, and however long the Hub takes to say that it does not know them."""
    await settled(service, await accepted(service))
    service.hub.hold_strangers.clear()
    known = service.hub.requests.count("GET /user")
    strangers = [asyncio.create_task(service.request("GET", "launches", f"wrong-{n}")) for n in range(60)]
    async with asyncio.timeout(20):
        while service.hub.requests.count("GET /user") < known + 50:
            await asyncio.sleep(0.01)
        assert (await settled(service, await accepted(service, "bob")))["state"] == "ready"
    service.hub.hold_strangers.set()
    assert {status for status, _ in await asyncio.gather(*strangers)} == {401}


async def test_no_cookie_of_the_hubs_is_kept(hub: FakeHub):
    """One that was set for a caller would speak for the next."""
    async with running_service(hub, Hub={"api_url": hub.api_url.replace("127.0.0.1", "localhost")}) as service:
        await settled(service, await accepted(service))
    assert not hub.cookies
