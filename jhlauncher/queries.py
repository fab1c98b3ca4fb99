"""What is asked of the tables within a transaction: who is next in line, what is in use; and rows as records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .models import LaunchSpec
from .records import ACTIVE, LaunchRecord, Limit
from .tables import keys, launches

Usage = dict[str, dict[str, float]]
"""What launches have together, by key: servers, cpu, memory, gpu."""


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


async def next_in_line(connection: AsyncConnection, blocked: set[str], seen: set[str], most: int) -> list[LaunchRecord]:
    """Those that wait, in order, but for those with a blocked key."""
    ranked, order = fair_order()
    query = sa.select(launches).join(ranked, launches.c.id == ranked.c.id).order_by(*order).limit(most)
    if blocked:
        is_blocked = sa.select(keys.c.launch).where(keys.c.launch == launches.c.id, keys.c.key.in_(blocked))
        query = query.where(~is_blocked.exists())
    if seen:
        query = query.where(launches.c.id.not_in(seen))
    return await _with_keys(connection, [record_of(row) for row in await connection.execute(query)])


async def place_of_another(connection: AsyncConnection, share: str, weight: float) -> int:
    """The place in the queue that another launch of this share would have."""
    count = sa.select(launches.c.share, launches.c.state, sa.func.count(), sa.func.max(launches.c.weight))
    rows = await connection.execute(
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


async def _with_keys(connection: AsyncConnection, records: list[LaunchRecord]) -> list[LaunchRecord]:
    found: dict[str, list[str]] = {record.id: [] for record in records}
    rows = await connection.execute(sa.select(keys.c.launch, keys.c.key).where(keys.c.launch.in_(found)))
    for launch, key in rows:
        found[launch].append(key)
    return [replace(record, keys=found[record.id]) for record in records]


async def usage(connection: AsyncConnection, of: Iterable[str], states: Sequence[str]) -> Usage:
    """What the launches in these states have together, by key."""
    of = list(of)
    if not of:
        return {}
    rows = await connection.execute(
        sa.select(
            keys.c.key,
            sa.func.count(),
            sa.func.sum(launches.c.cpu),
            sa.func.sum(launches.c.memory),
            sa.func.sum(launches.c.gpu),
        )
        .join(launches, launches.c.id == keys.c.launch)
        .where(keys.c.key.in_(of), launches.c.state.in_(states))
        .group_by(keys.c.key)
    )
    return {
        key: {"servers": servers, "cpu": float(cpu), "memory": float(memory), "gpu": float(gpu)}
        for key, servers, cpu, memory, gpu in rows
    }


def add_usage(used: Usage, record: LaunchRecord) -> None:
    for key in record.keys:
        of_key = used.setdefault(key, {})
        for resource, amount in record.needs.items():
            of_key[resource] = of_key.get(resource, 0) + amount


def fits(limit: Limit, record: LaunchRecord, used: Usage) -> bool:
    amount = record.needs[limit.resource]
    return not amount or used.get(limit.key, {}).get(limit.resource, 0) + amount <= limit.most


def now(connection: AsyncConnection) -> Any:
    """The database's clock, the same for all replicas, in seconds."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float)


async def count(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> int:
    number: int = (await connection.execute(sa.select(sa.func.count()).where(where))).scalar_one()
    return number


async def one(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> LaunchRecord | None:
    row = (await connection.execute(sa.select(launches).where(where))).one_or_none()
    return record_of(row) if row else None


async def every(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> list[LaunchRecord]:
    return [
        record_of(row) for row in await connection.execute(sa.select(launches).where(where).order_by(launches.c.seq))
    ]


_COLUMNS = {column.name for column in launches.columns}
_FIELDS = {field.name for field in fields(LaunchRecord)}


def record_of(row: sa.Row[Any]) -> LaunchRecord:
    values = {key: value for key, value in row._mapping.items() if key in _FIELDS}
    values["spec"] = LaunchSpec.model_validate(values["spec"])
    values["limits"] = [Limit(*limit) for limit in values["limits"]]
    return LaunchRecord(**values)


def columns_of(record: LaunchRecord) -> dict[str, Any]:
    values = {key: value for key, value in asdict(record).items() if key in _COLUMNS and key != "seq"}
    values["spec"] = record.spec.model_dump(exclude={"env"}, exclude_none=True)
    values["limits"] = [list(limit) for limit in record.limits]
    return values | {key: value for key, value in record.needs.items() if key != "servers"}
