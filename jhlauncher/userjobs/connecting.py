"""The way from users' servers to a user job: its name where they are, and its forwards, kept as they must be now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ..errors import LauncherError
from .exposing import Exposure
from .forwards import Forwards
from .gateway import Gateway
from .rows import Rows, UserJob
from .systems import System, has_account


class Connecting:
    """Connects and disconnects user jobs.

    Args:
        rows: where they are kept.
        forwards: the forwards of this process.
        exposure: how they are made known where users' servers are.
        changed: is called when a connection comes or goes.
        lock: under which a user job is changed.

    """

    def __init__(
        self,
        rows: Rows,
        forwards: Forwards,
        exposure: Exposure,
        changed: Callable[[], None],
        lock: Callable[[UserJob], AbstractAsyncContextManager[None]],
    ) -> None:
        self._rows = rows
        self._lock = lock
        self._forwards = forwards
        self._changed = changed
        self.exposure = exposure
        self._again: set[str] = set()  # keys of those whose name could not be made
        self.systems: dict[str, System] = {}
        self.gateways: dict[str, Gateway] = {}

    async def resume(self, job: UserJob) -> None:
        """Take up what an earlier process left; a forward alone waits until its node has been looked at."""
        self._again.discard(job.key)
        if job.forwards:
            try:
                job = await self._rows.update(job, exposed=True) or job
                await self.exposure.add(job)
            except LauncherError as error:
                self._forwards.refuse(job, error.message)
                self._again.add(job.key)
                return
        if job.job is not None or self.is_anybodys(job):
            await self.connect(job)

    async def connect(self, job: UserJob) -> None:
        """Forward to where a user job is now, if it is somewhere, and its owner has still the account for it."""
        gateway = self.gateways.get(job.hostname)
        if not job.connects or gateway is None:
            return
        if self._still_theirs(job):
            await self._forwards.open(job, gateway, self._changed)
        else:
            await self._refuse(job, f"Your account on {job.hostname} is another now, or none.")

    async def recheck(self, job: UserJob, nodes: set[str]) -> None:
        """See whether a forward without a job may go on.

        Args:
            job: the forward.
            nodes: where jobs of its account run.

        """
        if job.key in self._again:
            return
        if self.is_anybodys(job) or job.target_node in nodes:
            await self.connect(job)
        else:
            await self._refuse(job, f"No job of yours runs on {job.target_node}.")

    async def disconnect(self, job: UserJob) -> None:
        """End forwards, and take the name away.

        Raises:
            Temporary: the name is still there.

        """
        self._again.discard(job.key)
        await self._forwards.close(job.key)
        if job.exposed:
            await self.exposure.remove(job)
            await self._rows.update(job, exposed=False)

    async def close(self, job: UserJob) -> None:
        """End forwards, which may come back."""
        await self._forwards.close(job.key)

    async def sweep(self) -> bool:
        """Make and take away names that could not be before; whether there are still some."""
        for job in [*await self._rows.some(self._again), *await self._rows.left()]:
            async with self._lock(job):
                now = await self._rows.get(job.key)
                if now and now.active:
                    await self.resume(now)
                elif now:
                    with contextlib.suppress(LauncherError):
                        await self.disconnect(now)
        self._again &= {job.key for job in await self._rows.some(self._again)}
        return bool(self._again or await self._rows.left())

    def is_anybodys(self, job: UserJob) -> bool:
        """Whether everybody with an account may forward to its node."""
        return self.systems[job.hostname].reaches(str(job.target_node))

    def _still_theirs(self, job: UserJob) -> bool:
        return has_account(job.owner, self.systems[job.hostname], job.account)

    async def _refuse(self, job: UserJob, problem: str) -> None:
        if self._forwards.problem(job) != problem:
            await self._forwards.close(job.key)
            self._forwards.refuse(job, problem)
            self._changed()
