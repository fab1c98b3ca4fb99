"""The processes that share a database, and which of them works on a launch.

A replica holds what it works on by its entry in ``replicas``, which it must renew (`alive`). Once that is too old,
others take over its work (`take_over`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from traitlets import Float
from traitlets.config import LoggingConfigurable

from . import queries
from .database import Database
from .records import LaunchRecord
from .store import QUEUE
from .tables import launches, replicas

_DEAD = replicas.delete().where(~queries.ALIVE)
_LEFT_BEHIND = sa.select(launches.c.id).where(queries.LEFT_BEHIND).with_for_update(skip_locked=True)


class Replicas(LoggingConfigurable):
    """Who is there, and what nobody works on."""

    lease_timeout = Float(
        15,
        min=1,
        help="""Seconds after which others take over the launches of a replica that gives no sign of life.

        It gives one three times as often.
        """,
    ).tag(config=True)

    def __init__(self, database: Database, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._database = database

    async def join(self, replica: str) -> None:
        """Enter a new replica. On SQLite there is one: the newest, and any other has ended or is about to."""

        def work(connection: sa.Connection) -> None:
            if self._database.on_sqlite:
                connection.execute(replicas.delete())
            until = queries.now() + self.lease_timeout
            connection.execute(replicas.insert().values(id=replica, alive_until=until))

        await self._database.write(work)

    async def alive(self, replica: str) -> bool:
        """Give a sign of life; False if others have taken this replica's place meanwhile."""

        def work(connection: sa.Connection) -> bool:
            until = queries.now() + self.lease_timeout
            renewed = connection.execute(replicas.update().where(replicas.c.id == replica).values(alive_until=until))
            return renewed.rowcount > 0

        return await self._database.write(work)

    async def all(self) -> list[str]:
        """The ids of those that have joined and are not known to have died."""

        def work(connection: sa.Connection) -> list[str]:
            return list(connection.execute(sa.select(replicas.c.id)).scalars())

        return await self._database.read(work)

    async def leave(self, replica: str) -> None:
        """Give back what a replica works on: it ends."""

        def work(connection: sa.Connection) -> None:
            connection.execute(launches.update().where(launches.c.owner == replica).values(owner=None))
            connection.execute(replicas.delete().where(replicas.c.id == replica))
            self._database.notify(connection, QUEUE)

        await self._database.write(work)

    def take_over(self, connection: sa.Connection, replica: str) -> list[LaunchRecord]:
        """Within a transaction, take what nobody works on: of dead replicas, what was left, what is to be stopped."""
        connection.execute(_DEAD, {"replica": replica})
        ids = list(connection.execute(_LEFT_BEHIND, {"replica": replica}).scalars())
        if ids:
            connection.execute(launches.update().where(launches.c.id.in_(ids)).values(owner=replica))
        return queries.with_ids(connection, ids)
