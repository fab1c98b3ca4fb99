"""The people who were enrolled: who has which user name, and how far their invitation came."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import sqlalchemy as sa

from .database import Database
from .errors import CallerError
from .tables import people

MailState = Literal["none", "sending", "sent", "failed"]
"""``sending`` until the mail server has taken it: where that was cut short, nobody knows whether it has."""

_AT_ONCE = 500
"""Values in one statement; databases have bounds."""


@dataclass(frozen=True)
class PersonRecord:
    """Someone who was enrolled."""

    username: str
    identity: str
    """A keyed hash of `roster.Person.identity`."""
    name: str
    emails: list[str]
    caller: str
    """Who enrolled them."""
    created: float = field(default_factory=time.time)
    mail: MailState = "none"
    mail_error: str | None = None
    mailed: float | None = None


class EnrolledMeanwhile(CallerError):
    """Another request has enrolled some of the same people."""

    status = 409
    reason = "enrolled_meanwhile"


class Register:
    """The people in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def names_of(self, identities: Sequence[str]) -> dict[str, str]:
        """The user names of those that are known, by identity."""

        def work(connection: sa.Connection) -> dict[str, str]:
            found: dict[str, str] = {}
            for part in _parted(identities):
                query = sa.select(people.c.identity, people.c.username).where(people.c.identity.in_(part))
                found.update((identity, username) for identity, username in connection.execute(query))
            return found

        return await self._database.read(work)

    async def get(self, usernames: Iterable[str]) -> dict[str, PersonRecord]:
        """Those who are known, by user name."""
        wanted = list(usernames)

        def work(connection: sa.Connection) -> dict[str, PersonRecord]:
            found: dict[str, PersonRecord] = {}
            for part in _parted(wanted):
                for row in connection.execute(sa.select(people).where(people.c.username.in_(part))):
                    found[row.username] = PersonRecord(**row._mapping)
            return found

        return await self._database.read(work)

    async def taken(self) -> set[str]:
        """All user names that are somebody's here."""
        return await self._database.read(
            lambda connection: set(connection.execute(sa.select(people.c.username)).scalars())
        )

    async def keep(self, records: Sequence[PersonRecord]) -> None:
        """Keep these people; of those who are known by identity, name and addresses are renewed.

        Raises:
            EnrolledMeanwhile: one of the user names, or of the people, has come up since it was looked at.

        """

        def work(connection: sa.Connection) -> None:
            identities = [record.identity for record in records]
            known = {
                row.identity: row
                for part in _parted(identities)
                for row in connection.execute(sa.select(people).where(people.c.identity.in_(part)))
            }
            names = {record.username for record in records if record.identity not in known}
            for part in _parted(sorted(names)):
                if connection.execute(sa.select(people.c.username).where(people.c.username.in_(part))).first():
                    raise _meanwhile()
            for record in records:
                row = known.get(record.identity)
                if row is None:
                    connection.execute(people.insert().values(**asdict(record)))
                elif row.username != record.username:
                    raise _meanwhile()
                elif (row.name, row.emails) != (record.name, record.emails):
                    changed = people.update().where(people.c.username == record.username)
                    connection.execute(changed.values(name=record.name, emails=record.emails))

        await self._database.write(work, alone=True)

    async def claim_mail(self, username: str, *, again: bool) -> bool:
        """Whether the caller is to send this person's mail now; no other is then, unless ``again``."""
        states: list[MailState] = ["none", "sending", "sent", "failed"] if again else ["none", "failed"]

        def work(connection: sa.Connection) -> bool:
            claimed = people.update().where(people.c.username == username, people.c.mail.in_(states))
            return connection.execute(claimed.values(mail="sending", mail_error=None)).rowcount == 1

        return await self._database.write(work, alone=True)

    async def mailed(self, username: str, error: str | None, *, sent: bool) -> None:
        """Keep what became of the mail.

        Args:
            username: whose.
            error: what went wrong, if something did.
            sent: whether the mail server has taken it.

        """
        values = {"mail": "sent" if sent else "failed", "mail_error": error, "mailed": time.time() if sent else None}
        changed = people.update().where(people.c.username == username).values(**values)
        await self._database.write(lambda connection: connection.execute(changed).rowcount)

    async def remove(self, username: str) -> bool:
        """Forget somebody; whether they were known."""
        gone = people.delete().where(people.c.username == username)
        return await self._database.write(lambda connection: connection.execute(gone).rowcount == 1)


def _meanwhile() -> EnrolledMeanwhile:
    return EnrolledMeanwhile(
        "Another request has enrolled some of these people meanwhile, so nothing was done. Send it again: whoever has "
        "an account keeps it."
    )


def _parted(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE)]
