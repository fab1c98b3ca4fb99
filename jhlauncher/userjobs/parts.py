"""The parts of user jobs, wired together."""

from __future__ import annotations

from collections.abc import Callable

from traitlets.config import Configurable

from ..database import Database
from .exposing import Exposure
from .forwards import Forwards
from .rows import Rows
from .systems import Systems
from .userjobs import UserJobs
from .watching import JobWatch

CONFIGURABLE: list[type[Configurable]] = [Systems, Forwards, JobWatch, UserJobs]


class UserJobParts:
    """All parts of user jobs.

    Args:
        parent: whose configuration they have.
        database: where user jobs are kept.
        exposure: how forwards are made known where users' servers are.

    """

    def __init__(self, parent: Configurable, database: Database, exposure: Callable[[Forwards], Exposure]) -> None:
        self._systems = Systems(parent=parent)
        forwards = Forwards(parent=parent)
        self.jobs = UserJobs(Rows(database), self._systems, forwards, exposure(forwards), parent=parent)
        self.settings: list[Configurable] = [self._systems, forwards, self.jobs.watching, self.jobs]

    @property
    def enabled(self) -> bool:
        """Whether there is a system."""
        return bool(self._systems.systems)

    async def start(self) -> None:
        """Take up what was left; the database is open."""
        await self.jobs.start()

    async def stop(self) -> None:
        """End forwards; jobs go on."""
        await self.jobs.stop()
