"""What is asked of the tables within a transaction: who is next in line, what is in use; and rows as records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import starmap
from typing import Any

import sqlalchemy as sa

from .models import LaunchSpec
from .records import ACTIVE, LaunchRecord, Limit, Needs
from .tables import keys, launches

Usage = dict[str, dict[str, float]]
"""What launches have together, by key: servers, cpu, memory, gpu."""


RUNNING = ("starting", "ready")
_MANY = 500
"""Values in a statement; SQLite allows 32,766."""


def of_server(username: str, server_name: str) -> sa.ColumnElement[bool]:
    """Condition: the launch that has this server."""
    return (launches.c.username == username) & (launches.c.server_name == server_name) & launches.c.state.in_(ACTIVE)


def fair_order() -> tuple[sa.Subquery, list[sa.ColumnElement[Any]]]:
    """All that wait, and the order in which they start.

    The next slot goes to the share that has the fewest for its weight, the one that would then have (those that start
    + its place in its own line) / weight; among equals, to who came first.
    """
    waiting = (
        sa.select(
            launches.c.id,
            launches.c.seq,
            launches.c.share,
            launches.c.weight,
            sa.func.row_number().over(partition_by=launches.c.share, order_by=launches.c.seq).label("place"),
        )
        .where(launches.c.state == "queued")
        .subquery("waiting")
    )
    busy = (
        sa.select(launches.c.share, sa.func.count().label("number"))
        .where(launches.c.state == "starting")
        .group_by(launches.c.share)
        .subquery("busy")
    )
    turn = (sa.func.coalesce(busy.c.number, 0) + waiting.c.place) / waiting.c.weight
    joined = waiting.outerjoin(busy, waiting.c.share == busy.c.share)
    ranked = sa.select(waiting.c.id, waiting.c.seq, turn.label("turn")).select_from(joined).subquery("ranked")
    return ranked, [ranked.c.turn, ranked.c.seq]


def next_in_line(connection: sa.Connection, slots: int) -> list[LaunchRecord]:
    """Those whose turn it is, in order.

    Who finds a limit full waits, and lets others by, but not those behind it who need room in the same limit.
    """
    ranked, order = fair_order()
    c = launches.c
    query = sa.select(c.id, c.limits, c.cpu, c.memory, c.gpu).join(ranked, c.id == ranked.c.id).order_by(*order)
    some = slots + 20
    rows = connection.execute(query.limit(some)).all()
    ids = _within_limits(connection, rows, slots)
    if len(ids) < slots and len(rows) == some:  # most of them are held by limits
        ids = _within_limits(connection, connection.execute(query).all(), slots)
    found = {record.id: record for record in every(connection, c.id.in_(ids))}
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


def _add_usage(connection: sa.Connection, used: Usage, launch: str, needs: Needs) -> None:
    if not used:
        return
    of = sa.select(keys.c.key).where(keys.c.launch == launch)
    for key in connection.execute(of).scalars():
        of_key = used.setdefault(key, {})
        for resource, amount in needs.items():
            of_key[resource] = of_key.get(resource, 0) + amount


def place_of_another(connection: sa.Connection, share: str, weight: float) -> int:
    """The place in the queue that another launch of this share would have."""
    count = sa.select(launches.c.share, launches.c.state, sa.func.count(), sa.func.max(launches.c.weight))
    rows = connection.execute(
        count.where(launches.c.state.in_(("queued", "starting"))).group_by(launches.c.share, launches.c.state)
    )
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


def usage(connection: sa.Connection, of: set[str], states: Sequence[str]) -> Usage:
    """What the launches in these states have together, by key; 0 of everything where there are none."""
    used: Usage = {key: {} for key in of}
    if not of:
        return used
    query = (
        sa.select(
            keys.c.key,
            sa.func.count(),
            sa.func.sum(launches.c.cpu),
            sa.func.sum(sa.cast(launches.c.memory, sa.Float)),  # SQLite's whole numbers overflow
            sa.func.sum(launches.c.gpu),
        )
        .join(launches, launches.c.id == keys.c.launch)
        .where(launches.c.state.in_(states))
        .group_by(keys.c.key)
    )
    if len(of) <= _MANY:
        query = query.where(keys.c.key.in_(of))
    for key, servers, cpu, memory, gpu in connection.execute(query):
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


def now(connection: sa.Connection) -> Any:
    """The database's clock, the same for all replicas, in seconds."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float)


def waiting(connection: sa.Connection) -> Counter[str]:
    """How many launches wait, by who asked for them."""
    query = sa.select(launches.c.caller, sa.func.count()).where(launches.c.state == "queued")
    rows = connection.execute(query.group_by(launches.c.caller))
    return Counter({row[0]: row[1] for row in rows})


def count(connection: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    """How many launches there are."""
    number: int = connection.execute(sa.select(sa.func.count()).where(where)).scalar_one()
    return number


def owned(connection: sa.Connection, owner: str) -> list[LaunchRecord]:
    """What a replica works on."""
    return every(connection, (launches.c.owner == owner) & launches.c.state.in_(RUNNING))


def next_due(connection: sa.Connection) -> float:
    """When the next launch is due; infinite if none is."""
    due: float | None = connection.execute(sa.select(sa.func.min(launches.c.due))).scalar()
    return math.inf if due is None else due


def one(connection: sa.Connection, where: sa.ColumnElement[bool]) -> LaunchRecord | None:
    """The launch, if there is one."""
    row = connection.execute(sa.select(launches).where(where)).one_or_none()
    return record_of(row) if row else None


def every(connection: sa.Connection, where: sa.ColumnElement[bool], most: int | None = None) -> list[LaunchRecord]:
    """The launches, or that many of them, the first accepted first."""
    query = sa.select(launches).where(where).order_by(launches.c.seq).limit(most)
    return [record_of(row) for row in connection.execute(query)]


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
