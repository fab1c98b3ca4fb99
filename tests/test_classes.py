"""Many at once: who is in a class, starts that are put off, more time; on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from jhlauncher import sse
from jhlauncher.store import Store
from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub

pytestmark = pytest.mark.asyncio

COURSE = ["ada", "bob", "eve"]
LAUNCH = {"image": "image:1"}
RULES: list[dict[str, Any]] = [
    {"name": "an hour", "users": ["bob"], "images": ["*"], "lifetime": 3600},
    {"name": "as they like", "images": ["*"]},
]
SETTINGS: dict[str, Any] = {
    "Starter": {"progress_delay": 0.05},
    "Hub": {"retry_timeout": 0.2, "auth_cache_seconds": 600},
    "Feed": {"position_interval": 0.05},
    "Policy": {"rules": RULES},
    "Activity": {"activity_cache_seconds": 0.01},
}


@pytest_asyncio.fixture
async def service(hub: FakeHub, database_url: str) -> AsyncIterator[Service]:
    for name in COURSE:
        hub.users[name] = {"groups": ["course-1"]}
    hub.users["dan"] = {"groups": ["course-2"]}
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        yield service


async def asked(service: Service, token: str = PLATFORM_TOKEN, **body: Any) -> Any:
    status, batch = await service.request("POST", "batches", token, json={"launch": LAUNCH, **body})
    assert status == 202, batch
    return batch


async def refused(service: Service, token: str = PLATFORM_TOKEN, **body: Any) -> tuple[int, str]:
    status, error = await service.request("POST", "batches", token, json=body)
    return status, error["reason"]


async def shown(service: Service, batch: Any, token: str = PLATFORM_TOKEN) -> Any:
    status, found = await service.request("GET", f"batches/{batch['id']}", token)
    assert status == 200, found
    return found


async def in_states(service: Service, batch: Any, **counts: int) -> Any:
    """The batch, when its launches are in these states."""
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    async with asyncio.timeout(20), service.client.get(
        f"{service.url}batches/{batch['id']}/events", headers=headers
    ) as response, aclosing(sse.decode(response.content.iter_any())) as told:  # fmt: skip
        while True:
            found = await shown(service, batch)
            if {**found["counts"], **counts} == found["counts"]:
                return found
            await anext(told)


async def ready(service: Service, user: str = "ada", **body: Any) -> Any:
    status, launch = await service.request("POST", "launches?wait=20", json={"username": user, **LAUNCH, **body})
    assert (status, launch["state"]) == (200, "ready"), launch
    return launch


async def extend(service: Service, what: str, lifetime: float | None, token: str = PLATFORM_TOKEN) -> tuple[int, Any]:
    return await service.request("PATCH", what, token, json={"lifetime": lifetime})


def users(batch: Any) -> list[str]:
    return [item["username"] for item in batch["items"]]


async def test_a_group_and_further_people(service: Service):
    batch = await asked(service, users=["dan", "ada"], group="course-1")
    assert users(batch) == ["dan", "ada", "bob", "eve"], "each once: those that are named, and the members"
    assert batch["group"] == "course-1"
    await in_states(service, batch, ready=4)


async def test_what_makes_no_class(service: Service):
    one = {"username": "ada", **LAUNCH}
    for body in (
        {}, {"launch": LAUNCH}, {"users": ["ada"]}, {"users": [], "launch": LAUNCH},
        {"users": ["a/b"], "launch": LAUNCH},
        {"launches": [one], "users": ["ada"]}, {"launches": [one], "launch": LAUNCH}, {"launches": []},
        {"users": ["ada"], "launch": one}, {"users": ["ada"], "launch": {}}, {"launches": [one], "stagger": -1},
        {"launches": [one], "stagger": 601},
    ):  # fmt: skip
        assert await refused(service, **body) == (400, "invalid_request"), body
    assert await refused(service, group="nobody", launch=LAUNCH) == (400, "group_empty")
    assert not service.hub.servers


async def test_too_many_people(service: Service):
    for number in range(1001):
        service.hub.users[f"user{number}"] = {"groups": ["all"]}
    status, error = await service.request("POST", "batches", json={"group": "all", "launch": LAUNCH})
    assert (status, error["details"]["fields"][0]["field"]) == (400, "group")


async def test_scopes_of_another_group_reach_nobody(service: Service):
    teacher = service.hub.identify("t-2", "teacher", "user", "access:services", "servers!group=course-2")
    assert await refused(service, teacher, group="course-1", launch=LAUNCH) == (403, "missing_scope")
    batch = await asked(service, teacher, group="course-2", users=["ada"])
    assert [(item["username"], item["error"] and item["error"]["reason"]) for item in batch["items"]] == [
        ("ada", "missing_scope"),
        ("dan", None),
    ]
    course_1 = await asked(service, group="course-1")
    assert (await service.request("GET", f"batches/{course_1['id']}", teacher))[0] == 404
    assert (await extend(service, f"batches/{course_1['id']}", 60, teacher))[0] == 404


async def test_own_batches_page_by_page(service: Service):
    ids = [(await asked(service, users=[f"user{number}"]))["id"] for number in range(3)]
    status, page = await service.request("GET", "batches?limit=2")
    assert (status, [batch["id"] for batch in page["items"]]) == (200, ids[:0:-1])
    assert sum(page["items"][0]["counts"].values()) == 1
    page = (await service.request("GET", f"batches?limit=2&cursor={page['next']}"))[1]
    assert ([batch["id"] for batch in page["items"]], page["next"]) == (ids[:1], None)
    other = service.hub.identify("t-o", "other", "service", "access:services", "servers")
    assert (await service.request("GET", "batches", other))[1] == {"items": [], "next": None}


async def test_the_same_request_is_the_same_class_whoever_has_joined(service: Service):
    body, headers = {"group": "course-1", "launch": LAUNCH}, {"Idempotency-Key": "monday"}
    _, batch = await service.request("POST", "batches", json=body, headers=headers)
    for user in service.hub.users.values():
        user["groups"] = []
    status, again = await service.request("POST", "batches", json=body, headers=headers)
    assert (status, again["id"]) == (202, batch["id"])


# -- starts that are put off


async def test_starts_that_are_put_off(service: Service):
    batch = await asked(service, group="course-1", stagger=0.5)
    times = [item["launch"]["not_before"] for item in batch["items"]]
    assert times[0] is None
    assert times[1] < times[2]
    done = await in_states(service, batch, ready=3)
    for item in done["items"][1:]:
        assert item["launch"]["started"] >= item["launch"]["not_before"]


async def test_what_is_put_off_does_not_expire_before_it_waits(hub: FakeHub, database_url: str):
    hub.hold_starts.clear()
    busy = {"StartBound": {"concurrent_starts": 1}}
    async with running_service(hub, Database={"url": database_url}, **SETTINGS, **busy) as service:
        launch = {**LAUNCH, "queue_timeout": 1.2}
        batch = await asked(service, users=["ada", "bob"], launch=launch, stagger=2.4)
        found = await in_states(service, batch, expired=1)
        late = found["items"][1]["launch"]
        assert late["error"]["reason"] == "queue_timeout"
        assert late["ended"] > late["not_before"]
        assert re.search("no turn within [12] seconds", late["error"]["error"])
        hub.hold_starts.set()


async def test_put_off_through_a_restart(hub: FakeHub, database_url: str):
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        batch = await asked(service, users=COURSE, stagger=1)
        await in_states(service, batch, ready=1, queued=2)
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        done = await in_states(service, batch, ready=3)
        for item in done["items"][1:]:
            assert item["launch"]["started"] >= item["launch"]["not_before"]
    assert hub.count()["POST /users/eve/server"] == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_put_off_with_two_replicas(hub: FakeHub, database_url: str):
    """One accepts them and goes; the other has heard of it, and starts each once, when its time has come."""
    database = {"Database": {"url": database_url}}
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(running_service(hub, **database, **SETTINGS))
        async with running_service(hub, **database, **SETTINGS) as service:
            batch = await asked(service, users=COURSE, stagger=0.7)
        done = await in_states(other, batch, ready=3)
        for item in done["items"][1:]:
            assert item["launch"]["started"] >= item["launch"]["not_before"]
    assert [hub.count()[f"POST /users/{user}/server"] for user in COURSE] == [1, 1, 1]


async def test_what_is_put_off_can_be_ended_before(service: Service):
    batch = await asked(service, users=COURSE, stagger=600)
    found = await in_states(service, batch, ready=1, queued=2)
    _, last = await service.request("GET", f"launches/{found['items'][2]['launch']['id']}")
    assert (last["position"], last["estimate"]) == (None, None), "it does not wait for a turn yet"
    assert await service.app.parts.store.queue_order() == [], "nor do others wait behind it"
    await service.request("DELETE", f"batches/{batch['id']}")
    await in_states(service, batch, stopped=1, cancelled=2)


# -- more time


async def test_more_time(service: Service):
    launch = await ready(service, lifetime=60)
    status, longer = await extend(service, f"launches/{launch['id']}", 7200)
    assert status == 200, longer
    assert 7200 <= longer["lifetime"] < 7260, "from now on"
    assert longer["expires"] > launch["expires"]
    status, endless = await extend(service, f"launches/{launch['id']}", None)
    assert (status, endless["lifetime"], endless["expires"]) == (200, None, None)
    _, told = await service.request("GET", f"launches/{launch['id']}/events", headers={"Accept": "application/json"})
    extended = [item["data"] for item in told["items"] if item["event"] == "extended"]
    assert [data["expires"] for data in extended] == [longer["expires"], None]
    assert extended[0]["by"] == "service:platform"


async def test_the_policy_decides(service: Service):
    bob = service.hub.identify("t-bob", "bob", "user", "access:services", "servers!user=bob")
    launch = await ready(service, "bob", lifetime=60)
    for lifetime in (3601, None):
        status, error = await extend(service, f"launches/{launch['id']}", lifetime, bob)
        assert (status, error["reason"]) == (403, "policy_denied")
        assert error["details"]["rule"] == "an hour"
    assert (await extend(service, f"launches/{launch['id']}", 3600, bob))[0] == 200
    status, error = await extend(service, f"launches/{launch['id']}", 0)
    assert (status, error["reason"]) == (400, "invalid_request")
    reader = service.hub.identify("t-r", "reader", "service", "access:services", "read:servers")
    status, error = await extend(service, f"launches/{launch['id']}", 60, reader)
    assert (status, error["reason"]) == (403, "missing_scope")
    status, error = await extend(service, "launches/0123456789abcdef", 60)
    assert (status, error["reason"]) == (404, "launch_not_found")


async def test_what_has_ended_gets_no_more_time(service: Service):
    launch = await ready(service)
    await service.request("DELETE", f"launches/{launch['id']}?wait=20")
    status, error = await extend(service, f"launches/{launch['id']}", 60)
    assert (status, error["reason"]) == (409, "launch_ended")


async def test_more_time_while_it_starts(service: Service):
    """The end is reckoned when it is ready, from what holds then."""
    service.hub.auto_finish = False
    _, launch = await service.request("POST", "launches", json={"username": "ada", **LAUNCH})
    await until(lambda: ("ada", "") in service.hub.servers)
    status, waiting = await extend(service, f"launches/{launch['id']}", 60)
    assert (status, waiting["lifetime"], waiting["expires"]) == (200, 60, None)
    service.hub.servers["ada", ""].finish()
    _, launch = await service.request("GET", f"launches/{launch['id']}?wait=20")
    assert launch["expires"] is not None
    kept = await service.app.parts.store.get(launch["id"])
    assert kept
    assert kept.due is not None
    assert kept.ends is not None
    assert kept.due < kept.ends, "it is warned before"


async def test_the_warning_is_told_anew(hub: FakeHub, database_url: str):
    """It comes in the last tenth: lifetimes are long enough for a busy machine to tell it, and to ask for more."""
    async with running_service(hub, Database={"url": database_url}, **SETTINGS) as service:
        launch = await ready(service, lifetime=8)
        headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
        names = []
        async with asyncio.timeout(60), service.client.get(
            f"{service.url}launches/{launch['id']}/events", headers=headers
        ) as response:  # fmt: skip
            async for event in sse.decode(response.content.iter_any()):
                names.append(event.name)
                if names.count("warning") == 1 and "extended" not in names:
                    assert (await extend(service, f"launches/{launch['id']}", 8))[0] == 200
        ready_at = names.index("ready")
        assert names[ready_at + 1 :] == ["warning", "extended", "warning", "expired"]


async def test_more_time_in_the_moment_of_the_end(service: Service, database_url: str):
    """Whoever is first at the store: an end that was seen as due does not come to one that has been extended."""
    store: Store = service.app.parts.store
    launch = await ready(service, lifetime=600)
    assert (await extend(service, f"launches/{launch['id']}", 300))[0] == 200
    await store.settle_lifetime(launch["id"])
    kept = await store.get(launch["id"])
    assert kept
    assert (kept.state, kept.stop_by, kept.warned) == ("ready", None, None)
    # the other way round: who comes after the end is told so
    await store.ask_to_stop(launch["id"], "lifetime")
    status, error = await extend(service, f"launches/{launch['id']}", 300)
    assert (status, error["reason"]) in ((409, "server_stopping"), (409, "launch_ended"))


async def test_more_time_for_a_class(service: Service):
    """Each is told; one that is refused does not stop the others."""
    batch = await asked(service, group="course-1", launch={**LAUNCH, "lifetime": 600})
    await in_states(service, batch, ready=3)
    await service.request("DELETE", "containers?username=eve")
    status, answer = await extend(service, f"batches/{batch['id']}", 7200)
    assert status == 200, answer
    results = {item["launch"]["username"]: item for item in answer["items"]}
    assert results.keys() == {"ada", "bob"}, "one has ended"
    assert results["bob"]["error"]["reason"] == "policy_denied"
    assert results["ada"]["error"] is None
    found = {item["username"]: item["launch"] for item in (await shown(service, batch))["items"]}
    assert found["ada"]["lifetime"] >= 7200
    assert found["bob"]["lifetime"] == 600
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    await service.request("DELETE", f"batches/{batch['id']}")
    async with service.client.get(f"{service.url}batches/{batch['id']}/events", headers=headers) as response:
        told = [event async for event in sse.decode(response.content.iter_any())]
    (extended,) = [json.loads(event.data) for event in told if event.name == "extended"]
    assert (extended["username"], extended["expires"]) == ("ada", found["ada"]["expires"])


# -- what each server is doing


async def test_what_each_is_doing(service: Service):
    hub = service.hub
    hub.auto_finish = False
    batch = await asked(service, users=COURSE)
    await until(lambda: all((user, "") in hub.servers for user in COURSE))
    hub.servers["ada", ""].finish()
    hub.servers["bob", ""].fail("Spawn failed: no such image")
    hub.servers["eve", ""].emit(35, "Pulling the image: 50%", phase="pulling")
    found = await in_states(service, batch, ready=1, failed=1, starting=1)
    async with asyncio.timeout(10):
        while (found["items"][2]["progress"] or {}).get("progress") != 35:
            found = await shown(service, batch)
    ada, bob, eve = found["items"]
    assert ada["last_activity"] == "2026-01-01T00:00:00Z"
    assert (bob["launch"]["error"]["reason"], bob["last_activity"], bob["progress"]) == ("start_failed", None, None)
    assert eve["progress"] == {"progress": 35, "message": "Pulling the image: 50%", "phase": "pulling"}
    assert eve["last_activity"] is None


async def test_activity_is_asked_for_once(hub: FakeHub, database_url: str):
    settings = SETTINGS | {"Activity": {"activity_cache_seconds": 600}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        batch = await asked(service, users=COURSE)
        await in_states(service, batch, ready=3)
        before = hub.count()["GET /users"]
        await asyncio.gather(*(shown(service, batch) for _ in range(5)))
        assert hub.count()["GET /users"] - before <= 1


async def test_who_may_not_read_a_server_is_not_told_of_its_use(service: Service):
    starter = service.hub.identify("t-s", "starter", "service", "access:services", "start:servers")
    batch = await asked(service, starter, users=["ada"])
    await in_states(service, batch, ready=1)
    (item,) = (await shown(service, batch, starter))["items"]
    assert (item["launch"]["state"], item["last_activity"]) == ("ready", None)


async def test_a_hub_that_is_away_hides_no_class(service: Service):
    batch = await asked(service, group="course-1")
    await in_states(service, batch, ready=3)
    await service.hub.stop()
    found = await shown(service, batch)
    assert found["counts"]["ready"] == 3


# -- what there is room for


async def test_options_tell_every_limit_and_what_is_in_use(hub: FakeHub, database_url: str):
    together = {"servers": 5, "cpu": 4, "memory": "8G", "gpu": 2}
    limits = {"limits": {"user": together, "group": together, "all": together}, "lifetime": 3600}
    rules = [{"name": "course-1", "groups": ["*"], "images": ["*"], "cpu": 2, "memory": "4G", "gpu": 1, **limits}]
    hub.users |= {name: {"groups": ["course-1"]} for name in COURSE}
    takes = {"cpu": {"limit": 2}, "memory": {"limit": "2G"}, "gpu": {"limit": 1}}
    async with running_service(
        hub, Database={"url": database_url}, **SETTINGS | {"Policy": {"rules": rules}}
    ) as service:
        await ready(service, "ada", **takes)
        status, options = await service.request("GET", "options?group=course-1")
        assert (status, options["username"], options["members"]) == (200, "ada", COURSE)
        fields = options["request"]["properties"]
        assert [fields[name]["x-maximum"] for name in ("cpu", "memory", "gpu")] == [2, 4 * 1024**3, 1]
        assert fields["lifetime"]["maximum"] == 3600
        told = {(limit["key"], limit["resource"]): (limit["used"], limit["most"]) for limit in options["limits"]}
        mine = {"servers": (1, 5), "cpu": (2, 4), "memory": (2 * 1024**3, 8 * 1024**3), "gpu": (1, 2)}
        keys = ("user:ada", "group:course-1", "all")
        assert told == {(key, resource): amounts for key in keys for resource, amounts in mine.items()}
        status, error = await service.request("GET", "options?group=nobody")
        assert (status, error["reason"]) == (400, "group_empty")


async def test_what_waits_is_in_use_where_a_full_limit_refuses(hub: FakeHub, database_url: str):
    hub.hold_starts.clear()
    rules = [{"name": "r", "images": ["*"], "limits": {"user": {"servers": 2}}, "when_full": "refuse"}]
    settings = SETTINGS | {"Policy": {"rules": rules}, "StartBound": {"concurrent_starts": 1}}
    async with running_service(hub, Database={"url": database_url}, **settings) as service:
        for name in ("", "second"):
            body = {"username": "ada", "server_name": name, **LAUNCH}
            assert (await service.request("POST", "launches", json=body))[0] == 202
        (limit,) = (await service.request("GET", "options?username=ada"))[1]["limits"]
        assert (limit["used"], limit["when_full"]) == (2, "refuse")
        hub.hold_starts.set()
