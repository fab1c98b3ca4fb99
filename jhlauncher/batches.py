"""Batches that are kept: launches that were asked for in one request, and are followed by one id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from . import queries
from .errors import BatchRefused, KeyReused, LauncherError, ServerConflict
from .records import ACTIVE, EXTENDED, FINAL, BatchEvent, BatchRecord, LaunchRecord
from .store import KEY_REUSED, Store
from .tables import batches, events, launches


class Batches:
    """Batches in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self, batch: BatchRecord, asked: Sequence[tuple[str, LaunchRecord | LauncherError]], *, all_or_none: bool
    ) -> BatchRecord:
        """Keep a batch and those of its launches that can be accepted; the same request may have come before.

        Args:
            batch: without items.
            asked: for each launch whose it is, and what is to be kept, or why it can't be.
            all_or_none: keep nothing if one can't be accepted.

        Raises:
            BatchRefused: none can be accepted, or one can't and all are wanted.
            KeyReused: another request had its idempotency key.

        """
        users, wanted = [user for user, _ in asked], [item for _, item in asked]
        if all_or_none and not await self.same(batch):
            await self._refuse_early(wanted)

        def work(connection: sa.Connection) -> BatchRecord:
            known = self._same(connection, batch)
            if known:
                return known
            new = [item for item in wanted if isinstance(item, LaunchRecord)]
            results = iter(self._store.add_within(connection, new))
            items = [next(results) if isinstance(item, LaunchRecord) else item for item in wanted]
            refused = [item for item in items if isinstance(item, LauncherError)]
            if len(refused) == len(items) or (refused and all_or_none):
                raise _refused(items)
            kept = replace(batch, items=[_item(user, item) for user, item in zip(users, items, strict=True)])
            connection.execute(batches.insert().values(**asdict(kept)))
            return kept

        return await self._store.database.write(work, alone=True)

    async def same(self, batch: BatchRecord) -> BatchRecord | None:
        """The batch that was kept of the same request before.

        Raises:
            KeyReused: another request had its idempotency key.

        """
        return await self._store.database.read(lambda connection: self._same(connection, batch))

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

    async def find(self, caller: str, before: str | None, most: int) -> list[BatchRecord]:
        """Batches that a caller has asked for, the newest first, from below the one with the id ``before`` on."""
        place = sa.tuple_(batches.c.created, batches.c.id)
        where = [batches.c.caller == caller]
        if before is not None:
            last = sa.select(batches.c.created).where(batches.c.id == before).scalar_subquery()
            where.append(place < sa.tuple_(last, before))

        def work(connection: sa.Connection) -> list[BatchRecord]:
            query = sa.select(batches).where(*where).order_by(batches.c.created.desc(), batches.c.id.desc()).limit(most)
            return [BatchRecord(**row._mapping) for row in connection.execute(query)]

        return await self._store.database.read(work)

    async def counts(self, ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many launches of these batches are in each state."""
        query = sa.select(launches.c.batch, launches.c.state, sa.func.count()).where(launches.c.batch.in_(ids))

        def work(connection: sa.Connection) -> dict[str, dict[str, int]]:
            found: dict[str, dict[str, int]] = {}
            for batch, state, number in connection.execute(query.group_by(launches.c.batch, launches.c.state)):
                found.setdefault(batch, {})[state] = number
            return found

        return await self._store.database.read(work)

    async def progress_of(self, batch: str) -> dict[str, dict[str, Any]]:
        """The latest progress of those launches of a batch that start, by id."""
        starts = (launches.c.batch == batch) & (launches.c.state == "starting") & (events.c.name == "progress")
        latest = sa.select(sa.func.max(events.c.seq)).join(launches, launches.c.id == events.c.launch).where(starts)
        query = sa.select(events.c.launch, events.c.data).where(events.c.seq.in_(latest.group_by(events.c.launch)))

        def work(connection: sa.Connection) -> dict[str, dict[str, Any]]:
            return {row.launch: row.data for row in connection.execute(query)}

        return await self._store.database.read(work)

    async def events_of(self, batch: str, after: int = 0) -> list[BatchEvent]:
        """To which states its launches came, and which got another end, after the event with that number."""
        names = (*ACTIVE, *FINAL, EXTENDED)

        def work(connection: sa.Connection) -> list[BatchEvent]:
            query = (
                sa.select(
                    events.c.seq, events.c.time, events.c.launch,
                    launches.c.username, launches.c.server_name, events.c.name, events.c.data,
                )
                .join(launches, launches.c.id == events.c.launch)
                .where(launches.c.batch == batch, events.c.seq > after, events.c.name.in_(names))
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


def _item(user: str, result: tuple[LaunchRecord, bool] | LauncherError) -> dict[str, Any]:
    """What became of one launch of a batch."""
    if isinstance(result, LauncherError):
        return {"username": user, "error": result.as_dict()}
    return {"username": result[0].username, "launch": result[0].id}


def _refused(items: Sequence[object]) -> BatchRefused:
    """The error for a batch of which nothing is kept."""
    errors = [{"index": n, **item.as_dict()} for n, item in enumerate(items) if isinstance(item, LauncherError)]
    text = f"{len(errors)} of the {len(items)} launches can't be accepted, so none was: see details.items."
    return BatchRefused(text, details={"items": errors})


def _one(connection: sa.Connection, where: sa.ColumnElement[bool]) -> BatchRecord | None:
    row = connection.execute(sa.select(batches).where(where)).one_or_none()
    return BatchRecord(**row._mapping) if row else None
