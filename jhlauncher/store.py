"""The launches that are kept, and what is done with them; each step is one transaction.

The store decides what must be decided in one place for all replicas: whether there is room for a launch, which one is
next, and who works on it. What is done for a launch is `jhlauncher.lifecycle`'s.

What a replica writes about a launch that others have taken over meanwhile (`jhlauncher.replicas`) is ignored: every
change says whose it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import sqlalchemy as sa
from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from . import queries
from .database import Database
from .errors import KeyReused, LauncherError, LimitReached, NotFound, QueueFull, ServerConflict
from .records import ACTIVE, EXTENDED, FINAL, LaunchEvent, LaunchRecord, Limit, State, title_of
from .tables import batches, events, keys, launches

QUEUE = "queue"
"""The topic of changes about which some replica has something to do, now or when it is due."""
ROOM = "room"
"""The topic of those that may let a launch start that waits."""
MOVED = "moved"
"""The topic of those that let one: the others have moved up."""

STOP = "stop "
"""The topic of a launch that somebody wants to end: this and its id."""

KEY_REUSED = "This Idempotency-Key was sent with another request before. Take a new one."

STARTING = {"message": "It is its turn"}
LIFETIME = "lifetime"
"""Who ends a launch whose time is over."""
_SLICE = 500
"""Launches that are forgotten in one transaction, which others wait for."""
Added = list[tuple[LaunchRecord, bool] | LauncherError]
"""For each launch: as it is kept, and whether it is new; or why it is not."""

# the topic of an event is the launch's id and the event's number
BATCH = "batch "
"""The topic of a batch of which a launch came to another state, or has another end: this and its id."""


_ONE_MORE_EVENT = (
    launches.update()
    .where(launches.c.id == sa.bindparam("of"))
    .values(events=launches.c.events + 1)
    .returning(launches.c.events)
)
_FORGET_KEYS = keys.delete().where(keys.c.launch == sa.bindparam("of"))
_EVENTS = (
    sa.select(events.c.number, events.c.time, events.c.name, events.c.data)
    .where(events.c.launch == sa.bindparam("of"), events.c.number > sa.bindparam("after"))
    .order_by(events.c.number)
)


class Store(LoggingConfigurable):
    """Launches in a database."""

    max_queued = Integer(
        20_000, min=1, help="Launches that may wait at a time; more are refused with 503 and Retry-After."
    ).tag(config=True)
    max_queued_per_user = Integer(
        1000, min=1, help="Of those, launches that one user may have asked for; services are not bound by it."
    ).tag(config=True)
    max_events = Integer(
        200, min=10, help="Events that are kept of a launch; further progress is neither kept nor shown."
    ).tag(config=True)
    lifetime_warning = Float(
        300, min=0, help="Seconds before a server's time is over that its events say so; at most a tenth of its time."
    ).tag(config=True)
    retention = Float(
        7 * 86400, min=60, help="Seconds for which a launch is kept after its end, with its Idempotency-Key."
    ).tag(config=True)

    def __init__(self, database: Database, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database = database
        self.observers: list[Callable[[LaunchRecord], None]] = []
        """Called with each launch that this process has brought into a new state."""
        self.event_observers: list[Callable[[str, LaunchEvent], None]] = []
        """Called with a launch's id and its event, of those that this process has kept."""

    def _observed(self, record: LaunchRecord) -> None:
        for observer in self.observers:
            observer(record)

    def _appended(self, launch: str, event: LaunchEvent) -> None:
        for observer in self.event_observers:
            observer(launch, event)

    # -- accepting

    async def add(self, record: LaunchRecord) -> tuple[LaunchRecord, bool]:
        """Keep a new launch; the launch, and whether it is new: the same request may have come before.

        Raises:
            KeyReused: another request had its idempotency key.
            ServerConflict: another launch has this server; ``details["launch"]`` says which.
            LimitReached: a limit leaves no room for it, and it may not wait for some.
            QueueFull: too many are waiting.

        """
        (result,) = await self.add_all([record])
        if isinstance(result, LauncherError):
            raise result
        return result

    async def add_all(self, records: Sequence[LaunchRecord]) -> Added:
        """`add` for many at once: for each what `add` returns or raises."""
        return await self.database.write(lambda connection: self.add_within(connection, records), alone=True)

    def add_within(self, connection: sa.Connection, records: Sequence[LaunchRecord]) -> Added:
        """`add_all` as a part of a transaction."""
        results: Added = []
        waiting = queries.waiting(connection)
        for record in records:
            try:
                kept, new = self._add_one(connection, record, waiting)
                results.append((kept, new))
                waiting[record.caller] += new
            except LauncherError as error:
                results.append(error)
        self.database.notify(connection, QUEUE)
        return results

    async def refusals(self, records: Sequence[LaunchRecord]) -> list[LauncherError | None]:
        """Why each could not be added now, alone; nothing is kept, and nobody waits for it."""

        def work(connection: sa.Connection) -> list[LauncherError | None]:
            waiting = queries.waiting(connection)
            return [self._refusal(connection, record, waiting) for record in records]

        return await self.database.read(work)

    def _refusal(self, connection: sa.Connection, record: LaunchRecord, waiting: Counter[str]) -> LauncherError | None:
        try:
            self._check_room(connection, record, waiting)
        except LauncherError as error:
            return error
        return None

    def _add_one(
        self, connection: sa.Connection, record: LaunchRecord, waiting: Counter[str]
    ) -> tuple[LaunchRecord, bool]:
        known = self._same_request(connection, record)
        if known:
            return known, known.id == record.id  # of this very transaction, done before
        self._check_room(connection, record, waiting)
        kept = replace(record, events=1)
        connection.execute(launches.insert(), queries.columns_of(kept))
        if record.keys:
            connection.execute(keys.insert(), [{"launch": record.id, "key": key} for key in record.keys])
        event = {"number": 1, "time": time.time(), "name": "queued", "data": _accepted(kept)}
        connection.execute(events.insert(), {"launch": record.id, **event})
        self.database.after(connection, partial(self._observed, kept))
        return kept, True

    def _check_room(self, connection: sa.Connection, record: LaunchRecord, waiting: Counter[str]) -> None:
        self._check_server_is_free(connection, record)
        refusing = [limit for limit in record.limits if not limit.wait]
        used = queries.usage(connection, {limit.key for limit in refusing}, ACTIVE)
        for limit in refusing:
            if not queries.fits(limit, record.needs, used):
                raise no_room(limit, used)
        if waiting.total() >= self.max_queued:
            raise QueueFull(f"{waiting.total()} launches are waiting already. Try again later.", retry_after=60)
        mine = waiting[record.caller]
        if record.caller.startswith("user:") and mine >= self.max_queued_per_user:
            raise QueueFull(f"{mine} launches of yours are waiting already. Try again later.", retry_after=60)

    def _same_request(self, connection: sa.Connection, record: LaunchRecord) -> LaunchRecord | None:
        if record.idempotency_key is None:
            return queries.by_id(connection, record.id)
        known = queries.by_key(connection, record.caller, record.idempotency_key)
        if known and known.request != record.request:
            raise KeyReused(KEY_REUSED)
        return known

    def _check_server_is_free(self, connection: sa.Connection, record: LaunchRecord) -> None:
        other = queries.of_server(connection, record.username, record.server_name)
        if other:
            what = "is running already" if other.state == "ready" else "is being started already"
            raise ServerConflict(
                f"{title_of(record.username, record.server_name)} {what}. Use it as it is, or stop it first.",
                reason="server_running" if other.state == "ready" else "server_starting",
                details={"launch": other.id},
            )

    # -- who is next

    def claim(self, connection: sa.Connection, owner: str, most: int) -> list[LaunchRecord]:
        """Within a transaction, let launches start, in fair order, as far as the limits have room.

        Args:
            connection: of a transaction that is alone.
            owner: the replica that is to start them.
            most: how many may be starting then, in all replicas.

        Returns:
            Those that start now.

        """
        slots = most - queries.starting(connection)
        chosen = queries.next_in_line(connection, slots) if slots > 0 else []
        begin: dict[str, Any] = {"owner": owner, "started": time.time()}
        return [self._change(connection, record, "starting", STARTING, **begin) for record in chosen]

    async def queue_order(self) -> list[str]:
        """The ids of all that wait, in the order in which they will start, limits left aside."""
        return await self.database.read(queries.in_order)

    async def place_of(self, launch: str) -> int:
        """The place of one that waits; 1 if it does not wait any more."""
        return await self.database.read(lambda connection: queries.place(connection, launch)) or 1

    async def held_by(self, launch: str) -> tuple[Limit, float] | None:
        """The limit that has no room for one that waits, and what is used of it."""

        def work(connection: sa.Connection) -> tuple[Limit, float] | None:
            record = queries.by_id(connection, launch)
            return queries.full_limit(connection, record) if record else None

        return await self.database.read(work)

    async def would_be(self, record: LaunchRecord) -> tuple[int, bool, LauncherError | None]:
        """Of a new launch: its place in the queue, whether a limit would hold it there, and what refuses it."""

        def work(connection: sa.Connection) -> tuple[int, bool, LauncherError | None]:
            place = queries.place_of_another(connection, record.share, record.weight)
            held = queries.full_limit(connection, record) is not None
            return place, held, self._refusal(connection, record, queries.waiting(connection))

        return await self.database.read(work)

    # -- what happens to a launch

    async def append(self, owner: str, launch: str, *steps: tuple[float, dict[str, Any]]) -> list[LaunchEvent]:
        """Keep progress, with when it was made, of a launch that ``owner`` works on.

        None if it isn't theirs, and as much as it may still have.
        """

        def work(connection: sa.Connection) -> list[LaunchEvent]:
            record = queries.by_id(connection, launch)
            if record is None or record.owner != owner:
                return []
            room = max(0, self.max_events - record.events)
            return [self._append(connection, launch, "progress", data, at=at) for at, data in steps[:room]]

        return await self.database.write(work)

    async def change(
        self,
        launch: str,
        to: State,
        data: dict[str, Any],
        *,
        unless: Iterable[State] = FINAL,
        owner: str | None = None,
        release: bool = False,
        **values: Any,
    ) -> LaunchRecord | None:
        """Bring a launch into another state, with an event of that name; the launch, None if it may not be.

        Args:
            launch: its id.
            to: the new state.
            data: of the event.
            unless: states that stay as they are; ``to`` always does.
            owner: who must hold it; None: whoever does.
            release: nobody works on it then.
            values: of further columns.

        """
        free: dict[str, Any] = {"owner": None} if release else {}

        def work(connection: sa.Connection) -> LaunchRecord | None:
            record = queries.by_id(connection, launch)
            if record is None or (record.state in unless and record.state != to) or owner not in (None, record.owner):
                return None
            if record.state == to:
                return record
            return self._change(connection, record, to, data, **values, **free)

        return await self.database.write(work, alone=True)

    def _change(
        self, connection: sa.Connection, record: LaunchRecord, to: State, data: dict[str, Any], **values: Any
    ) -> LaunchRecord:
        values["state"] = to
        if to == "starting":
            values["due"] = None
        if to == "ready" and record.lifetime:
            values["due"] = self._warning_at(values.setdefault("ready", time.time()), record.lifetime)
        if to in FINAL:
            values |= {"ended": time.time(), "owner": None, "due": None, "env": None, "token": None}
            connection.execute(_FORGET_KEYS, {"of": record.id})
        event = self._append(connection, record.id, to, data, **values)
        batch = [BATCH + record.batch] if record.batch else []
        changed = replace(record, events=event.number, **values)
        self.database.notify(connection, _topic(changed), *batch)
        self.database.after(connection, partial(self._observed, changed))
        return changed

    def _append(
        self, connection: sa.Connection, launch: str, name: str, data: dict[str, Any], at: float = 0, **values: Any
    ) -> LaunchEvent:
        """Keep an event, of now if it is not said of when, and new values of the launch's columns."""
        number = connection.execute(_ONE_MORE_EVENT, {"of": launch, **values}).scalar_one()
        event = LaunchEvent(number, at or time.time(), name, data)
        connection.execute(events.insert(), {"launch": launch, **event._asdict()})
        self.database.after(connection, partial(self._appended, launch, event))
        self.database.notify(connection, f"{launch} {number}")
        return event

    async def give_back(self, owner: str, launch: str) -> None:
        """Put a launch that could not be started yet into the queue again, where it was."""

        def work(connection: sa.Connection) -> None:
            record = queries.by_id(connection, launch)
            if record and record.owner == owner and record.state == "starting" and not record.stop_by:
                data = {"message": "JupyterHub is busy; waiting for its turn"}
                self._change(connection, record, "queued", data, owner=None, started=None, due=record.wait_until)

        await self.database.write(work, alone=True)

    async def let_go(self, owner: str, launch: str) -> None:
        """Leave a launch to whoever takes it."""
        await self._set(launch, launches.c.owner == owner, owner=None)

    async def settle(self, launch: str) -> None:
        """Nothing is to be done about a launch that was due."""
        await self._set(launch, launches.c.due <= time.time(), due=None)

    async def let_wait(self, launch: str) -> None:
        """A start that was put off begins to wait for its turn."""
        put_off = (launches.c.state == "queued") & (launches.c.due <= time.time())
        await self._set(launch, put_off, due=launches.c.wait_until)

    async def _set(self, launch: str, where: sa.ColumnElement[bool], **values: Any) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(launches.update().where(launches.c.id == launch, where).values(**values))
            self.database.notify(connection, QUEUE)

        await self.database.write(work)

    async def ask_to_stop(self, launch: str, by: str) -> LaunchRecord | None:
        """Note that somebody wants its end; one that waits has it at once. The launch as it is then."""

        def work(connection: sa.Connection) -> LaunchRecord | None:
            record = queries.by_id(connection, launch)
            return self._ask_to_stop(connection, record, by) if record and not record.final else record

        return await self.database.write(work, alone=True)

    def _ask_to_stop(self, connection: sa.Connection, record: LaunchRecord, by: str) -> LaunchRecord:
        if record.state == "queued":
            data = {"message": "It was cancelled before its turn", "by": by}
            return self._change(connection, record, "cancelled", data, stop_by=by)
        self.database.notify(connection, STOP + record.id)
        by_whom = record.stop_by or by
        connection.execute(launches.update().where(launches.c.id == record.id).values(stop_by=by_whom, due=None))
        return replace(record, stop_by=by_whom, due=None)

    # -- the end of a server's time

    async def extend(self, ids: Iterable[str], seconds: float | None, by: str) -> list[LaunchRecord | LauncherError]:
        """Give launches so many seconds, from now on or from ready; for each the launch as it is then, or why not.

        Args:
            ids: which.
            seconds: None: until somebody stops them.
            by: who wants it.

        """

        def one(connection: sa.Connection, launch: str) -> LaunchRecord | LauncherError:
            try:
                return self._extend(connection, launch, seconds, by)
            except LauncherError as error:
                return error

        every = list(ids)
        results = await self.database.write(
            lambda connection: [one(connection, launch) for launch in every], alone=True
        )
        for result in results:
            if isinstance(result, LaunchRecord):
                self.log.info("Launch %s: %s s from now on, for %s", result.id, seconds or "any number of", by)
        return results

    def _extend(self, connection: sa.Connection, launch: str, seconds: float | None, by: str) -> LaunchRecord:
        record = queries.by_id(connection, launch)
        _check_goes_on(record)
        assert record  # noqa: S101  (for mypy: that was checked)
        now = time.time()
        # a server's lifetime counts from when it was ready
        lifetime = now - record.ready + seconds if record.ready and seconds else seconds
        values: dict[str, Any] = {"lifetime": lifetime, "warned": None}
        if record.ready:
            values["due"] = self._warning_at(now, seconds) if seconds else None
        changed = replace(record, **values)
        data = {"message": _extended(changed, seconds), "expires": changed.ends, "lifetime": lifetime, "by": by}
        event = self._append(connection, launch, EXTENDED, data, **values)
        self.database.notify(connection, QUEUE, *([BATCH + record.batch] if record.batch else []))
        return replace(changed, events=event.number)

    def _warning_at(self, begin: float, seconds: float) -> float:
        """When to warn of the end of so many seconds."""
        return begin + seconds - min(self.lifetime_warning, seconds / 10)

    async def settle_lifetime(self, launch: str) -> None:
        """Warn of the end of a server's time, or have it come, if that is due now: it may have been extended."""

        def work(connection: sa.Connection) -> None:
            record, now = queries.by_id(connection, launch), time.time()
            if record is None or record.state != "ready" or record.ends is None:
                return
            if record.due is None or record.due > now:
                return
            if record.ends <= now:
                self._ask_to_stop(connection, record, LIFETIME)
                return
            data = {"message": f"The server is stopped in {record.ends - now:.0f} seconds", "ends": record.ends}
            self._append(connection, launch, "warning", data, warned=now, due=record.ends)
            self.database.notify(connection, QUEUE)

        await self.database.write(work, alone=True)

    async def warn(self, launch: str, data: dict[str, Any]) -> None:
        """Tell of trouble with a server that goes on."""

        def work(connection: sa.Connection) -> None:
            record = queries.by_id(connection, launch)
            if record and record.state == "ready":
                self._append(connection, launch, "warning", data)

        await self.database.write(work, alone=True)

    # -- reading

    async def get(self, launch: str) -> LaunchRecord | None:
        """A launch."""
        return await self.database.read(lambda connection: queries.by_id(connection, launch))

    async def active(self, username: str, server_name: str) -> LaunchRecord | None:
        """The launch that a server has, if any."""
        return await self.database.read(lambda connection: queries.of_server(connection, username, server_name))

    async def ready_launches(self) -> list[LaunchRecord]:
        """All whose servers run."""
        return await self.database.read(lambda connection: queries.every(connection, launches.c.state == "ready"))

    async def find(
        self, *conditions: sa.ColumnElement[bool], before: int | None = None, most: int = 100
    ) -> list[LaunchRecord]:
        """Launches, the newest first, from below the one with the number ``before`` on."""
        where = [*conditions, *([launches.c.seq < before] if before is not None else [])]

        def work(connection: sa.Connection) -> list[LaunchRecord]:
            query = sa.select(launches).where(*where).order_by(launches.c.seq.desc()).limit(most)
            return [queries.record_of(row) for row in connection.execute(query)]

        return await self.database.read(work)

    async def events_of(self, launch: str, after: int = 0) -> list[LaunchEvent]:
        """What happened to it, after the event with that number."""

        def work(connection: sa.Connection) -> list[LaunchEvent]:
            return [LaunchEvent(*row) for row in connection.execute(_EVENTS, {"of": launch, "after": after})]

        return await self.database.read(work)

    async def latest_events(self, most: int) -> list[int]:
        """The numbers of the latest events of all launches, in order."""

        def work(connection: sa.Connection) -> list[int]:
            return sorted(
                connection.execute(sa.select(events.c.seq).order_by(events.c.seq.desc()).limit(most)).scalars()
            )

        return await self.database.read(work)

    async def events_since(
        self, after: int, until: int | None = None, *, besides: Sequence[int] = (), most: int | None = None
    ) -> list[tuple[int, LaunchRecord, LaunchEvent]]:
        """What happened to all launches: the event's number among all, its launch as it is now, and the event.

        Args:
            after: the number after which it begins.
            until: the last one; None: the latest.
            besides: numbers that are wanted, too, if they are there.
            most: how many at most.

        """
        new = (events.c.seq > after) | events.c.seq.in_(list(besides))
        where = [new] if until is None else [new, events.c.seq <= until]
        columns = (events.c.seq, events.c.launch, events.c.number, events.c.time, events.c.name, events.c.data)
        query = sa.select(*columns).where(*where).order_by(events.c.seq).limit(most)

        def work(connection: sa.Connection) -> list[tuple[int, LaunchRecord, LaunchEvent]]:
            rows = connection.execute(query).all()
            found = {record.id: record for record in _in_slices(connection, {launch for _, launch, *_ in rows})}
            return [(seq, found[launch], LaunchEvent(*rest)) for seq, launch, *rest in rows if launch in found]

        return await self.database.read(work)

    async def with_ids(self, ids: Iterable[str]) -> list[LaunchRecord]:
        """These launches, as far as they are kept."""
        return await self.database.read(lambda connection: _in_slices(connection, set(ids)))

    async def counts(self) -> dict[str, int]:
        """How many launches are kept in each state."""

        def work(connection: sa.Connection) -> dict[str, int]:
            rows = connection.execute(sa.select(launches.c.state, sa.func.count()).group_by(launches.c.state))
            return {row[0]: row[1] for row in rows}

        return await self.database.read(work)

    async def starting(self) -> int:
        """How many launches are starting."""
        return await self.database.read(queries.starting)

    async def used(self, limits: Sequence[Limit]) -> list[float]:
        """What is used of each: by what starts and runs; by what waits, too, where no launch may wait for room."""

        def work(connection: sa.Connection) -> list[float]:
            states = {True: queries.RUNNING, False: ACTIVE}
            used = {
                wait: queries.usage(connection, {limit.key for limit in limits if limit.wait == wait}, counted)
                for wait, counted in states.items()
            }
            return [queries.in_use(limit, used[limit.wait]) for limit in limits]

        return await self.database.read(work)

    # -- time

    async def due(self, now: float) -> list[LaunchRecord]:
        """Some of those whose time has come, the oldest first."""
        return await self.database.read(lambda connection: queries.every(connection, launches.c.due <= now, most=200))

    async def purge(self) -> bool:
        """Forget some of what ended longer ago than `retention`; whether there may be more."""
        oldest = time.time() - self.retention

        def work(connection: sa.Connection) -> bool:
            old = sa.select(launches.c.seq).where(launches.c.ended < oldest).limit(_SLICE)
            ended = connection.execute(launches.delete().where(launches.c.seq.in_(old))).rowcount
            if ended == _SLICE:
                return True
            filled = sa.select(launches.c.batch).where(launches.c.batch == batches.c.id).exists()
            connection.execute(batches.delete().where(batches.c.created < oldest, ~filled))
            return False

        return await self.database.write(work)


def _in_slices(connection: sa.Connection, ids: set[str]) -> list[LaunchRecord]:
    """Any number of launches."""
    every = sorted(ids)
    slices = (every[start : start + _SLICE] for start in range(0, len(every), _SLICE))
    return [record for some in slices for record in queries.with_ids(connection, some)]


def _accepted(record: LaunchRecord) -> dict[str, Any]:
    """What is told of a new launch."""
    if record.not_before is None:
        return {"message": "Waiting for its turn"}
    seconds = max(0, record.not_before - time.time())
    return {"message": f"Put off, to start in {seconds:.0f} seconds", "not_before": record.not_before}


def _check_goes_on(record: LaunchRecord | None) -> None:
    """See that a launch may get another end.

    Raises:
        NotFound: it is not known any more.
        ServerConflict: it has ended, or is being ended.

    """
    if record is None:
        raise NotFound("There is no such launch.", reason="launch_not_found")
    title = title_of(record.username, record.server_name)
    if record.final:
        raise ServerConflict(f"{title} can't get more time: this launch is {record.state}.", reason="launch_ended")
    if record.stop_by:
        raise ServerConflict(f"{title} can't get more time: it is being stopped.", reason="server_stopping")


def _extended(record: LaunchRecord, seconds: float | None) -> str:
    """What is told of a launch that has another end."""
    if seconds is None:
        return "The server runs until somebody stops it"
    return f"The server is stopped {seconds:.0f} seconds from {'now' if record.ready else 'when it is ready'}"


def _topic(record: LaunchRecord) -> str:
    """Whom it concerns that a launch came into its state."""
    if record.state == "starting":
        return MOVED
    to_do = record.state == "queued" or (record.state == "ready" and (record.due or record.stop_by))
    return QUEUE if to_do else ROOM


def no_room(limit: Limit, used: queries.Usage) -> LimitReached:
    """The error for a launch that has no room."""
    kind, _, name = limit.key.partition(":")
    whom = {"user": f"the user {name}", "group": f"the group {name}"}.get(kind, "all together")
    return LimitReached(
        f"The policy's limit is reached: {limit.most:g} {limit.resource} for {whom}. Stop a server first.",
        details={"limit": limit._asdict(), "used": queries.in_use(limit, used)},
    )
