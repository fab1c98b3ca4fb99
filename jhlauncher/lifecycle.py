"""What is done for one launch, from its turn to its end.

Whatever dies in between - this process, the Hub, the database - the launch is found again where the store has it:
a start is looked for at the Hub before it is sent again, an end is told once it is certain.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

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
from .hub import Hub, JsonObject
from .models import LaunchSpec, ProgressEvent
from .outage import AWAY, Outage
from .queue import Pace, StartBound
from .records import LaunchRecord, State, title_of
from .signing import BadSignature, Signer
from .starting import KEY_CHANGED, Launch, Starter, Throttled, cancelled, is_ours
from .stopping import Stopper
from .store import LIFETIME, Store

Result = TypeVar("Result")

_AGAIN_AFTER = 5
"""Seconds until an end is tried again that the Hub has refused."""


class Work:
    """A launch that a replica works on."""

    def __init__(self, record: LaunchRecord, replica: str, resumed: bool) -> None:
        self.record = record
        self.replica = replica
        self.resumed = resumed
        """Others, or this process before, may have begun with it."""
        self.launch = Launch(record.username, record.server_name, record.spec, record.id)
        self.task: asyncio.Task[None] | None = None
        self.stopping = bool(record.stop_by)
        """Somebody wants it to end."""
        self.error: LauncherError | None = None
        """Why it has failed."""
        self.reached = -1
        """Per cent of the latest event."""
        self.said = ""
        self.phase = ""
        self.since = 0.0
        self.untold: list[tuple[float, JsonObject]] = []
        """Progress that is to be kept, and when it was made."""
        self.telling: asyncio.Task[None] | None = None
        """Keeps it."""
        self._interrupted = False

    def interrupt(self) -> None:
        """Somebody wants it to end."""
        if not self.stopping and self.task:
            self.stopping = self._interrupted = True
            self.task.cancel()

    def must_stop(self) -> bool:
        """Whether its task was cancelled to end the launch, which is true once, and not to leave it."""
        if not (self._interrupted and self.task and self.task.uncancel() == 0):
            return False
        self._interrupted = False
        return True


class Lifecycle(LoggingConfigurable):
    """Brings launches to where nothing is to be done."""

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
        outage: Outage,
        measure: Callable[[str, float], None],
        *,
        start_timeout: float,
        token_lifetime: int,
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
        self._outage = outage
        self._measure = measure
        self.start_timeout = start_timeout
        self.token_lifetime = token_lifetime
        signer.seal("", "token")  # the first time is slow

    async def run(self, work: Work) -> None:
        """Work on a launch, and leave nothing behind."""
        try:
            await self._go_on(work)
        finally:
            tasks = [task for task in (work.launch.request, work.telling) if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _go_on(self, work: Work) -> None:
        """Bring a launch to where nothing is to be done, whatever is away meanwhile."""
        while True:
            try:
                return await self._step(work)
            except asyncio.CancelledError:
                if not work.must_stop():
                    raise
            except HubUnavailable as error:
                self.log.warning("Launch %s waits for JupyterHub: %s", work.record.id, error.message)
                work.resumed = True
                await self._tell(work, AWAY)
                await self._outage.over()

    async def _step(self, work: Work) -> None:
        """What is to be done about a launch."""
        if work.record.state == "ready" or work.stopping:
            return await self._bring_to_end(work)
        if not work.error:
            try:
                return await self._see_through(work)
            except HubUnavailable:
                raise
            except HubRefused as error:
                if not await self._is_accepted():
                    self._outage.begin()
                    return await self._let_go(work, error)
                work.error = error
            except LauncherError as error:
                work.error = error
            except Exception:
                self.log.exception("Launch %s: a bug", work.record.id)
                work.error = LauncherError("The launcher has failed; its log tells why.")
        return await self._fail(work, work.error)

    async def _bring_to_end(self, work: Work) -> None:
        """Cancel it or stop its server, now or later."""
        try:
            await (self._end(work) if work.record.state == "ready" else self._cancel(work))
        except HubUnavailable:
            raise
        except LauncherError as error:
            if not await self._is_accepted():
                self._outage.begin()
            else:
                await asyncio.sleep(_AGAIN_AFTER)
            await self._let_go(work, error)

    async def _see_through(self, work: Work) -> None:
        """Start the server; the launch is ready or failed then, or waits again."""
        launch, record = work.launch, work.record
        begun = time.monotonic()
        try:
            launch.spec = self._with_env(record)
            async with asyncio.timeout(self.start_timeout):
                report = partial(self._report, work)
                server = await self._starter.start(launch, report, resumed=work.resumed)
                if work.resumed:  # a token may have been made whose answer was lost
                    await self._hub.revoke_tokens(launch.user, launch.server, launch.id)
                expires = int(min(self.token_lifetime, record.lifetime or math.inf)) or 1
                token = await self._hub.create_token(launch.user, launch.server, launch.id, expires)
        except Throttled as busy:
            return await self._wait_again(work, busy)
        except TimeoutError:
            title = title_of(launch.user, launch.server)
            text = f"{title} was not ready within {self.start_timeout:g} seconds; what this launch started is stopped."
            raise LaunchFailed(text, reason="timeout") from None
        self._pace.add(time.monotonic() - begun)
        self._enter(work, "")
        return await self._ready(work, server["url"], server.get("full_url"), token, expires)

    def _with_env(self, record: LaunchRecord) -> LaunchSpec:
        try:
            env = self._signer.unseal(record.env, "env") if record.env else {}
        except BadSignature:
            raise LaunchFailed(KEY_CHANGED, reason="key_changed") from None
        return record.spec.model_copy(update={"env": env})

    async def _wait_again(self, work: Work, busy: Throttled) -> None:
        """Back into the queue, where it was, until the Hub takes more."""
        under_way = await self._persist(self._store.starting) - 1
        delay = self._bound.throttled(under_way, busy.retry_after)
        await self._after_progress(work, lambda: self._store.give_back(work.replica, work.record.id))
        self.log.info("JupyterHub takes no more than %i starts now (%s)", under_way, busy.message)
        if not under_way:
            self._feed.hinder(f"JupyterHub is too busy: {busy.message} Trying again in {delay:g} seconds.")

    async def _ready(self, work: Work, path: str, full_url: str | None, token: str, expires: int) -> None:
        record, now = work.record, time.time()
        done = await self._change(
            work,
            "ready",
            {"message": "The server is ready", "path": path},
            path=path,
            full_url=full_url,
            token=self._signer.seal(token, "token"),
            token_expires=now + expires,
            ready=now,
            release=True,
        )
        if done:
            self.log.info("Launch %s: %s/%s is ready", record.id, record.username, record.server_name)
        self._feed.hinder("")

    async def _fail(self, work: Work, error: LauncherError) -> None:
        self.log.warning("Launch %s: %s (%s)", work.record.id, error.message, error.reason)
        # whoever cancels at the Hub also stops: a second stop at the same time would make the Hub fail the first
        if not (isinstance(error, ServerConflict) or error.reason == "cancelled"):
            await self._clean_up(work)
        state: State = "cancelled" if error.reason == "cancelled" else "failed"
        body = error.as_dict()
        await self._change(work, state, body, error=body)
        self._feed.hinder("")

    async def _cancel(self, work: Work) -> None:
        """Stop what there is of a start that somebody does not want any more."""
        await self._clean_up(work)
        record = await self._persist(lambda: self._store.get(work.record.id))
        by = record.stop_by if record else None
        error = cancelled(work.launch).as_dict()
        await self._change(work, "cancelled", {**error, "by": by}, error=error)

    async def _end(self, work: Work) -> None:
        """Stop the server of a launch."""
        record = work.record
        server = await self._hub.active_server(record.username, record.server_name)
        if server and is_ours(server, work.launch):
            await self._stop(work.launch)
        else:
            await self._hub.revoke_tokens(record.username, record.server_name, record.id)
        over = record.stop_by == LIFETIME
        data = {"message": "Its time was over" if over else "It was stopped", "by": record.stop_by}
        state: State = "expired" if over else "stopped"
        await self._change(work, state, data)

    async def _clean_up(self, work: Work) -> None:
        """Stop what a launch has left, unless it is another's; however long that takes."""
        launch = work.launch
        # a start that was sent may appear later: with its answer, or soon if somebody else waited for that; until then,
        # the Hub shows a server with the options of the start before
        pending: asyncio.Task[Any] | None = launch.request
        if pending is None and work.resumed:
            pending = asyncio.create_task(asyncio.sleep(3))
        try:
            while True:
                last = pending is None or pending.done()
                server = await self._hub.active_server(launch.user, launch.server)
                if server and is_ours(server, launch):
                    return await self._stop(launch)
                if last:
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

    async def _report(self, work: Work, event: ProgressEvent) -> None:
        """Keep an event, unless it repeats what was told before a reconnection."""
        if event.progress < work.reached or (event.progress == work.reached and event.message == work.said):
            return
        work.reached, work.said = event.progress, event.message
        self._enter(work, event.phase)
        work.untold.append((time.time(), event.model_dump()))
        if work.telling is None or work.telling.done():
            work.telling = asyncio.create_task(self._keep(work), name=f"events of {work.record.id}")

    async def _keep(self, work: Work) -> None:
        """Keep what is to be told; what comes together is one change."""
        while work.untold:
            told, work.untold = work.untold, []
            try:
                await self._persist(partial(self._store.append, work.replica, work.record.id, *told))
            except Exception:
                self.log.exception("Launch %s: progress that could not be kept", work.record.id)

    async def _change(self, work: Work, to: State, data: JsonObject, **values: Any) -> LaunchRecord | None:
        """Bring the launch into another state."""
        return await self._after_progress(
            work, lambda: self._store.change(work.record.id, to, data, owner=work.replica, **values)
        )

    async def _after_progress(self, work: Work, change: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a change, made when all is kept that is to be told before it."""
        if work.telling:
            await asyncio.wait([work.telling])
        return await self._persist(change)

    def _enter(self, work: Work, phase: str) -> None:
        """Measure how long a start is in each of its phases."""
        if phase != work.phase:
            if work.phase:
                self._measure(work.phase, time.monotonic() - work.since)
            work.phase, work.since = phase, time.monotonic()

    async def _tell(self, work: Work, message: str) -> None:
        await self._report(work, ProgressEvent(progress=max(0, work.reached), message=message))

    async def _persist(self, change: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a change in the store, however long the database is away."""
        while True:
            try:
                return await change()
            except StoreUnavailable:
                await asyncio.sleep(0.5)  # the store itself has tried for a while

    async def _is_accepted(self) -> bool:
        """Whether the Hub takes our token at all."""
        try:
            await self._hub.check()
        except HubUnavailable:
            return False
        except LauncherError as error:
            return not isinstance(error, HubRefused)
        return True

    async def _let_go(self, work: Work, error: LauncherError) -> None:
        """Leave a launch to others, or to better times: the Hub has refused what it needs."""
        self.log.error("Launch %s waits: %s", work.record.id, error.message)
        await self._after_progress(work, lambda: self._store.let_go(work.replica, work.record.id))
