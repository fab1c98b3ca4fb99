"""How jobs are: one query of a system's Slurm in each interval, however many jobs there are and whoever asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from traitlets import Float
from traitlets.config import LoggingConfigurable

from ..bell import Bell
from ..errors import LauncherError
from .errors import SystemUnavailable
from .jobs import NOT_SUBMITTED, SUBMITTING, UNKNOWN, JobStatus, Slurm, hosts
from .rows import Rows, UserJob

_LONGEST_DELAY = 120
"""Seconds between two queries of a Slurm that does not answer."""


class JobWatch(LoggingConfigurable):
    """Follows the jobs of all systems."""

    interval = Float(
        10, min=0.1, help="Seconds between two queries of a system's Slurm, while somebody has a job there."
    ).tag(config=True, key="userjobs.interval")
    lost_grace = Float(
        60, min=0, help="Seconds after which a job that Slurm does not list was not submitted, or is forgotten there."
    ).tag(config=True)
    ended_retention = Float(7 * 86400, min=0, help="Seconds for which a job that has ended can be looked at.").tag(
        config=True, key="userjobs.ended_retention"
    )

    def __init__(self, rows: Rows, changed: Callable[[UserJob], Awaitable[None]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.changed = changed
        self._watches: dict[str, _Watch] = {}
        self.bell = Bell()
        """Rings when a job has changed."""

    def start(self, systems: dict[str, Slurm]) -> None:
        """Begin to look after these."""
        for name, slurm in systems.items():
            self._watches[name] = watch = _Watch(name, slurm, self)
            watch.task = asyncio.create_task(watch.run(), name=f"jobs of {name}")

    async def stop(self) -> None:
        """Look no more."""
        tasks = [watch.task for watch in self._watches.values() if watch.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expect(self, name: str) -> None:
        """There is a job to look after."""
        self._watches[name].wanted.set()

    def problem(self, name: str) -> str:
        """Why it is not known how a system's jobs are; "" if it is."""
        watch = self._watches.get(name)
        return watch.problem if watch else ""

    async def nodes(self, name: str, account: str) -> set[str]:
        """The nodes where jobs of an account run, by a query that others share.

        Raises:
            SystemUnavailable: Slurm does not answer.

        """
        watch = self._watches.get(name)
        if watch is None:
            return set()
        found = await watch.look_for(account)
        return {node for job in found if job.account == account and job.state == "RUNNING" for node in hosts(job.nodes)}

    async def jobs_of(self, name: str) -> list[UserJob]:
        """Of a system, those that go on."""
        await self.rows.forget_ended(time.time() - self.ended_retention)
        return [job for job in await self.rows.active(name) if job.job is not None]


class _Watch:
    """Of one system."""

    def __init__(self, name: str, slurm: Slurm, watching: JobWatch) -> None:
        self.wanted = asyncio.Event()
        self.wanted.set()  # there may be jobs of before
        self.problem = ""
        self.task: asyncio.Task[None] | None = None
        self._name = name
        self._slurm = slurm
        self._watching = watching
        self._asking: set[str] = set()
        self._answers: asyncio.Future[list[JobStatus]] | None = None
        self._last: tuple[float, set[str], list[JobStatus]] = (0, set(), [])
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Look, and sleep while there is nobody to look for."""
        delay = self._watching.interval
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            try:
                if await self._look():
                    self.wanted.set()
                delay = self._watching.interval
            except Exception as error:
                self._failed(error)
                self.wanted.set()
                delay = min(delay * 2, max(_LONGEST_DELAY, self._watching.interval))
            await asyncio.sleep(delay)

    async def look_for(self, account: str) -> list[JobStatus]:
        """What Slurm says of this account: its last answer if that is fresh, else the next one."""
        when, accounts, found = self._last
        if account in accounts and time.monotonic() - when < self._watching.interval:
            return found
        self._asking.add(account)
        if self._answers is None:
            self._answers = asyncio.get_running_loop().create_future()
        self.wanted.set()
        return await asyncio.shield(self._answers)

    async def _look(self) -> bool:
        """Look once; whether there are jobs that go on."""
        jobs = await self._watching.jobs_of(self._name)
        accounts, self._asking = {job.account for job in jobs} | self._asking, set()
        answers, self._answers = self._answers, None
        if not accounts:
            return False
        asked = time.time()
        try:
            found = await self._slurm.jobs(accounts)
        except BaseException as error:
            if answers:
                known = isinstance(error, LauncherError)
                answers.set_exception(error if known else SystemUnavailable("Slurm was not asked."))
                answers.exception()  # whoever waits hears of it
            raise
        self._last = time.monotonic(), accounts, found
        if answers:
            answers.set_result(found)
        if self.problem:
            self._watching.log.warning("Slurm on %s answers again", self._name)
            self.problem = ""
            self._watching.bell.ring()
        await self._judge(jobs, found, asked)
        return bool(jobs)

    async def _judge(self, jobs: list[UserJob], found: list[JobStatus], asked: float) -> None:
        """Write down how jobs are that went on when Slurm was asked."""
        by_id = {status.id: status for status in found}
        by_marker = {status.marker: status for status in found if status.marker}
        missing, rings = {}, False
        for job in jobs:
            status = by_marker.get(job.marker) if job.job_id is None else by_id.get(job.job_id)
            if status and status.account == job.account:
                values = _values(status)
            else:  # a list may be from before it, or have a gap
                missing[job.key] = since = self._missing.get(job.key, asked)
                if asked - since < self._watching.lost_grace:
                    continue
                values = _lost(job)
            rings |= await self._write(job, values)
        self._missing = missing
        if rings:
            self._watching.bell.ring()

    async def _write(self, job: UserJob, values: dict[str, Any]) -> bool:
        """Write down how a job is; whether that is new."""
        if all(getattr(job, name) == value for name, value in values.items()):
            return False
        changed = await self._watching.rows.update(job, **values)
        if changed:
            self._watching.log.info("%s: job %s is %s (before: %s)", changed, changed.job_id, changed.state, job.state)
            await self._watching.changed(changed)
        return changed is not None

    def _failed(self, error: Exception) -> None:
        message = error.message if isinstance(error, LauncherError) else "Its jobs can't be looked at."
        if isinstance(error, LauncherError):
            if message != self.problem:
                self._watching.log.error("How the jobs on %s are is not known: %s", self._name, message)
        else:
            self._watching.log.exception("The jobs on %s can't be looked at", self._name)
        self.problem = message
        self._watching.bell.ring()


def _values(status: JobStatus) -> dict[str, Any]:
    return {
        "job_id": status.id,
        "state": status.state,
        "reason": status.reason,
        "target_node": status.node,
        "exit_code": status.exit_code,
        "signal": status.signal,
        "started": status.started,
        "ended": (status.ended or time.time()) if status.final else None,
    }


def _lost(job: UserJob) -> dict[str, Any]:
    if job.state == SUBMITTING:
        state, reason = NOT_SUBMITTED, "Slurm's answer was lost, and it has no such job."
    else:
        state, reason = UNKNOWN, "Slurm knows it no longer; it ended while nobody looked."
    return {"state": state, "reason": reason, "ended": time.time()}
