"""User jobs from their request to their end: jobs are submitted and cancelled, forwards come and go with them."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from ..errors import Forbidden, InvalidRequest, LauncherError, LimitReached, NotFound
from .connecting import Connecting
from .errors import AnswerLost, JobConflict, NoAccount
from .exposing import Exposure
from .forwards import Forwards
from .jobs import NOT_SUBMITTED, SUBMITTING, UNKNOWN, Slurm
from .reaching import gateway_to, slurm_of
from .requests import Submission, UserJobRequest, submission
from .rows import Forwarded, Rows, UserJob
from .systems import Owner, System, Systems, account_of
from .views import AllowedView, SystemView, UserJobView, job_view
from .watching import JobWatch

Result = TypeVar("Result")
_MOST_STREAMS = 20
"""That a user has at once."""


class UserJobs(LoggingConfigurable):
    """Starts, finds and ends user jobs."""

    timeout = Float(30, min=1, help="Seconds for a connection to a system, and for a command or request there.").tag(
        config=True, key="userjobs.timeout"
    )
    max_tail = Integer(65536, min=1, help="The most bytes of a job's output that are told.").tag(config=True)

    def __init__(self, rows: Rows, systems: Systems, forwards: Forwards, exposure: Exposure, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rows = rows
        self._configured = systems
        self._forwards = forwards
        self.watching = JobWatch(parent=self.parent, rows=rows)
        self._connecting = Connecting(rows, forwards, exposure, self.watching.bell.ring, self.lock)
        self._slurms: dict[str, Slurm] = {}
        self.busy: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._choosing = asyncio.Lock()
        self._locks: WeakValueDictionary[tuple[Owner, str], asyncio.Lock] = WeakValueDictionary()
        self._streams = Counter[Owner]()

    @property
    def systems(self) -> dict[str, System]:
        """By name."""
        return self._connecting.systems

    async def start(self) -> None:
        """Take up what was left: forwards are made again, at their ports, and jobs are looked after."""
        self._connecting.systems = self._configured.load()
        if self.systems:
            self._forwards.check()
        for name, system in self.systems.items():
            gateway = gateway_to(name, system, self.timeout)
            if gateway:
                self._connecting.gateways[name] = gateway
            slurm = slurm_of(system, gateway, self.timeout)
            if slurm:
                self._slurms[name] = slurm
        for job in await self._rows.active():
            if job.hostname in self.systems:
                await self._connecting.resume(job)
            else:
                self.log.warning("%s is left alone: there is no such system now", job)
        self.watching.start(self._slurms, self)

    async def stop(self) -> None:
        """End forwards, and what is being done; jobs go on."""
        await self.watching.stop()
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=5)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await self._forwards.close()
        for gateway in self._connecting.gateways.values():
            await gateway.close()

    # -- what is asked for

    async def create(self, owner: Owner, request: UserJobRequest, key: str | None = None) -> tuple[UserJob, bool]:
        """Forward to a node, or submit a job; goes on even if whoever asked goes away.

        Args:
            owner: whose it is.
            request: what is wanted.
            key: the same one again is the same request.

        Returns:
            It, and whether it is new.

        Raises:
            InvalidRequest: there is no such system, or nothing can be forwarded from it.
            Forbidden, NoAccount, PolicyDenied, LimitReached: it may not be had.
            JobConflict: there is one of that name.
            KeyReused: the key is that of another request.
            Temporary: no port is free, or the cluster does not answer.
            JobRefused: Slurm does not take it.
            SystemUnavailable: the system does not answer; nothing was done there.
            AnswerLost: it may have taken the job; whether it has, is to be seen after a while.

        """
        return await self._owned(self._create(owner, request, key))

    async def _create(self, owner: Owner, request: UserJobRequest, key: str | None) -> tuple[UserJob, bool]:
        system = self._system(request.hostname)
        account = account_of(owner, request.hostname, system)
        if request.ports and request.hostname not in self._connecting.gateways:
            raise InvalidRequest(
                f"Nothing can be forwarded from {request.hostname}: it is reached by slurmrestd alone."
            )
        asked = UserJob(
            owner.credential, owner.username, request.service, request.hostname, account, idempotency_key=key,
            forwards=tuple(Forwarded(*each, 0) for each in sorted(request.ports.items())),
            target_node=request.target_node, state=SUBMITTING if request.job else None, exposed=bool(request.ports),
        )  # fmt: skip
        wanted = submission(request.job, request.service, system, account, asked.marker) if request.job else None
        job = replace(asked, job=wanted.public() if wanted else None)
        if wanted is None:
            await self._check_node(job)
        async with self._busy(job):
            kept = await self._keep(job, system)
            if kept.key != job.key:
                return await self._again(kept), False
            return await self._begin(kept, wanted), True

    async def _keep(self, job: UserJob, system: System) -> UserJob:
        """The row, with ports of ours; or that of an earlier request that was the same."""
        same = await self._rows.find(job.owner, job.service)
        if same and job.repeats(same):
            return same
        if same and not same.active:
            await self._connecting.disconnect(same)
        async with self._choosing:
            ports = self._forwards.choose(len(job.forwards), await self._rows.local_ports(), job.owner)
            forwards = (replace(each, local=port) for each, port in zip(job.forwards, ports, strict=True))
            return await self._rows.begin(replace(job, forwards=tuple(forwards)), system)

    async def _again(self, job: UserJob) -> UserJob:
        """What an earlier request made, as it must be."""
        if job.forwards and job.active:
            await self._connecting.exposure.add(job)
            if job.job is None:
                await self._connecting.connect(job)
        return job

    async def _begin(self, job: UserJob, wanted: Submission | None) -> UserJob:
        """Do what was asked for; nothing is left of it if that can't be done."""
        try:
            if job.forwards:
                await self._connecting.exposure.add(job)
            if wanted is None:
                await self._connecting.connect(job)
                self.watching.expect(job.hostname)
                return job
            number = await self._slurms[job.hostname].submit(job.account, wanted)
        except BaseException as error:
            try:
                if isinstance(error, LauncherError) and not isinstance(error, AnswerLost):
                    await self._take_back(job)
            finally:
                self.watching.expect(job.hostname)  # whether Slurm has it, or something is left, will be seen
            raise
        return await self._submitted(job, number)

    async def _submitted(self, job: UserJob, number: int) -> UserJob:
        self.watching.expect(job.hostname)
        self.log.info("%s: job %i was submitted as %s", job, number, job.account)
        try:
            return await self._rows.submitted(job, number)
        except LauncherError as error:
            raise AnswerLost("The job was submitted, and will be seen here in a while.") from error

    async def _take_back(self, job: UserJob) -> None:
        """Leave nothing; what can't be taken away now is tried again later."""
        ended = {"state": NOT_SUBMITTED, "reason": "It could not be begun.", "ended": time.time()}
        gone = await self._rows.update(job, **ended)
        with contextlib.suppress(LauncherError):
            await self._connecting.disconnect(gone or job)
            await self._rows.forget(job.key)

    async def _check_node(self, job: UserJob) -> None:
        """Refuse a node that is not for everybody, and where none of the account's jobs runs.

        Raises:
            Forbidden: it is such a node.

        """
        if self.needs_job(job) and job.target_node not in await self.watching.nodes(job.hostname, job.account):
            raise Forbidden(
                f"{job.target_node} can't be forwarded to: no job of yours runs there on {job.hostname}.",
                reason="not_your_node",
            )

    async def all_of(self, owner: Owner) -> list[UserJob]:
        """All of somebody's, the newest first."""
        return await self._rows.of(owner)

    async def find(self, owner: Owner, service: str) -> UserJob:
        """Somebody's of that name.

        Raises:
            NotFound: there is none.

        """
        job = await self._rows.find(owner, service)
        if job is None:
            raise NotFound(f"You have no user job {service}.", reason="userjob_not_found")
        return job

    async def remove(self, owner: Owner, service: str, keep: bool = False) -> None:
        """Cancel a job, end its forwards, and forget it; goes on even if whoever asked goes away.

        Args:
            owner: whose it is.
            service: its name.
            keep: cancel a job that goes on, and forget nothing.

        Raises:
            NotFound: there is none of that name.
            JobConflict: it is not known yet whether Slurm has it.
            Forbidden, NoAccount: its owner has the account no longer.
            Temporary: it could not be cancelled, or its name is still in the cluster; it is there as before.

        """
        await self._owned(self._remove(owner, service, keep))

    async def _remove(self, owner: Owner, service: str, keep: bool) -> None:
        async with self._busy(await self.find(owner, service)):
            job = await self.find(owner, service)
            if job.state == SUBMITTING:
                raise JobConflict(
                    "It is not known yet whether Slurm has the job. Try again in a minute.", reason="userjob_submitting"
                )
            await self._cancel(job)
            if keep and job.job is not None:
                return  # Slurm will say how it ended
            await self._connecting.disconnect(job)
            await self._rows.forget(job.key)

    async def _cancel(self, job: UserJob) -> None:
        if job.job is None or job.job_id is None or not (job.active or job.state == UNKNOWN):
            return
        slurm = self._slurms.get(job.hostname)
        if slurm is None:
            self.log.warning("%s: job %i goes on; the system has no jobs any more", job, job.job_id)
            return
        self._check_account(job)
        await slurm.cancel(job.account, job.job_id)
        self.log.info("%s: job %i was cancelled", job, job.job_id)

    async def tail(self, job: UserJob, size: int) -> str | None:
        """The end of what a job has printed; None if that can't be had: it has not begun, or its file is not there.

        Raises:
            SystemUnavailable: the system does not answer.

        """
        gateway = self._connecting.gateways.get(job.hostname)
        if job.job is None or job.job_id is None or gateway is None:
            return None
        self._check_account(job)
        path = posixpath.normpath(job.job["output"].replace("%j", str(job.job_id)))
        done = await gateway.run(job.account, ["tail", f"--bytes={min(size, self.max_tail)}", "--", path])
        return None if done.status else done.stdout

    def problem(self, job: UserJob) -> str:
        """What is in the way: of the forwards, or of knowing how the job is."""
        if job.job is not None and job.active and (problem := self.watching.problem(job.hostname)):
            return problem
        return self._forwards.problem(job) or ""

    def view(self, job: UserJob) -> UserJobView:
        """As its owner is told."""
        return UserJobView(
            service=job.service,
            hostname=job.hostname,
            target_node=job.target_node,
            ports={str(forward.wanted): forward.remote for forward in job.forwards},
            addresses=self._connecting.exposure.addresses(job) if job.active else {},
            forwarding=job.connects and self._forwards.problem(job) == "",
            problem=self.problem(job),
            created=datetime.fromtimestamp(job.created, UTC),
            job=job_view(job),
        )

    def systems_of(self, owner: Owner) -> list[SystemView]:
        """The systems where somebody has an account, and what they may ask for there."""
        found = []
        for name, system in self.systems.items():
            with contextlib.suppress(NoAccount):
                view = SystemView(
                    name=name,
                    account=account_of(owner, name, system),
                    jobs=bool(system.allowed.partitions),
                    forwards=name in self._connecting.gateways,
                    allowed=AllowedView(**system.allowed.model_dump()),
                    max_jobs=system.max_jobs,
                    max_ports=system.max_ports,
                    problem=self.watching.problem(name),
                )
                found.append(view)
        return found

    async def follow(self, owner: Owner, service: str) -> AsyncGenerator[UserJobView, None]:
        """How a user job is, now and whenever that changes, until it has ended or is gone.

        Raises:
            NotFound: there is none of that name.

        """
        told = None
        job: UserJob | None = await self.find(owner, service)
        with self._streaming(owner):
            while job:
                rung = self.watching.bell.listen()
                job = await self._rows.get(job.key)
                if job is None:
                    return
                view = self.view(job)
                if view != told:
                    told = view
                    yield view
                if not job.active:
                    return
                await rung.wait()

    async def follow_all(self, owner: Owner) -> AsyncGenerator[list[UserJobView], None]:
        """All of somebody's, the newest first, now and whenever something of them changes; it does not end."""
        told = None
        with self._streaming(owner):
            while True:
                rung = self.watching.bell.listen()
                views = [self.view(job) for job in await self.all_of(owner)]
                if views != told:
                    told = views
                    yield views
                await rung.wait()

    @contextlib.contextmanager
    def _streaming(self, owner: Owner) -> Iterator[None]:
        """One more follows, of whom there are not too many: each looks whenever something changes.

        Raises:
            LimitReached: there are too many.

        """
        if self._streams[owner] >= _MOST_STREAMS:
            raise LimitReached(f"You have {_MOST_STREAMS} streams of user jobs. End some, or take the one of all.")
        self._streams[owner] += 1
        try:
            yield
        finally:
            self._streams[owner] -= 1
            if not self._streams[owner]:
                del self._streams[owner]

    # -- what the watch tells

    def needs_job(self, job: UserJob) -> bool:
        """Whether a forward without a job may be there only while a job of its account runs on the node."""
        return not self._connecting.is_anybodys(job)

    async def changed(self, job: UserJob) -> None:
        """Slurm has said something new of a job."""
        if job.connects:
            await self._connecting.resume(job)
        elif job.active:
            await self._connecting.close(job)  # it does not run now; requeued, it may run elsewhere next
        else:
            with contextlib.suppress(LauncherError):  # `sweep` tries it again
                await self._connecting.disconnect(job)

    async def recheck(self, job: UserJob, nodes: set[str]) -> None:
        """Jobs of the account that a forward without a job has run on these nodes."""
        await self._connecting.recheck(job, nodes)

    async def sweep(self) -> bool:
        """Try again what could not be done before."""
        return await self._connecting.sweep()

    # -- how

    def _system(self, name: str) -> System:
        system = self.systems.get(name)
        if system is None:
            raise InvalidRequest(
                f"There is no system {name}." if name.isprintable() else "There is no such system.",
                details={"fields": [{"field": "hostname", "problem": "is not a system's name"}]},
            )
        return system

    def _check_account(self, job: UserJob) -> None:
        """Refuse what would be done with an account that its owner has no longer."""
        if account_of(job.owner, job.hostname, self._system(job.hostname)) != job.account:
            raise Forbidden(f"Your account on {job.hostname} is another now.", reason="no_account")

    def lock(self, job: UserJob) -> asyncio.Lock:
        """Under which all of that name are changed."""
        return self._locks.setdefault((job.owner, job.service), asyncio.Lock())

    @contextlib.asynccontextmanager
    async def _busy(self, job: UserJob) -> AsyncIterator[None]:
        """Alone with it; the watch leaves it alone meanwhile, and whoever follows looks again at the end."""
        async with self.lock(job):
            self.busy.add(job.key)
            try:
                yield
            finally:
                self.busy.discard(job.key)
                self.watching.bell.ring()

    async def _owned(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work that nobody but us cuts short."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it
