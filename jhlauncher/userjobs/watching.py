"""How jobs are: one query of a system's Slurm in each interval, however many jobs there are and whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from traitlets import Float
from traitlets.config import LoggingConfigurable

from ..bell import Bell
from ..errors import LauncherError
from .errors import SystemUnavailable
from .jobs import MISSED, NOT_SUBMITTED, SUBMITTING, UNKNOWN, UNREADABLE, JobStatus, Slurm, hosts
from .rows import Rows, UserJob

_LONGEST_DELAY = 120
"""Seconds between two queries of a Slurm that does not answer."""
_LONGEST_REST = 3600
"""Seconds after which what has ended long ago is forgotten, though nobody has a job."""
_MISSED_FOR = 3600
"""Seconds for which a job that Slurm did not know is still looked for."""


class Follower(Protocol):
    """Who is told how user jobs are."""

    busy: set[str]
    """Keys of those that are being submitted or removed, and are left alone meanwhile."""

    def lock(self, job: UserJob) -> AbstractAsyncContextManager[None]:
        """Under which one is changed."""

    def needs_job(self, job: UserJob) -> bool:
        """Whether a forward without a job may be there only while a job of its account runs on the node."""

    async def changed(self, job: UserJob) -> None:
        """A job has changed."""

    async def recheck(self, job: UserJob, nodes: set[str]) -> None:
        """Jobs of the account that a forward without a job has run on these nodes."""

    async def sweep(self) -> bool:
        """Try again what could not be done elsewhere before; whether there is still something to try."""


class JobWatch(LoggingConfigurable):
    """Follows the jobs of all systems."""

    interval = Float(
        10, min=0.1, help="Seconds between two queries of a system's Slurm, while somebody has a job there."
    ).tag(config=True, key="userjobs.interval")
    lost_grace = Float(
        120, min=0, help="Seconds after which a job that Slurm does not list was not submitted, or is forgotten there."
    ).tag(config=True)
    ended_retention = Float(
        7 * 86400, min=0, help="Seconds for which a job that has ended can be looked at; of a user's, the newest 100."
    ).tag(config=True, key="userjobs.ended_retention")

    def __init__(self, rows: Rows, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self._watches: dict[str, _Watch] = {}
        self.bell = Bell()
        """Rings when a user job has changed."""

    def start(self, systems: dict[str, Slurm], follower: Follower) -> None:
        """Begin to look after these."""
        for name, slurm in systems.items():
            self._watches[name] = watch = _Watch(name, slurm, self, follower)
            watch.task = asyncio.create_task(watch.run(), name=f"jobs of {name}")

    async def stop(self) -> None:
        """Look no more."""
        tasks = [watch.task for watch in self._watches.values() if watch.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expect(self, name: str) -> None:
        """There is something to look after."""
        if name in self._watches:
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
        return _nodes(await watch.look_for(account), account) if watch else set()


class _Watch:
    """Of one system."""

    def __init__(self, name: str, slurm: Slurm, watching: JobWatch, follower: Follower) -> None:
        self.wanted = asyncio.Event()
        self.wanted.set()  # there may be jobs of before
        self.problem = ""
        self.task: asyncio.Task[None] | None = None
        self._name = name
        self._slurm = slurm
        self._watching = watching
        self._follower = follower
        self._asking: set[str] = set()
        self._answers: asyncio.Future[list[JobStatus]] | None = None
        self._last: tuple[float, set[str], list[JobStatus]] = (0, set(), [])
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Look, and sleep while there is nobody to look for."""
        delay = self._watching.interval
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_REST):
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
        finally:
            self._answer(SystemUnavailable("The service is stopping."))

    async def look_for(self, account: str) -> list[JobStatus]:
        """What Slurm says of this account: its last answer if that is fresh, else the next one.

        Raises:
            SystemUnavailable: Slurm does not answer.

        """
        while True:  # an answer that comes may have been asked for before, without this account
            when, accounts, found = self._last
            if account in accounts and time.monotonic() - when < self._watching.interval:
                return found
            if self.problem:
                raise SystemUnavailable(self.problem)
            self._asking.add(account)
            if self._answers is None:
                self._answers = asyncio.get_running_loop().create_future()
            self.wanted.set()
            await asyncio.shield(self._answers)

    def _answer(self, answer: list[JobStatus] | LauncherError) -> None:
        """Tell those who wait."""
        answers, self._answers = self._answers, None
        if answers is None:
            return
        if isinstance(answer, LauncherError):
            answers.set_exception(answer)
            answers.exception()  # whoever waits hears of it
        else:
            answers.set_result(answer)

    async def _look(self) -> bool:
        """Look once; whether there is something to look after."""
        await self._watching.rows.forget_ended(time.time() - self._watching.ended_retention)
        left = await self._follower.sweep()
        active = await self._watching.rows.active(self._name)
        missed = await self._watching.rows.missed(self._name, time.time() - _MISSED_FOR)
        jobs = [job for job in active if job.job is not None] + missed
        forwards = [job for job in active if job.job is None and self._follower.needs_job(job)]
        accounts, self._asking = {job.account for job in jobs + forwards} | self._asking, set()
        if not accounts:
            self.problem = ""
            return left
        asked = time.monotonic()
        found = await self._slurm.jobs(accounts)
        self._last = time.monotonic(), accounts, found
        self._answer(found)
        if self.problem:
            self._watching.log.warning("Slurm on %s answers again", self._name)
            self.problem = ""
            self._watching.bell.ring()
        await self._judge(jobs, found, asked)
        for job in forwards:
            await self._recheck(job, _nodes(found, job.account))
        return bool(jobs or forwards or left)

    async def _recheck(self, job: UserJob, nodes: set[str]) -> None:
        async with self._follower.lock(job):
            if await self._watching.rows.get(job.key):  # it may have been removed meanwhile
                await self._follower.recheck(job, nodes)

    async def _judge(self, jobs: list[UserJob], found: list[JobStatus], asked: float) -> None:
        """Write down how jobs are that were there when Slurm was asked."""
        by_id = {status.id: status for status in found}
        by_marker = {(status.account, status.marker): status for status in found}
        before, self._missing = self._missing, {}
        rings = False
        for job in jobs:
            marker = job.account, job.marker
            status = by_marker.get(marker) if job.job_id is None else by_id.get(job.job_id)
            try:
                rings |= await self._judge_one(job, status, asked, before.get(job.key, asked))
            except LauncherError:
                raise
            except Exception:
                self._watching.log.exception("How %s is can't be written down", job)
        if rings:
            self._watching.bell.ring()

    async def _judge_one(self, job: UserJob, status: JobStatus | None, asked: float, since: float) -> bool:
        """Write down how a job is; whether that is new."""
        if job.key in self._follower.busy or (status and (status.state == UNREADABLE or not status.account)):
            return False
        if status and status.account == job.account:
            return await self._write(job, _values(status))
        if job.state in MISSED:
            return False
        self._missing[job.key] = since  # a list may be from before it, or have a gap
        return asked - since >= self._watching.lost_grace and await self._write(job, _lost(job))

    async def _write(self, job: UserJob, values: dict[str, Any]) -> bool:
        if all(getattr(job, name) == value for name, value in values.items()):
            return False
        async with self._follower.lock(job):
            changed = await self._watching.rows.update(job, **values)
            if changed:
                log = self._watching.log
                log.info("%s: job %s is %s (before: %s)", changed, changed.job_id, changed.state, job.state)
                await self._follower.changed(changed)
        return changed is not None

    def _failed(self, error: Exception) -> None:
        what = "its Slurm does not answer as it should" if isinstance(error, SystemUnavailable) else "we could not look"
        problem = f"The state of jobs on {self._name} is unknown at the moment: {what}."
        if not isinstance(error, LauncherError):
            self._watching.log.exception("The jobs on %s can't be looked at", self._name)
        elif not self.problem:
            self._watching.log.error("How the jobs on %s are is not known: %s", self._name, error.message)
        self.problem = problem
        self._answer(SystemUnavailable(problem))
        self._watching.bell.ring()


def _nodes(found: list[JobStatus], account: str) -> set[str]:
    """Where jobs of an account run."""
    return {node for job in found if job.account == account and job.state == "RUNNING" for node in hosts(job.nodes)}


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
