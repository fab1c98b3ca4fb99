"""Sees launches through to their end, one replica's share of them; what is to be done is in the store.

Whatever dies in between - this process, the Hub, the database - the next round finds the launch where the store has
it, and goes on: a start is looked for at the Hub before it is sent again, an end is told once it is certain.

What wakes a round: a launch was accepted or has ended (`store.QUEUE`), one is due, the Hub may take more, and the
replica's own sign of life.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from traitlets import Float
from traitlets.config import LoggingConfigurable

from .errors import (
    HubRefused,
    HubUnavailable,
    LauncherError,
    LaunchFailed,
    ServerConflict,
    StopFailed,
    StoreUnavailable,
)
from .feed import Feed
from .hub import Hub
from .models import LaunchSpec, ProgressEvent
from .queue import Pace, StartBound
from .records import FINAL, LaunchRecord, State, new_id
from .signing import BadSignature, Signer
from .starting import Launch, Starter, Throttled, cancelled, is_ours, name_of, title_of
from .stopping import Stopper
from .store import QUEUE, STOP, Store

Result = TypeVar("Result")

LIFETIME = "lifetime"
"""Who ends a launch whose time is over."""
AWAY = "JupyterHub can't be reached; waiting for it"


class Superseded(Exception):
    """Another process has taken this one's place at the database."""


class _Job:
    """A launch that this replica works on."""

    def __init__(self, record: LaunchRecord, resumed: bool) -> None:
        self.record = record
        self.resumed = resumed
        """Others, or this process before, may have begun with it."""
        self.launch = Launch(record.username, record.server_name, record.spec, record.id)
        self.task: asyncio.Task[None] | None = None
        self.stopping = bool(record.stop_by)
        """Somebody wants it to end."""
        self.stop_seen = False
        self.error: LauncherError | None = None
        """Why it has failed."""
        self.reached = -1
        """Per cent of the latest event."""
        self.said = ""
        self.phase = ""
        self.since = 0.0


class Worker(LoggingConfigurable):
    """Works on launches."""

    lifetime_warning = Float(
        300, min=0, help="Seconds before a server's time is over that its events say so; at most a tenth of its time."
    ).tag(config=True)
    reconcile_interval = Float(
        300,
        min=1,
        help="""Seconds between two looks at which servers the Hub has, in case the end of one was not heard of.

        The spawner tells the launcher when a server has ended; this is for what gets lost.
        """,
    ).tag(config=True)

    def __init__(
        self,
        hub: Hub,
        store: Store,
        feed: Feed,
        bound: StartBound,
        pace: Pace,
        starter: Starter,
        stopper: Stopper,
        signer: Signer,
        *,
        start_timeout: float,
        token_lifetime: int,
        measure: Callable[[str, float], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._store = store
        self._feed = feed
        self._bound = bound
        self._pace = pace
        self._starter = starter
        self._stopper = stopper
        self._signer = signer
        self.start_timeout = start_timeout
        self.token_lifetime = token_lifetime
        self._measure = measure
        self.replica = new_id()
        self._jobs: dict[str, _Job] = {}
        self._wake = asyncio.Event()
        self._hub_is_away = False
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._outage: asyncio.Task[None] | None = None
        self.superseded = asyncio.Event()
        """Set when another process has taken this one's place."""

    # -- start and stop

    async def start(self) -> None:
        """Take up what there is, and work from now on."""
        self._signer.seal("")  # the first time is slow
        self._store.database.on_change(self._changed, self._wake.set)
        await self._store.join(self.replica)
        self._wake.set()
        for work in (self._rounds, self._signs_of_life, self._reconciling):
            self._tasks.append(asyncio.create_task(work(), name=work.__name__.strip("_")))

    async def stop(self) -> None:
        """Leave everything where it is, for others or the next process to go on with."""
        self._closing = True
        jobs = [job.task for job in self._jobs.values() if job.task]
        await self._cancelled([*self._tasks, *jobs, *([self._outage] if self._outage else [])])
        with contextlib.suppress(StoreUnavailable):
            await self._store.leave(self.replica)

    async def _cancelled(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- rounds

    def _changed(self, topic: str) -> None:
        if topic == QUEUE:
            self._wake.set()
        elif topic.startswith(STOP):
            self._interrupt(topic.removeprefix(STOP))
            self._wake.set()

    def _interrupt(self, launch: str) -> None:
        """Somebody wants this launch to end."""
        job = self._jobs.get(launch)
        if job and not job.stopping:
            job.stopping = True
            if job.task:
                job.task.cancel()

    async def _rounds(self) -> None:
        while True:
            await self._sleep_until_woken()
            try:
                await self._round()
            except StoreUnavailable:
                self._wake.set()  # it has waited long enough already
            except Exception:
                self.log.exception("A round of the worker failed")
                await asyncio.sleep(1)
                self._wake.set()

    async def _sleep_until_woken(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            due = await self._store.next_due()
            until_due = math.inf if due is None else max(0.0, due - time.time())
            seconds = min(until_due, self._bound.rises_in)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if seconds == math.inf else seconds)
        self._wake.clear()

    async def _round(self) -> None:
        await self._settle_due()
        if not self._hub_is_away:
            await self._store.take_over(self.replica)
        most = 0 if self._hub_is_away else self._bound.current()
        known = set(self._jobs)  # before asking: what ends meanwhile may still be in the answer
        records, fresh = await self._store.claim(self.replica, most)
        for record in records:
            if record.id not in known:
                self._take_up(record, resumed=record.id not in fresh)
            elif record.stop_by:  # in case that was not heard
                self._interrupt(record.id)

    def _take_up(self, record: LaunchRecord, resumed: bool) -> None:
        job = self._jobs[record.id] = _Job(record, resumed)
        job.task = asyncio.create_task(self._owned(job), name=f"launch {record.id}")
        job.task.add_done_callback(lambda task: self._done(record.id, task))

    def _done(self, launch: str, task: asyncio.Task[None]) -> None:
        self._jobs.pop(launch, None)
        if not task.cancelled() and task.exception():  # the next sign of life takes it up again
            self.log.error("Launch %s: a bug", launch, exc_info=task.exception())
        else:
            self._wake.set()

    async def _settle_due(self) -> None:
        """Expire what has waited too long, warn of the end of a lifetime, and have it come."""
        now = time.time()
        for record in await self._store.due(now):
            if record.state == "queued":
                error = self._no_turn(record).as_dict()
                await self._store.change(record.id, "expired", error, unless=(*FINAL, "starting", "ready"), error=error)
            elif record.state == "ready" and record.lifetime and record.ready:
                end = record.ready + record.lifetime
                if now < end and not record.warned:
                    await self._store.warn(record.id, end)
                elif now >= end:
                    await self._store.set_values(record.id, due=None)
                    await self._store.ask_to_stop(record.id, LIFETIME)
            else:
                await self._store.set_values(record.id, due=None)

    def _no_turn(self, record: LaunchRecord) -> LauncherError:
        server, seconds = name_of(record.username, record.server_name), time.time() - record.created
        if self._hub_is_away:
            return HubUnavailable(f"JupyterHub could not be reached for {seconds:.0f} seconds to start {server}.")
        if self._bound.rises_in < math.inf:
            return LaunchFailed(
                f"JupyterHub was too busy for {seconds:.0f} seconds to start {server}.", reason="throttled"
            )
        text = f"There was no turn within {seconds:.0f} seconds for {server}. Try again later."
        return LaunchFailed(text, reason="queue_timeout")

    async def _signs_of_life(self) -> None:
        """Keep what we hold; let it go when others have it."""
        purged = -math.inf
        while True:
            await asyncio.sleep(self._store.lease_timeout / 3)
            with contextlib.suppress(StoreUnavailable):
                if not await self._store.alive(self.replica):
                    await self._superseded()
                if time.monotonic() > purged + 3600:
                    purged = time.monotonic()
                    await self._store.purge()
            self._wake.set()  # somebody else may have died

    async def _superseded(self) -> None:
        self._closing = True
        await self._cancelled([job.task for job in self._jobs.values() if job.task])
        self._closing = False
        if self._store.database.on_sqlite and await self._store.replicas():
            self.log.error("Another jhlauncher uses the database %s; this one ends.", self._store.database.label)
            self.superseded.set()
            await asyncio.Event().wait()
        self.log.warning("This replica gave no sign of life for too long; others have its launches. It begins anew.")
        self.replica = new_id()
        await self._store.join(self.replica)

    # -- a launch

    async def _owned(self, job: _Job) -> None:
        """Work on a launch, and leave no request behind."""
        try:
            await self._work_on(job)
        finally:
            if job.launch.request:
                job.launch.request.cancel()
                await asyncio.gather(job.launch.request, return_exceptions=True)

    async def _work_on(self, job: _Job) -> None:
        """Bring a launch to where nothing is to be done, whatever is away meanwhile."""
        while True:
            try:
                return await self._step(job)
            except asyncio.CancelledError:
                if self._closing or not job.stopping or job.stop_seen:
                    raise
                job.stop_seen = True
                job.task.uncancel()  # type: ignore[union-attr]
            except HubUnavailable as error:
                self.log.warning("Launch %s waits for JupyterHub: %s", job.record.id, error.message)
                job.resumed = True
                await self._tell(job, AWAY)
                await self._wait_for_hub()

    async def _step(self, job: _Job) -> None:
        """What is to be done about a launch."""
        if job.record.state == "ready":
            return await self._end(job)
        if job.stopping:
            return await self._cancel(job)
        if not job.error:
            try:
                return await self._see_through(job)
            except HubUnavailable:
                raise
            except HubRefused as error:
                if not await self._is_accepted():
                    return await self._let_go(job, error)
                job.error = error
            except LauncherError as error:
                job.error = error
            except Exception:
                self.log.exception("Launch %s: a bug", job.record.id)
                job.error = LauncherError("The launcher has failed; its log tells why.")
        return await self._fail(job, job.error)

    async def _see_through(self, job: _Job) -> None:
        """Start the server; the launch is ready or failed then, or waits again."""
        launch, record = job.launch, job.record
        begun = time.monotonic()
        try:
            launch.spec = self._with_env(record)
            async with asyncio.timeout(self.start_timeout):
                server = await self._starter.start(launch, lambda event: self._report(job, event), resumed=job.resumed)
                if job.resumed:  # a token may have been made whose answer was lost
                    await self._hub.revoke_tokens(launch.user, launch.server, launch.id)
                expires = int(min(self.token_lifetime, record.lifetime or math.inf)) or 1
                token = await self._hub.create_token(launch.user, launch.server, launch.id, expires)
        except Throttled as busy:
            return await self._wait_again(job, busy)
        except TimeoutError:
            title = title_of(launch.user, launch.server)
            text = f"{title} was not ready within {self.start_timeout:g} seconds; what this launch started is stopped."
            raise LaunchFailed(text, reason="timeout") from None
        self._pace.add(time.monotonic() - begun)
        self._enter(job, "")
        await self._persist(lambda: self._ready(job, server["url"], server.get("full_url"), token, expires))
        return None

    def _with_env(self, record: LaunchRecord) -> LaunchSpec:
        try:
            env = self._signer.unseal(record.env) if record.env else {}
        except BadSignature:
            text = "The launcher's signing key has changed since this launch was accepted. Ask for it again."
            raise LaunchFailed(text, reason="key_changed") from None
        return record.spec.model_copy(update={"env": env})

    async def _wait_again(self, job: _Job, busy: Throttled) -> None:
        """Back into the queue, where it was, until the Hub takes more."""
        await self._persist(lambda: self._store.give_back(self.replica, job.record.id))
        under_way = (await self._persist(self._store.counts)).get("starting", 0)
        delay = self._bound.throttled(under_way, busy.retry_after)
        self.log.info("JupyterHub takes no more than %i starts now (%s)", under_way, busy.message)
        if not under_way:
            self._feed.hinder(f"JupyterHub is too busy: {busy.message} Trying again in {delay:g} seconds.")

    async def _ready(self, job: _Job, path: str, full_url: str | None, token: str, expires: int) -> None:
        record, now = job.record, time.time()
        due = None
        if record.lifetime:
            due = now + record.lifetime - min(self.lifetime_warning, record.lifetime / 10)
        done = await self._store.change(
            record.id,
            "ready",
            {"message": "The server is ready", "path": path},
            owner=self.replica,
            path=path,
            full_url=full_url,
            token=self._signer.seal(token),
            token_expires=now + expires,
            ready=now,
            due=due,
            release=True,
        )
        if done:
            self.log.info("Launch %s: %s/%s is ready", record.id, record.username, record.server_name)
        self._feed.hinder("")

    async def _fail(self, job: _Job, error: LauncherError) -> None:
        self.log.warning("Launch %s: %s (%s)", job.record.id, error.message, error.reason)
        # whoever cancels at the Hub also stops: a second stop at the same time would make the Hub fail the first
        if not (isinstance(error, ServerConflict) or error.reason == "cancelled"):
            await self._clean_up(job)
        state: State = "cancelled" if error.reason == "cancelled" else "failed"
        body = error.as_dict()
        await self._persist(lambda: self._store.change(job.record.id, state, body, owner=self.replica, error=body))
        self._feed.hinder("")

    async def _cancel(self, job: _Job) -> None:
        """Stop what there is of a start that somebody does not want any more."""
        await self._clean_up(job)
        record = await self._persist(lambda: self._store.get(job.record.id))
        by = record.stop_by if record else None
        error = cancelled(job.launch).as_dict()
        await self._persist(
            lambda: self._store.change(job.record.id, "cancelled", {**error, "by": by}, owner=self.replica, error=error)
        )

    async def _end(self, job: _Job) -> None:
        """Stop the server of a launch."""
        record = job.record
        server = await self._hub.active_server(record.username, record.server_name)
        if server and is_ours(server, job.launch):
            await self._stop(job.launch)
        else:
            await self._hub.revoke_tokens(record.username, record.server_name, record.id)
        over = record.stop_by == LIFETIME
        data = {"message": "Its time was over" if over else "It was stopped", "by": record.stop_by}
        state: State = "expired" if over else "stopped"
        await self._persist(lambda: self._store.change(record.id, state, data, owner=self.replica))

    async def _clean_up(self, job: _Job) -> None:
        """Stop what a launch has left, unless it is another's; however long that takes."""
        launch = job.launch
        # a start that was sent may appear later: with its answer, or soon if somebody else waited for that
        pending: asyncio.Task[Any] | None = launch.request
        if pending is None and job.resumed:
            pending = asyncio.create_task(asyncio.sleep(3))
        try:
            while True:
                last = pending is None or pending.done()
                server = await self._hub.active_server(launch.user, launch.server)
                if server and is_ours(server, launch):
                    return await self._stop(launch)
                if server or last:
                    return None
                if pending:
                    await asyncio.wait([pending], timeout=1)
        except HubUnavailable:
            raise
        except LauncherError as error:
            self.log.error("Launch %s has ended and may have left a server: %s", launch.id, error.message)

    async def _stop(self, launch: Launch) -> None:
        while True:
            try:
                return await self._stopper.stop(launch.user, launch.server, launch.id)
            except StopFailed as error:
                self.log.warning("Launch %s: %s", launch.id, error.message)

    # -- telling

    async def _report(self, job: _Job, event: ProgressEvent) -> None:
        """Keep an event, unless it repeats what was told before a reconnection."""
        if event.progress < job.reached or (event.progress == job.reached and event.message == job.said):
            return
        job.reached, job.said = event.progress, event.message
        self._enter(job, event.phase)
        await self._persist(lambda: self._store.append(self.replica, job.record.id, "progress", event.model_dump()))

    def _enter(self, job: _Job, phase: str) -> None:
        """Measure how long a start is in each of its phases."""
        if phase != job.phase:
            if job.phase:
                self._measure(job.phase, time.monotonic() - job.since)
            job.phase, job.since = phase, time.monotonic()

    async def _tell(self, job: _Job, message: str) -> None:
        await self._report(job, ProgressEvent(progress=max(0, job.reached), message=message))

    async def _persist(self, change: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a change in the store, however long the database is away."""
        while True:
            try:
                return await change()
            except StoreUnavailable:
                await asyncio.sleep(0.5)  # the store itself has tried for a while

    # -- the Hub

    async def _is_accepted(self) -> bool:
        """Whether the Hub takes our token at all."""
        try:
            await self._hub.check()
        except HubUnavailable:
            return False
        except LauncherError as error:
            return not isinstance(error, HubRefused)
        return True

    async def _let_go(self, job: _Job, error: LauncherError) -> None:
        """Leave a launch to others, or to better times: the Hub does not know this service."""
        self.log.error("Launch %s waits: %s", job.record.id, error.message)
        self._hub_is_away = True
        await self._persist(lambda: self._store.set_values(job.record.id, owner=None))
        if self._outage is None or self._outage.done():
            self._outage = asyncio.create_task(self._while_hub_is_away(), name="outage of JupyterHub")

    async def _wait_for_hub(self) -> None:
        """Return when the Hub is back; nothing is started meanwhile."""
        if self._outage is None or self._outage.done():
            self._outage = asyncio.create_task(self._while_hub_is_away(), name="outage of JupyterHub")
        await asyncio.shield(self._outage)

    async def _while_hub_is_away(self) -> None:
        self._hub_is_away = True
        self._feed.hinder(AWAY)
        try:
            await self._hub.reachable()
        finally:
            self._hub_is_away = False
            self._feed.hinder("")
            self._wake.set()

    async def server_ended(self, launch: str) -> None:
        """The Hub says that the server of a launch has ended, whoever stopped it."""
        record = await self._store.get(launch)
        if record and record.state == "ready" and not record.stop_by:  # what we stop ends when the Hub is through
            data = {"message": "The server has ended"}
            await self._store.change(launch, "stopped", data, unless=(*FINAL, "queued", "starting"))

    async def _reconciling(self) -> None:
        """Notice the end of servers that nobody told us of."""
        while True:
            try:
                await self._reconcile()
            except (HubUnavailable, StoreUnavailable) as error:
                self.log.warning("Could not look for servers that have ended: %s", error.message)
            except HubRefused as error:
                self.log.error("Could not look for servers that have ended: %s", error.message)
            except Exception:
                self.log.exception("Could not look for servers that have ended")
            await asyncio.sleep(self.reconcile_interval)

    async def _reconcile(self) -> None:
        ready = await self._store.ready_launches()
        if not ready:
            return
        await self._hub.reachable()
        servers = await self._hub.active_servers()
        for record in ready:
            server = servers.get((record.username, record.server_name))
            launch = Launch(record.username, record.server_name, record.spec, record.id)
            if not (server and is_ours(server, launch)):
                await self._hub.revoke_tokens(record.username, record.server_name, record.id)
                await self.server_ended(record.id)
