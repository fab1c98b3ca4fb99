"""What the store decides, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from traitlets.config import Config

from jhlauncher import queries
from jhlauncher.batches import Batches
from jhlauncher.database import Database
from jhlauncher.errors import BatchRefused, KeyReused, LauncherError, LimitReached, QueueFull, ServerConflict
from jhlauncher.models import LaunchSpec
from jhlauncher.records import BatchRecord, LaunchRecord, Limit
from jhlauncher.replicas import Replicas
from jhlauncher.store import Store

pytestmark = pytest.mark.asyncio


def record(username: str = "alice", **values: Any) -> LaunchRecord:
    values = {"caller": "service:platform", "share": "service:platform", "rule": "r", "request": "hash", **values}
    spec = LaunchSpec(image="image:1", **values.pop("spec", {}))
    return LaunchRecord(username=username, server_name=values.pop("server_name", ""), spec=spec, **values)


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Store]:
    database = Database(url=url, config=Config(Database={"retry_timeout": 2}))
    database.validate_settings()
    await database.start()
    try:
        yield Store(database, **settings)
    finally:
        await database.stop()


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with opened(database_url) as store:
        yield store


@pytest.fixture
def replicas(store: Store) -> Replicas:
    return Replicas(store.database)


async def added(store: Store, count: int, **values: Any) -> list[LaunchRecord]:
    prefix = values.pop("prefix", "user")
    results = await store.add_all([record(f"{prefix}{n}", **values) for n in range(count)])
    return [result[0] for result in results if not isinstance(result, LauncherError)]


async def claim(store: Store, owner: str, most: int) -> list[LaunchRecord]:
    def work(connection: sa.Connection) -> list[LaunchRecord]:
        starting = store.claim(connection, owner, most)
        mine = queries.owned(connection, owner)
        assert all(launch in mine for launch in starting), "what it returns is what is kept"
        return mine

    return await store.database.write(work, alone=True)


async def owned(store: Store, owner: str) -> list[LaunchRecord]:
    return await store.database.read(lambda connection: queries.owned(connection, owner))


async def taken_over(replicas: Replicas, replica: str) -> list[str]:
    def work(connection: sa.Connection) -> list[str]:
        left = queries.to_do(connection, replica=replica, most=9)[0]
        taken = replicas.take_over(connection, replica)
        assert left == bool(taken)
        return [launch.id for launch in taken]

    return await replicas._database.write(work, alone=True)


async def test_what_is_kept_is_read_again(store: Store):
    spec = {"cpu": {"request": 0.5, "limit": 2}, "memory": {"limit": "1G"}, "volumes": [{"name": "v", "mount": "/m"}]}
    limit = Limit("user:alice", "cpu", 4, True)
    given = record(spec=spec, keys=["user:alice"], limits=[limit], lifetime=60, template="t", env="sealed")
    kept, new = await store.add(given)
    assert new
    found = await store.get(given.id)
    assert found
    assert found.needs == {"servers": 1, "cpu": 2, "memory": 1024**3, "gpu": 0}
    assert (found.spec, found.limits, found.lifetime, found.env) == (given.spec, [limit], 60, "sealed")
    assert [event.name for event in await store.events_of(given.id)] == ["queued"]
    assert kept.state == "queued"


async def test_nothing_sealed_outlives_the_launch(store: Store):
    await store.add(given := record(env="sealed"))
    (claimed,) = await claim(store, "me", 1)
    await store.change(claimed.id, "ready", {}, owner="me", token="sealed")
    await store.change(claimed.id, "stopped", {})
    ended = await store.get(given.id)
    assert ended
    assert (ended.env, ended.token, ended.owner) == (None, None, None)


async def test_idempotency(store: Store):
    first, new = await store.add(record(idempotency_key="k"))
    again, new_again = await store.add(record(idempotency_key="k"))
    assert (new, new_again) == (True, False)
    assert again.id == first.id
    with pytest.raises(KeyReused):
        await store.add(record(idempotency_key="k", request="another"))
    other, new = await store.add(record("bob", idempotency_key="k", caller="user:bob"))
    assert new, "keys are their caller's own"
    assert other.id != first.id


async def test_same_request_at_once_is_one_launch(store: Store):
    results = await asyncio.gather(*(store.add(record(idempotency_key="k")) for _ in range(20)))
    assert len({kept.id for kept, _ in results}) == 1
    assert sum(new for _, new in results) == 1


async def test_one_launch_per_server(store: Store):
    first, _ = await store.add(record())
    with pytest.raises(ServerConflict) as conflict:
        await store.add(record())
    assert conflict.value.details == {"launch": first.id}
    await store.add(record(server_name="p1"))
    await store.ask_to_stop(first.id, "user:alice")
    await store.add(record())


async def test_all_or_none(store: Store):
    taken = record("user1")
    await store.add(taken)
    batch = [record("user0"), record("user1"), record("user2")]
    asked = [(launch.username, launch) for launch in batch]
    with pytest.raises(BatchRefused) as refused:
        await Batches(store).add(BatchRecord(caller="service:platform", request="hash"), asked, all_or_none=True)
    assert [item["index"] for item in refused.value.details["items"]] == [1]
    assert await store.counts() == {"queued": 1}
    await store.add_all(batch)
    assert await store.counts() == {"queued": 3}


async def test_first_come_first_served(store: Store):
    waiting = await added(store, 5)
    claimed = await claim(store, "me", 2)
    assert [c.id for c in claimed] == [w.id for w in waiting[:2]]
    assert [c.id for c in await claim(store, "me", 3)] == [w.id for w in waiting[:3]]
    assert all(c.owner == "me" and c.state == "starting" for c in claimed)


async def test_shares_take_turns_by_weight(store: Store):
    await added(store, 10, share="a", prefix="a")
    await added(store, 10, share="b", prefix="b", weight=2)
    (late,) = await added(store, 1, share="c", prefix="c")
    order = await store.queue_order()
    assert order.index(late.id) <= 3
    claimed = await claim(store, "me", 9)
    shares = [c.share for c in claimed]
    assert (shares.count("a"), shares.count("b"), shares.count("c")) == (3, 5, 1)


async def test_who_has_slots_already_comes_after_who_has_none(store: Store):
    await added(store, 6, share="a", prefix="a")
    await claim(store, "me", 4)
    (late,) = await added(store, 1, share="b", prefix="b")
    assert (await store.queue_order())[0] == late.id
    places = [await store.would_be(record("new", share=share)) for share in ("a", "b", "c")]
    assert [place for place, _, _ in places] == [4, 2, 2]


async def test_given_back_keeps_its_place(store: Store):
    waiting = await added(store, 3)
    await claim(store, "me", 2)
    await store.give_back("me", waiting[0].id)
    assert await store.queue_order() == [waiting[0].id, waiting[2].id]


async def test_limits_of_those_that_wait(store: Store):
    limits = {"keys": ["user:alice"], "limits": [Limit("user:alice", "servers", 2, True)]}
    mine = [(await store.add(record(server_name=f"s{n}", **limits)))[0] for n in range(4)]
    other, _ = await store.add(record("bob"))
    claimed = await claim(store, "me", 10)
    assert [c.id for c in claimed] == [mine[0].id, mine[1].id, other.id]
    await store.change(mine[0].id, "failed", {}, owner="me")
    assert mine[2].id in [c.id for c in await claim(store, "me", 10)]


async def test_nobody_overtakes_within_a_limit(store: Store):
    limits = {"keys": ["all"], "limits": [Limit("all", "cpu", 4, True)]}
    sizes = [3.0, 3.0, 1.0]
    mine = [(await store.add(record(f"u{n}", spec={"cpu": {"limit": s}}, **limits)))[0] for n, s in enumerate(sizes)]
    assert [c.id for c in await claim(store, "me", 10)] == [mine[0].id], "the small one waits behind the big one"


async def test_limit_that_refuses_counts_who_waits(store: Store):
    limits = {"keys": ["all"], "limits": [Limit("all", "servers", 3, False)]}
    results = await asyncio.gather(
        *(store.add(record(f"user{n}", **limits)) for n in range(20)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, LimitReached)]
    assert len(refused) == 17
    assert refused[0].details["used"] == 3
    assert len(await claim(store, "me", 20)) == 3


async def test_full_queue(database_url: str):
    async with opened(database_url, max_queued=2) as store:
        await added(store, 2)
        with pytest.raises(QueueFull) as full:
            await store.add(record("late"))
        assert full.value.retry_after


async def test_changes_are_the_owners(store: Store):
    (launch,) = await added(store, 1)
    await claim(store, "me", 1)
    assert await store.change(launch.id, "ready", {}, owner="another") is None
    assert await store.append("another", launch.id, (1.5, {})) == []
    (kept,) = await store.append("me", launch.id, (1.5, {"progress": 5}))
    assert kept.time == 1.5
    assert await store.change(launch.id, "ready", {}, owner="me")
    assert await store.change(launch.id, "stopped", {})
    assert await store.change(launch.id, "failed", {}) is None, "an end is for good"
    assert await store.change(launch.id, "stopped", {}), "said twice is no error"
    names = [event.name for event in await store.events_of(launch.id)]
    assert names == ["queued", "starting", "progress", "ready", "stopped"]
    assert [event.number for event in await store.events_of(launch.id, after=2)] == [3, 4, 5]


async def test_events_are_bounded(database_url: str):
    async with opened(database_url, max_events=10) as store:
        (launch,) = await added(store, 1)
        await claim(store, "me", 1)
        for n in range(0, 20, 4):
            await store.append("me", launch.id, *((1, {"progress": m}) for m in range(n, n + 4)))
        await store.change(launch.id, "failed", {}, owner="me")
        names = [event.name for event in await store.events_of(launch.id)]
        assert len(names) == 11
        assert names[-1] == "failed", "the end is told, however much there was before"


async def test_cancelled_while_waiting(store: Store):
    (launch,) = await added(store, 1)
    for _ in range(2):
        record = await store.ask_to_stop(launch.id, "user:alice")
        assert record
        assert record.state == "cancelled"
    assert await claim(store, "me", 1) == []


async def test_dead_replicas_work_is_taken_over(database_url: str):
    async with opened(database_url) as store:
        replicas = Replicas(store.database, lease_timeout=1)
        (launch,) = await added(store, 1)
        await replicas.join("dead")
        await claim(store, "dead", 1)
        assert await taken_over(replicas, "dead") == [], "it is worked on"
        await asyncio.sleep(1.1)  # the lease is a matter of time
        await replicas.join("me")
        assert await taken_over(replicas, "me") == [launch.id]
        assert [taken.id for taken in await owned(store, "me")] == [launch.id]
        assert not await replicas.alive("dead")
        assert await replicas.alive("me")
        assert await store.append("dead", launch.id, (1.5, {})) == []


async def test_who_leaves_gives_back(store: Store, replicas: Replicas):
    (launch,) = await added(store, 1)
    await replicas.join("leaving")
    await claim(store, "leaving", 1)
    await replicas.leave("leaving")
    await replicas.join("me")
    assert await taken_over(replicas, "me") == [launch.id]


async def test_ready_launch_is_taken_to_be_stopped(store: Store, replicas: Replicas):
    (launch,) = await added(store, 1)
    await replicas.join("me")
    await claim(store, "me", 1)
    await store.change(launch.id, "ready", {}, owner="me")
    await store.let_go("me", launch.id)
    assert await taken_over(replicas, "me") == []
    await store.ask_to_stop(launch.id, "user:alice")
    assert await taken_over(replicas, "me") == [launch.id]


async def test_two_replicas_never_take_the_same(database_url: str):
    async with opened(database_url) as one, opened(database_url) as two:
        await added(one, 40)
        await asyncio.gather(*(claim(store, name, n) for n in range(30) for store, name in ((one, "1"), (two, "2"))))
        first, second = await owned(one, "1"), await owned(two, "2")
        assert not {r.id for r in first} & {r.id for r in second}
        assert len(first) + len(second) == 29


async def test_due(store: Store):
    await store.add(record("soon", due=time.time() - 1))
    await store.add(record("later", due=time.time() + 100))
    await store.add(record("never"))
    assert [r.username for r in await store.due(time.time())] == ["soon"]
    assert (await store.database.read(queries.outlook)).due < time.time()


async def test_purge(database_url: str):
    async with opened(database_url, retention=60) as store:
        old, young, active = await added(store, 3)
        for launch in (old, young):
            await store.ask_to_stop(launch.id, "me")
        await store._set(old.id, sa.true(), ended=time.time() - 61)
        assert not await store.purge()
        assert await store.get(old.id) is None
        assert await store.events_of(old.id) == []
        assert await store.get(young.id)
        assert await store.get(active.id)


async def test_change_is_told_to_all(database_url: str):
    """Also to another process, where there may be one."""
    async with opened(database_url) as one, opened(database_url) as two:
        (launch,) = await added(one, 1)
        listener = one if one.database.on_sqlite else two
        told = asyncio.Event()
        connected = asyncio.Event()
        listener.database.on_change(lambda topic: told.set() if topic.startswith(launch.id) else None, connected.set)
        if not one.database.on_sqlite:
            async with asyncio.timeout(5):
                while not told.is_set():  # it listens from some moment on
                    await one._set(launch.id, sa.true(), owner="me")
                    await one.append("me", launch.id, (1, {}))
                    await asyncio.sleep(0.02)
        await one.ask_to_stop(launch.id, "me")
        async with asyncio.timeout(5):
            await told.wait()


async def test_full_limit_holds_up_only_those_who_need_room_in_it(store: Store):
    gpus = [Limit("all", "gpu", 1, True)]
    await added(store, 1, prefix="has", spec={"gpu": {"limit": 1}}, limits=gpus, keys=["all"])
    assert len(await claim(store, "me", 10)) == 1
    await added(store, 2, prefix="wants", spec={"gpu": {"limit": 1}}, limits=gpus, keys=["all"])
    await added(store, 1, prefix="without", limits=gpus, keys=["all"])
    await added(store, 1, prefix="unlimited", keys=["all"])
    assert sorted(launch.username for launch in await claim(store, "me", 10)) == ["has0", "unlimited0", "without0"]


async def test_many_held_by_their_limits_let_others_by(store: Store):
    for prefix in ("a", "b"):
        for n in range(50):
            key = f"user:{n}"
            await store.add(record(f"{prefix}{n}", limits=[Limit(key, "servers", 1, True)], keys=[key]))
    assert len(await claim(store, "me", 100)) == 50
    (last,) = await added(store, 1, prefix="last")
    assert last.id in [launch.id for launch in await claim(store, "me", 51)]
    assert len(await claim(store, "me", 200)) == 51


async def test_what_counts_for_a_limit_ends_with_the_launch(store: Store):
    limits = [Limit("all", "servers", 1, False)]
    first, _ = await store.add(record("a", limits=limits, keys=["all"]))
    with pytest.raises(LimitReached):
        await store.add(record("b", limits=limits, keys=["all"]))
    await store.ask_to_stop(first.id, "user:a")
    await store.add(record("b", limits=limits, keys=["all"]))


async def test_start_that_is_to_end_is_not_given_back(store: Store):
    (launch,) = await added(store, 1)
    await claim(store, "me", 1)
    await store.ask_to_stop(launch.id, "user:alice")
    await store.give_back("me", launch.id)
    (still,) = await owned(store, "me")
    assert (still.state, still.stop_by) == ("starting", "user:alice")


async def test_who_asked_may_go_and_the_others_are_told(store: Store):
    told: list[str] = []
    seen: list[str] = []
    store.database.on_change(told.append, lambda: None)
    store.observers.append(lambda launch: seen.append(launch.state))
    (launch,) = await added(store, 1)
    asking = asyncio.create_task(store.ask_to_stop(launch.id, "user:alice"))
    await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(5):
        while f"{launch.id} 2" not in told or seen != ["queued", "cancelled"]:
            await asyncio.sleep(0.01)
