"""The user jobs that are kept: a row is there before anything is done elsewhere, and until nothing is left of it.

No script, no environment and no key is kept: they may be secrets.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from ..database import Database
from ..errors import KeyReused, LimitReached
from ..tables import userjobs as table
from .errors import JobConflict
from .jobs import ENDED, MISSED, NOT_SUBMITTED, SUBMITTING
from .systems import Owner, System

_MOST_ENDED = 100
"""That are kept for an owner."""


@dataclass(frozen=True)
class Forwarded:
    """A port that is forwarded."""

    wanted: int
    """Where it is wanted: the port of the Service, where there is a cluster."""
    remote: int
    """At the node."""
    local: int
    """Where this process listens; it is kept over restarts."""


@dataclass(frozen=True)
class UserJob:
    """A forward to a node, or a job, which may have forwards."""

    credential: str
    username: str
    service: str
    hostname: str
    account: str
    """That it was made with."""
    forwards: tuple[Forwarded, ...] = ()
    target_node: str | None = None
    job: dict[str, Any] | None = None
    """What was asked of Slurm, without script and environment; None for a forward alone."""
    idempotency_key: str | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    """Nobody can guess it: the job's marker, and the label of its Service."""
    job_id: int | None = None
    state: str | None = None
    """Of the job; Slurm's words, and those of `jhlauncher.userjobs.jobs`."""
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    created: float = field(default_factory=time.time)
    """Seconds since 1970, as all times."""
    started: float | None = None
    ended: float | None = None
    exposed: bool = False
    """Whether there may be something of it where users' servers are, a Service of Kubernetes, for example."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.credential, self.username)

    def repeats(self, other: UserJob) -> bool:
        """Whether this is the request that another came from; a forward says all that it is, and needs no key.

        Raises:
            KeyReused: it has the key of the other, and is none.

        """
        if other.state == NOT_SUBMITTED:
            return False
        if self.idempotency_key is None and (self.job is not None or other.job is not None):
            return False
        if self.idempotency_key != other.idempotency_key:
            return False
        if self._asked() == other._asked():
            return True
        if self.idempotency_key is None:
            return False
        raise KeyReused(f"The Idempotency-Key was sent with another request for {self.service}.")

    def _asked(self) -> tuple[Any, ...]:
        """What was asked for, as far as that is kept."""
        node = self.target_node if self.job is None else None
        return self.hostname, node, [(each.wanted, each.remote) for each in self.forwards], self.job

    @property
    def active(self) -> bool:
        """Whether a job waits or runs, or there is a forward alone."""
        return self.state not in ENDED

    @property
    def connects(self) -> bool:
        """Whether there is something to forward to now."""
        return bool(self.forwards and self.target_node) and (self.job is None or self.state == "RUNNING")

    @property
    def marker(self) -> str:
        """By which Slurm's list shows whose job it is."""
        return f"jhlauncher:{self.key}"

    def __str__(self) -> str:
        return f"{self.service} of {self.owner} on {self.hostname}"


class Rows:
    """The table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, job: UserJob, system: System) -> UserJob:
        """Keep a new one, unless it is there already; it takes the place of one that has ended.

        Returns:
            It as it is kept, perhaps since an earlier request of the same key.

        Raises:
            JobConflict: there is another of that name.
            LimitReached: its owner has as many as they may have.

        """
        mine = [*_of(job.owner), sa.or_(_goes_on(), table.c.service == job.service)]

        def work(connection: sa.Connection) -> UserJob:
            theirs = list(_find(connection, mine))
            same = next((other for other in theirs if other.service == job.service), None)
            if same and (same.key == job.key or job.repeats(same)):
                return same
            if same and (same.active or same.exposed):
                raise JobConflict(f"You have a user job {job.service} already. Choose another name, or remove it.")
            _check_room(job, [other for other in theirs if other.hostname == job.hostname], system)
            if same:
                connection.execute(table.delete().where(table.c.key == same.key))
            _prune(connection, job.owner)
            connection.execute(table.insert().values(**_values(job)))
            return job

        return await self._database.write(work, alone=True)

    async def find(self, owner: Owner, service: str) -> UserJob | None:
        """Somebody's of that name."""
        return await self._one(*_of(owner), table.c.service == service)

    async def get(self, key: str) -> UserJob | None:
        """The one with a key."""
        return await self._one(table.c.key == key)

    async def of(self, owner: Owner) -> list[UserJob]:
        """All of somebody's, the newest first."""
        return (await self._all(*_of(owner)))[::-1]

    async def active(self, hostname: str | None = None) -> list[UserJob]:
        """Those that go on, the oldest first."""
        where = [_goes_on(), *([table.c.hostname == hostname] if hostname is not None else [])]
        return await self._all(*where)

    async def missed(self, hostname: str, since: float) -> list[UserJob]:
        """Jobs of a system that Slurm did not know some time after ``since``."""
        return await self._all(table.c.hostname == hostname, table.c.state.in_(MISSED), table.c.ended > since)

    async def some(self, keys: set[str]) -> list[UserJob]:
        """Those with these keys."""
        return await self._all(table.c.key.in_(keys)) if keys else []

    async def left(self) -> list[UserJob]:
        """Those that have ended, and of which something is left elsewhere."""
        return await self._all(table.c.exposed, table.c.state.in_(ENDED))

    async def local_ports(self) -> set[int]:
        """The ports that are kept for forwards."""
        return {forward.local for job in await self.active() for forward in job.forwards}

    async def update(self, job: UserJob, **values: Any) -> UserJob | None:
        """Change one; None if it is gone."""

        def work(connection: sa.Connection) -> bool:
            return connection.execute(table.update().where(table.c.key == job.key).values(**values)).rowcount > 0

        return replace(job, **values) if await self._database.write(work) else None

    async def submitted(self, job: UserJob, number: int) -> UserJob:
        """Slurm has taken a job; it may have been seen there already."""

        def work(connection: sa.Connection) -> None:
            unknown = table.c.state.in_([SUBMITTING, NOT_SUBMITTED])
            of = table.update().where(table.c.key == job.key)
            connection.execute(of.values(job_id=number))
            connection.execute(of.where(unknown).values(state="PENDING", reason="", ended=None))

        await self._database.write(work)
        return await self.get(job.key) or job

    async def forget(self, key: str) -> None:
        """Nothing is left of one."""

        def work(connection: sa.Connection) -> None:
            connection.execute(table.delete().where(table.c.key == key))

        await self._database.write(work)

    async def forget_ended(self, before: float) -> None:
        """Remove what ended before that time."""

        def work(connection: sa.Connection) -> None:
            connection.execute(table.delete().where(table.c.ended < before, table.c.state.in_(ENDED), ~table.c.exposed))

        await self._database.write(work)

    async def _one(self, *where: sa.ColumnElement[bool]) -> UserJob | None:
        found = await self._all(*where)
        return found[0] if found else None

    async def _all(self, *where: sa.ColumnElement[bool]) -> list[UserJob]:
        return await self._database.read(lambda connection: list(_find(connection, list(where))))


def _check_room(job: UserJob, theirs: list[UserJob], system: System) -> None:
    active = [other for other in theirs if other.active]
    if job.job is not None and sum(other.job is not None for other in active) >= system.max_jobs:
        raise LimitReached(f"You have {system.max_jobs} jobs on {job.hostname}, as many as you may have at once.")
    if len(job.forwards) + sum(len(other.forwards) for other in active) > system.max_ports:
        raise LimitReached(f"You may have {system.max_ports} ports of {job.hostname} forwarded at once.")


def _goes_on() -> sa.ColumnElement[bool]:
    return sa.or_(table.c.state.is_(None), table.c.state.not_in(ENDED))


def _prune(connection: sa.Connection, owner: Owner) -> None:
    """Of those that have ended, let each owner keep the newest."""
    ended = sa.select(table.c.seq).where(*_of(owner), table.c.state.in_(ENDED), ~table.c.exposed)
    oldest = connection.execute(ended.order_by(table.c.seq.desc()).offset(_MOST_ENDED)).scalars().all()
    connection.execute(table.delete().where(table.c.seq.in_(oldest)))


def _of(owner: Owner) -> list[sa.ColumnElement[bool]]:
    return [table.c.credential == owner.credential, table.c.username == owner.username]


def _values(job: UserJob) -> dict[str, Any]:
    return {**vars(job), "forwards": [[forward.wanted, forward.remote, forward.local] for forward in job.forwards]}


def _find(connection: sa.Connection, where: list[sa.ColumnElement[bool]]) -> Iterator[UserJob]:
    columns = [column for column in table.c if column is not table.c.seq]
    for found in connection.execute(sa.select(*columns).where(*where).order_by(table.c.seq)):
        yield UserJob(**{**found._mapping, "forwards": tuple(Forwarded(*each) for each in found.forwards)})
