"""What is asked of the tables within a transaction: who is next in line, what is in use; and rows as records.

Statements are made once, with names for what differs (`sqlalchemy.bindparam`): to make one takes several times as long
as to have it done.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import starmap
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from .models import LaunchSpec
from .records import ACTIVE, LaunchRecord, Limit, Needs
from .tables import keys, launches, replicas

Usage = dict[str, dict[str, float]]
"""What launches have together, by key: servers, cpu, memory, gpu."""


RUNNING = ("starting", "ready")
_c = launches.c
_MANY = 500
"""Values in a statement; SQLite allows 32,766."""


class now(sa.sql.functions.FunctionElement[float]):  # noqa: N801  (a function of SQL)
    """The database's clock, the same for all replicas, in seconds."""

    type = sa.Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_of_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_of_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


_BEGUN = _c.not_before.is_(None) | (_c.not_before <= sa.bindparam("at", type_=sa.Float))
"""Condition: their start is not put off any more. The clock is the worker's, which sleeps until then."""


def _fair_order() -> tuple[sa.Subquery, list[sa.ColumnElement[Any]]]:
    """All that wait, and the order in which they start.

    The next slot goes to the share that has the fewest for its weight, the one that would then have (those that start
    + its place in its own line) / weight; among equals, to who came first.
    """
    waiting = (
        sa.select(
            _c.id,
            _c.seq,
            _c.share,
            _c.weight,
            sa.func.row_number().over(partition_by=_c.share, order_by=_c.seq).label("place"),
        )
        .where(_c.state == "queued", _BEGUN)
        .subquery("waiting")
    )
    busy = (
        sa.select(_c.share, sa.func.count().label("number"))
        .where(_c.state == "starting")
        .group_by(_c.share)
        .subquery("busy")
    )
    turn = (sa.func.coalesce(busy.c.number, 0) + waiting.c.place) / waiting.c.weight
    joined = waiting.outerjoin(busy, waiting.c.share == busy.c.share)
    ranked = sa.select(waiting.c.id, waiting.c.seq, turn.label("turn")).select_from(joined).subquery("ranked")
    return ranked, [ranked.c.turn, ranked.c.seq]


_ranked, _order = _fair_order()
_IN_ORDER = sa.select(_ranked.c.id).order_by(*_order)
_placed = sa.select(_ranked.c.id, sa.func.row_number().over(order_by=_order).label("place")).subquery()
_PLACE = sa.select(_placed.c.place).where(_placed.c.id == sa.bindparam("launch"))
_LINE = sa.select(_c.id, _c.limits, _c.cpu, _c.memory, _c.gpu).join(_ranked, _c.id == _ranked.c.id).order_by(*_order)
_HEAD_OF_LINE = _LINE.limit(sa.bindparam("some"))


def in_order(connection: sa.Connection) -> list[str]:
    """The ids of all that wait, in the order in which they will start, limits left aside."""
    return list(connection.execute(_IN_ORDER, {"at": time.time()}).scalars())


def place(connection: sa.Connection, launch: str) -> int | None:
    """The place in that order of one that waits; None if it does not, or not yet."""
    found: int | None = connection.execute(_PLACE, {"launch": launch, "at": time.time()}).scalar()
    return found


def next_in_line(connection: sa.Connection, slots: int) -> list[LaunchRecord]:
    """Those whose turn it is, in order.

    Who finds a limit full waits, and lets others by, but not those behind it who need room in the same limit.
    """
    some, now = slots + 20, {"at": time.time()}
    rows = connection.execute(_HEAD_OF_LINE, {"some": some, **now}).all()
    ids = _within_limits(connection, rows, slots)
    if len(ids) < slots and len(rows) == some:  # most of them are held by limits
        ids = _within_limits(connection, connection.execute(_LINE, now).all(), slots)
    found = {record.id: record for record in with_ids(connection, ids)}
    return [found[launch] for launch in ids]


def _within_limits(connection: sa.Connection, rows: Sequence[Any], slots: int) -> list[str]:
    used = usage(connection, {limit[0] for row in rows for limit in row.limits}, RUNNING)
    blocked: set[tuple[str, str]] = set()
    chosen: list[str] = []
    for row in rows:
        needs: Needs = {"servers": 1, "cpu": row.cpu, "memory": row.memory, "gpu": row.gpu}
        mine = [limit for limit in starmap(Limit, row.limits) if needs[limit.resource]]
        full = {limit.place for limit in mine if not fits(limit, needs, used)}
        if full or blocked.intersection(limit.place for limit in mine):
            blocked |= full
        else:
            chosen.append(row.id)
            _add_usage(connection, used, row.id, needs)
        if len(chosen) == slots:
            break
    return chosen


_KEYS = sa.select(keys.c.key).where(keys.c.launch == sa.bindparam("of"))


def _add_usage(connection: sa.Connection, used: Usage, launch: str, needs: Needs) -> None:
    if not used:
        return
    for key in connection.execute(_KEYS, {"of": launch}).scalars():
        of_key = used.setdefault(key, {})
        for resource, amount in needs.items():
            of_key[resource] = of_key.get(resource, 0) + amount


def place_of_another(connection: sa.Connection, share: str, weight: float) -> int:
    """The place in the queue that another launch of this share would have."""
    count = sa.select(_c.share, _c.state, sa.func.count(), sa.func.max(_c.weight))
    under_way = count.where(_c.state.in_(("queued", "starting")), _BEGUN).group_by(_c.share, _c.state)
    rows = connection.execute(under_way, {"at": time.time()})
    waiting: dict[str, tuple[int, float]] = {}
    busy: dict[str, int] = {}
    for name, state, number, most in rows:
        if state == "queued":
            waiting[name] = (number, most)
        else:
            busy[name] = number
    mine = waiting.pop(share, (0, 0))[0] + 1
    turn = (busy.get(share, 0) + mine) / weight
    return mine + sum(
        min(number, max(0, int(turn * other) - busy.get(name, 0))) for name, (number, other) in waiting.items()
    )


_USAGE = (
    sa.select(
        keys.c.key,
        sa.func.count(),
        sa.func.sum(_c.cpu),
        sa.func.sum(sa.cast(_c.memory, sa.Float)),  # SQLite's whole numbers overflow
        sa.func.sum(_c.gpu),
    )
    .join(launches, _c.id == keys.c.launch)
    .where(_c.state.in_(sa.bindparam("states", expanding=True)))
    .group_by(keys.c.key)
)
_USAGE_OF = _USAGE.where(keys.c.key.in_(sa.bindparam("keys", expanding=True)))


def usage(connection: sa.Connection, of: set[str], states: Sequence[str]) -> Usage:
    """What the launches in these states have together, by key; 0 of everything where there are none."""
    used: Usage = {key: {} for key in of}
    if not of:
        return used
    given = {"states": list(states)}
    few = len(of) <= _MANY
    rows = connection.execute(_USAGE_OF, {**given, "keys": list(of)}) if few else connection.execute(_USAGE, given)
    for key, servers, cpu, memory, gpu in rows:
        used[key] = {"servers": servers, "cpu": float(cpu), "memory": float(memory), "gpu": float(gpu)}
    return used


def fits(limit: Limit, needs: Needs, used: Usage) -> bool:
    """Whether a limit has room for what a launch needs."""
    amount = needs[limit.resource]
    return not amount or in_use(limit, used) + amount <= limit.most


def in_use(limit: Limit, used: Usage) -> float:
    """What is used of a limit."""
    return used.get(limit.key, {}).get(limit.resource, 0)


def full_limit(connection: sa.Connection, record: LaunchRecord) -> tuple[Limit, float] | None:
    """The first limit that has no room for a launch to start, and what is used of it."""
    used = usage(connection, {limit.key for limit in record.limits}, RUNNING)
    full = next((limit for limit in record.limits if not fits(limit, record.needs, used)), None)
    return (full, in_use(full, used)) if full else None


_WAITING = sa.select(_c.caller, sa.func.count()).where(_c.state == "queued").group_by(_c.caller)


def waiting(connection: sa.Connection) -> Counter[str]:
    """How many launches wait, by who asked for them."""
    return Counter({row[0]: row[1] for row in connection.execute(_WAITING)})


def count(connection: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    """How many launches there are."""
    number: int = connection.execute(sa.select(sa.func.count()).where(where)).scalar_one()
    return number


_STARTING = sa.select(sa.func.count()).where(_c.state == "starting")


def starting(connection: sa.Connection) -> int:
    """How many launches are starting."""
    number: int = connection.execute(_STARTING).scalar_one()
    return number


_OWNED = sa.select(launches).where(_c.owner == sa.bindparam("by"), _c.state.in_(RUNNING)).order_by(_c.seq)


def owned(connection: sa.Connection, owner: str) -> list[LaunchRecord]:
    """What a replica works on."""
    return _records(connection.execute(_OWNED, {"by": owner}))


ALIVE = (replicas.c.alive_until >= now()) | (replicas.c.id == sa.bindparam("replica"))
"""Condition: the replicas that are there; the one that asks is, however long it was silent."""
LEFT_BEHIND = (_c.owner.is_(None) | _c.owner.not_in(sa.select(replicas.c.id).where(ALIVE))) & (
    (_c.state == "starting") | ((_c.state == "ready") & _c.stop_by.is_not(None))
)
"""Condition: launches about which something is to be done, and no replica does."""
_WAITS = sa.exists().where(_c.state == "queued", _BEGUN)
_DUE = sa.select(sa.func.min(_c.due)).scalar_subquery()
_OUTLOOK = sa.select(_WAITS, _DUE)
_TO_DO = sa.select(
    (_WAITS & (_STARTING.scalar_subquery() < sa.bindparam("most"))) | sa.exists().where(LEFT_BEHIND), _WAITS, _DUE
)


class Outlook(NamedTuple):
    """What is to be expected without news."""

    waits: bool
    """Whether launches wait for their turn."""
    due: float
    """When the next launch is due, in seconds since 1970; infinite if none is."""


def outlook(connection: sa.Connection) -> Outlook:
    """What is to be expected."""
    return _outlook(*connection.execute(_OUTLOOK, {"at": time.time()}).one())


def to_do(connection: sa.Connection, *, replica: str, most: int) -> tuple[bool, Outlook]:
    """Whether there is something for a replica to take, if ``most`` may be starting, and what is to be expected.

    A cheap look, which makes nobody wait.
    """
    found, *rest = connection.execute(_TO_DO, {"replica": replica, "most": most, "at": time.time()}).one()
    return bool(found), _outlook(*rest)


def _outlook(waits: Any, due: float | None) -> Outlook:
    return Outlook(bool(waits), math.inf if due is None else due)


_BY_ID = sa.select(launches).where(_c.id == sa.bindparam("launch"))
_BY_KEY = sa.select(launches).where(_c.caller == sa.bindparam("by"), _c.idempotency_key == sa.bindparam("of"))
_OF_SERVER = sa.select(launches).where(
    _c.username == sa.bindparam("user"), _c.server_name == sa.bindparam("server"), _c.state.in_(ACTIVE)
)
_WITH_IDS = sa.select(launches).where(_c.id.in_(sa.bindparam("ids", expanding=True))).order_by(_c.seq)


def by_id(connection: sa.Connection, launch: str) -> LaunchRecord | None:
    """A launch."""
    return _one(connection.execute(_BY_ID, {"launch": launch}))


def by_key(connection: sa.Connection, caller: str, key: str) -> LaunchRecord | None:
    """The launch that a caller has asked for with this idempotency key."""
    return _one(connection.execute(_BY_KEY, {"by": caller, "of": key}))


def of_server(connection: sa.Connection, username: str, server_name: str) -> LaunchRecord | None:
    """The launch that has this server."""
    return _one(connection.execute(_OF_SERVER, {"user": username, "server": server_name}))


def with_ids(connection: sa.Connection, ids: Sequence[str]) -> list[LaunchRecord]:
    """These launches, the first accepted first."""
    return _records(connection.execute(_WITH_IDS, {"ids": ids})) if ids else []


def every(connection: sa.Connection, where: sa.ColumnElement[bool], most: int | None = None) -> list[LaunchRecord]:
    """The launches, or that many of them, the first accepted first."""
    return _records(connection.execute(sa.select(launches).where(where).order_by(_c.seq).limit(most)))


def _one(rows: sa.CursorResult[Any]) -> LaunchRecord | None:
    row = rows.one_or_none()
    return record_of(row) if row else None


def _records(rows: sa.CursorResult[Any]) -> list[LaunchRecord]:
    return [record_of(row) for row in rows]


_COLUMNS = {column.name for column in launches.columns}
_FIELDS = {field.name for field in fields(LaunchRecord)}


def record_of(row: sa.Row[Any]) -> LaunchRecord:
    """A row as a record."""
    values = {key: value for key, value in row._mapping.items() if key in _FIELDS}
    values["spec"] = LaunchSpec.model_validate(values["spec"])
    values["limits"] = [Limit(*limit) for limit in values["limits"]]
    return LaunchRecord(**values)


def columns_of(record: LaunchRecord) -> dict[str, Any]:
    """A record as the values of a row."""
    values = {key: value for key, value in asdict(record).items() if key in _COLUMNS and key != "seq"}
    values["spec"] = record.spec.model_dump(exclude={"env"}, exclude_none=True)
    values["limits"] = [list(limit) for limit in record.limits]
    return values | {key: value for key, value in record.needs.items() if key != "servers"}
