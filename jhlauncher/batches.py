"""Batches that are kept: launches that were asked for in one request, and are followed by one id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from . import queries
from .errors import BatchRefused, KeyReused, LauncherError, ServerConflict
from .records import ACTIVE, FINAL, BatchEvent, BatchRecord, LaunchRecord
from .store import KEY_REUSED, Store
from .tables import batches, events, launches


class Batches:
    """Batches in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self, batch: BatchRecord, asked: Sequence[LaunchRecord | LauncherError], *, all_or_none: bool
    ) -> BatchRecord:
        """Keep a batch and those of its launches that can be accepted; the same request may have come before.

        Raises:
            BatchRefused: none can be accepted, or one can't and all are wanted.
            KeyReused: another request had its idempotency key.

        """
        if all_or_none and not await self._store.database.read(lambda connection: self._same(connection, batch)):
            await self._refuse_early(asked)

        def work(connection: sa.Connection) -> BatchRecord:
            known = self._same(connection, batch)
            if known:
                return known
            new = [item for item in asked if isinstance(item, LaunchRecord)]
            results = iter(self._store.add_within(connection, new))
            items = [next(results) if isinstance(item, LaunchRecord) else item for item in asked]
            refused = [item for item in items if isinstance(item, LauncherError)]
            if len(refused) == len(items) or (refused and all_or_none):
                raise _refused(items)
            kept = replace(batch, items=[_item(item) for item in items])
            connection.execute(batches.insert().values(**asdict(kept)))
            return kept

        return await self._store.database.write(work, alone=True)

    async def _refuse_early(self, asked: Sequence[LaunchRecord | LauncherError]) -> None:
        """Refuse a batch without making others wait, where that can be seen before."""
        records = [item for item in asked if isinstance(item, LaunchRecord)]
        found = iter(await self._store.refusals(records))
        seen: set[tuple[str, str]] = set()
        items: list[LauncherError | None] = []
        for item in asked:
            if isinstance(item, LauncherError):
                items.append(item)
                continue
            server = (item.username, item.server_name)
            twice = ServerConflict("This batch asks twice for this server.", reason="server_starting")
            items.append(next(found) or (twice if server in seen else None))
            seen.add(server)
        if any(items):
            raise _refused(items)

    def _same(self, connection: sa.Connection, batch: BatchRecord) -> BatchRecord | None:
        if batch.idempotency_key is None:
            return _one(connection, batches.c.id == batch.id)  # this very transaction, done before
        key = (batches.c.caller == batch.caller) & (batches.c.idempotency_key == batch.idempotency_key)
        known = _one(connection, key)
        if known and known.request != batch.request:
            raise KeyReused(KEY_REUSED)
        return known

    async def get(self, batch: str) -> BatchRecord | None:
        """A batch."""
        return await self._store.database.read(lambda connection: _one(connection, batches.c.id == batch))

    async def events_of(self, batch: str, after: int = 0) -> list[BatchEvent]:
        """To which states the launches of a batch came, after the event with that number."""

        def work(connection: sa.Connection) -> list[BatchEvent]:
            query = (
                sa.select(
                    events.c.seq, events.c.time, events.c.launch,
                    launches.c.username, launches.c.server_name, events.c.name, events.c.data,
                )
                .join(launches, launches.c.id == events.c.launch)
                .where(launches.c.batch == batch, events.c.seq > after, events.c.name.in_((*ACTIVE, *FINAL)))
                .order_by(events.c.seq)
            )  # fmt: skip
            return [BatchEvent(*row) for row in connection.execute(query)]

        return await self._store.database.read(work)

    async def is_over(self, batch: str) -> bool:
        """Whether all its launches have ended."""
        active = (launches.c.batch == batch) & launches.c.state.in_(ACTIVE)
        return not await self._store.database.read(lambda connection: queries.count(connection, active))

    async def launches_of(self, batch: str) -> list[LaunchRecord]:
        """The launches of a batch, in order."""
        return await self._store.database.read(lambda connection: queries.every(connection, launches.c.batch == batch))


def _item(result: tuple[LaunchRecord, bool] | LauncherError) -> dict[str, Any]:
    """What became of one launch of a batch."""
    if isinstance(result, LauncherError):
        return {"error": result.as_dict()}
    return {"launch": result[0].id}


def _refused(items: Sequence[object]) -> BatchRefused:
    """The error for a batch of which nothing is kept."""
    errors = [{"index": n, **item.as_dict()} for n, item in enumerate(items) if isinstance(item, LauncherError)]
    text = f"{len(errors)} of the {len(items)} launches can't be accepted, so none was: see details.items."
    return BatchRefused(text, details={"items": errors})


def _one(connection: sa.Connection, where: sa.ColumnElement[bool]) -> BatchRecord | None:
    row = connection.execute(sa.select(batches).where(where)).one_or_none()
    return BatchRecord(**row._mapping) if row else None
