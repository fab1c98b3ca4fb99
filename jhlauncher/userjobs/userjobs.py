"""User jobs from their request to their end: jobs are submitted and cancelled, forwards come and go with them."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from ..errors import Forbidden, InvalidRequest, LauncherError, NotFound
from .commands import Commands
from .errors import AnswerLost, JobConflict, NoAccount
from .exposing import Exposure
from .forwards import Forwards
from .gateway import Gateway
from .jobs import SUBMITTING, Slurm
from .local import LocalGateway
from .requests import Submission, UserJobRequest, submission
from .rows import Forwarded, Rows, UserJob
from .slurmrestd import Rest
from .systems import Owner, System, Systems, account_of
from .views import AllowedView, SystemView, UserJobView, job_view
from .watching import JobWatch

Result = TypeVar("Result")


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
        self.systems: dict[str, System] = {}
        self._forwards = forwards
        self._exposure = exposure
        self.watching = JobWatch(parent=self.parent, rows=rows, changed=self._follow)
        self._gateways: dict[str, Gateway] = {}
        self._slurms: dict[str, Slurm] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._choosing = asyncio.Lock()
        self._locks: WeakValueDictionary[tuple[Owner, str], asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Take up what was left: forwards are made again, at their ports, and jobs are looked after."""
        self.systems = self._configured.load()
        for name, system in self.systems.items():
            gateway = _gateway(name, system, self.timeout)
            if gateway:
                self._gateways[name] = gateway
            slurm = _slurm(system, gateway, self.timeout)
            if slurm:
                self._slurms[name] = slurm
        for job in await self._rows.active():
            if job.hostname in self.systems:
                self._connect(job)
            else:
                self.log.warning("%s is left alone: there is no such system now", job)
        self.watching.start(self._slurms)

    async def stop(self) -> None:
        """End forwards, and what is being done; jobs go on."""
        await self.watching.stop()
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=5)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await self._forwards.close()
        for gateway in self._gateways.values():
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
            NoAccount, PolicyDenied, LimitReached: it may not be had.
            JobConflict: there is one of that name.
            JobRefused: Slurm does not take it.
            SystemUnavailable: the system does not answer; nothing was done there.
            AnswerLost: it may have taken the job; whether it has, is to be seen after a while.

        """
        return await self._owned(self._create(owner, request, key))

    async def _create(self, owner: Owner, request: UserJobRequest, key: str | None) -> tuple[UserJob, bool]:
        system = self._system(request.hostname)
        account = account_of(owner, request.hostname, system)
        ports = sorted(request.ports.items())
        if ports and request.hostname not in self._gateways:
            raise InvalidRequest(
                f"Nothing can be forwarded from {request.hostname}: it is reached by slurmrestd alone."
            )
        job = UserJob(
            owner.credential, owner.username, request.service, request.hostname, account, idempotency_key=key,
            target_node=request.target_node, state=SUBMITTING if request.job else None,
        )  # fmt: skip
        wanted = submission(request.job, request.service, system, account, job.marker) if request.job else None
        if wanted is None:
            await self._check_node(job, system)
        async with self._lock(owner, request.service):
            kept = await self._keep(job, ports, wanted, system)
            if kept.key != job.key:
                return kept, False
            try:
                await self._exposure.add(kept)
                return await self._submit(kept, wanted) if wanted else self._connect(kept), True
            except AnswerLost:
                self.watching.expect(kept.hostname)
                raise
            except LauncherError:
                await self._take_back(kept)
                raise

    async def _keep(
        self, job: UserJob, ports: list[tuple[int, int]], wanted: Submission | None, system: System
    ) -> UserJob:
        """The row, with ports of ours; or that of an earlier request that was the same."""
        async with self._choosing:
            chosen = self._forwards.choose(len(ports), await self._rows.local_ports())
            forwards = tuple(Forwarded(*each, local) for each, local in zip(ports, chosen, strict=True))
            full = replace(job, forwards=forwards, job=wanted.public() if wanted else None)
            kept, replaced = await self._rows.begin(full, system)
        for old in replaced:
            await self._disconnect(old)
        return kept

    async def _check_node(self, job: UserJob, system: System) -> None:
        """Refuse a node that is not for everybody, and where none of the account's jobs runs.

        Raises:
            Forbidden: it is such a node.

        """
        node = str(job.target_node)
        if not system.reaches(node) and node not in await self.watching.nodes(job.hostname, job.account):
            raise Forbidden(
                f"{node} can't be forwarded to: no job of yours runs there on {job.hostname}.", reason="not_your_node"
            )

    async def _submit(self, job: UserJob, wanted: Submission) -> UserJob:
        number = await self._slurms[job.hostname].submit(job.account, wanted)
        self.log.info("%s: job %i was submitted as %s", job, number, job.account)
        kept = await self._rows.submitted(job, number)
        self.watching.expect(job.hostname)
        return kept

    async def _take_back(self, job: UserJob) -> None:
        with contextlib.suppress(LauncherError):
            await self._disconnect(job)
        await self._rows.forget(job.key)

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
            raise NotFound("Not found.")
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
            SystemUnavailable: it could not be cancelled, and is still there.

        """
        await self._owned(self._remove(owner, service, keep))

    async def _remove(self, owner: Owner, service: str, keep: bool) -> None:
        async with self._lock(owner, service):
            job = await self.find(owner, service)
            if job.state == SUBMITTING:
                raise JobConflict(
                    "It is not known yet whether Slurm has the job. Try again in a minute.", reason="userjob_submitting"
                )
            await self._cancel(job)
            if keep and job.job is not None:
                return  # Slurm will say how it ended
            await self._disconnect(job)
            await self._rows.forget(job.key)

    async def _cancel(self, job: UserJob) -> None:
        if job.job is None or job.job_id is None or not job.active:
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
        gateway = self._gateways.get(job.hostname)
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
            addresses=self._exposure.addresses(job) if job.active else {},
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
                    forwards=name in self._gateways,
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
        while True:
            rung = self.watching.bell.listen()
            views = [self.view(job) for job in await self.all_of(owner)]
            if views != told:
                told = views
                yield views
            await rung.wait()

    # -- how

    async def _follow(self, job: UserJob) -> None:
        """Slurm has said something new of a job."""
        if job.connects:
            self._connect(job)
        elif not job.active:
            try:
                await self._disconnect(job)
            except LauncherError as error:
                self.log.error("Something of %s is left: %s", job, error.message)
        elif job.forwards:
            await self._forwards.close(job.key)  # it was requeued, and may run elsewhere next

    def _connect(self, job: UserJob) -> UserJob:
        gateway = self._gateways.get(job.hostname)
        if job.connects and gateway:
            self._forwards.open(job, gateway, self.watching.bell.ring)
        return job

    async def _disconnect(self, job: UserJob) -> None:
        await self._forwards.close(job.key)
        if job.forwards:
            await self._exposure.remove(job)

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

    def _lock(self, owner: Owner, service: str) -> asyncio.Lock:
        return self._locks.setdefault((owner, service), asyncio.Lock())

    async def _owned(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work that nobody but us cuts short."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self.watching.bell.ring()  # there is one more, or one less
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it


def _gateway(name: str, system: System, timeout: float) -> Gateway | None:
    if system.local:
        return LocalGateway(timeout)
    if system.ssh is None:
        return None
    from .ssh import SshGateway  # asyncssh is installed for those that need it

    return SshGateway(name, system.ssh, timeout)


def _slurm(system: System, gateway: Gateway | None, timeout: float) -> Slurm | None:
    if not system.query_account:
        return None
    if system.slurmrestd:
        return Rest(system.slurmrestd, system.query_account, timeout)
    return Commands(gateway, system.bin, system.query_account) if gateway else None
