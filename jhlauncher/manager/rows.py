"""The services that are kept: what must be known to find, tell and remove them, and no secret.

A row is there before the first object is made, and goes when the last one is removed.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from ..database import Database
from ..tables import manager_services as services
from .rendering import Json, Ref

State = Literal["starting", "started"]
Identity = tuple[str, str, str]
"""Credential, servername and start_id."""


@dataclass(frozen=True)
class Row:
    """A service."""

    credential: str
    servername: str
    start_id: str
    user_options: Json
    jhub_user_id: int
    main: Ref
    objects: list[Ref]
    """All that may have been made for it, in the order of removal."""
    secret: str
    """The name of the Secret with its environment, as it was called then."""
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    """What its objects are labelled with; nobody can guess it."""
    state: State = "starting"
    stop_pending: bool = False
    created: float = field(default_factory=time.time)
    """Seconds since 1970."""

    @property
    def id(self) -> str:
        """What it is called in descriptions."""
        return f"{self.servername}-{self.start_id}"

    @property
    def identity(self) -> Identity:
        """Which start of which service."""
        return self.credential, self.servername, self.start_id

    @property
    def certs_secret(self) -> str | None:
        """The name of the Secret with its certificates; the last of its objects, if it has any."""
        last = self.objects[-1].name
        return last if last != self.secret else None

    @property
    def service(self) -> str:
        """Which description it has."""
        return service_of(self.user_options)

    def as_dict(self) -> Json:
        """As its Hub is told."""
        start = datetime.fromtimestamp(self.created, UTC).isoformat(timespec="microseconds")
        return {
            "servername": self.servername,
            "start_id": self.start_id,
            "user_options": self.user_options,
            "jhub_user_id": self.jhub_user_id,
            "jhub_credential": self.credential,
            "start_date": start.replace("+00:00", "Z"),
            "stop_pending": self.stop_pending,
        }

    def __str__(self) -> str:
        return f"{self.id} of {self.credential}"


class Rows:
    """The table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, row: Row) -> tuple[Row, list[Row]]:
        """Keep a new service, unless this start of it is there already.

        Returns:
            The row as it is kept, and earlier starts of the service, which are to be stopped from now on.

        """

        def work(connection: sa.Connection) -> tuple[Row, list[Row]]:
            others = _find(connection, _of(row.credential, row.servername))
            same = [other for other in others if other.start_id == row.start_id]
            if same:
                return same[0], []
            old = services.update().where(*_of(row.credential, row.servername)).values(stop_pending=True)
            connection.execute(old)
            connection.execute(services.insert().values(**vars(row)))
            return row, [replace(other, stop_pending=True) for other in others]

        return await self._database.write(work, alone=True)

    async def find(self, credential: str, servername: str) -> list[Row]:
        """The starts of a service, the newest first."""
        return await self._database.read(lambda connection: _find(connection, _of(credential, servername)))

    async def of(self, credential: str) -> list[Row]:
        """All services of a credential, the oldest first."""
        of = services.c.credential == credential
        return (await self._database.read(lambda connection: _find(connection, [of])))[::-1]

    async def get(self, key: str) -> Row | None:
        """A service; None if nothing is left of it."""
        rows = await self._database.read(lambda connection: _find(connection, [services.c.key == key]))
        return rows[0] if rows else None

    async def all(self) -> list[Row]:
        """All services."""
        return await self._database.read(lambda connection: _find(connection, []))

    async def started(self, key: str) -> bool:
        """All objects of a service are made; False if it is to be stopped meanwhile, or gone."""
        of = [services.c.key == key, ~services.c.stop_pending]

        def work(connection: sa.Connection) -> bool:
            return connection.execute(services.update().where(*of).values(state="started")).rowcount > 0

        return await self._database.write(work, alone=True)

    async def stopping(self, *keys: str) -> None:
        """These services are to be stopped."""

        def work(connection: sa.Connection) -> None:
            connection.execute(services.update().where(services.c.key.in_(keys)).values(stop_pending=True))

        await self._database.write(work)

    async def forget(self, key: str) -> None:
        """Nothing is left of a service."""

        def work(connection: sa.Connection) -> None:
            connection.execute(services.delete().where(services.c.key == key))

        await self._database.write(work)


def service_of(user_options: Json) -> str:
    """The description that is asked for: a path below the credential's."""
    return str(user_options["service"]).rstrip("/")


def _of(credential: str, servername: str) -> list[sa.ColumnElement[bool]]:
    return [services.c.credential == credential, services.c.servername == servername]


def _find(connection: sa.Connection, where: list[sa.ColumnElement[bool]]) -> list[Row]:
    columns = [column for column in services.c if column is not services.c.seq]
    query = sa.select(*columns).where(*where).order_by(services.c.seq.desc())
    return [
        Row(**{**found._mapping, "main": Ref(*found.main), "objects": [Ref(*ref) for ref in found.objects]})
        for found in connection.execute(query)
    ]
