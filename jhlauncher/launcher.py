"""The use cases: launch servers, tell about launches, end them. Knows nothing of HTTP.

How a launch goes::

    scopes -> policy -> user (created if need be) -> kept in the store -> its turn -> started at the Hub
           -> a token for this server -> ready -> stopped

The first line is done here, while the caller waits; the second is `jhlauncher.lifecycle`'s. A caller that wants to
see it follows the events (`jhlauncher.feed`): `Launcher.wait` does that for one who asked for a server, not a launch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from traitlets import Float, Integer, default
from traitlets.config import LoggingConfigurable

from . import environment
from .access import READ, START, STOP, Access, out_of_reach
from .errors import (
    LauncherError,
    LaunchFailed,
    NotFound,
    ServerConflict,
    StopFailed,
    restored,
)
from .feed import Feed
from .hub import Hub, JsonObject
from .models import Caller, Launched, LaunchRequest, ProgressEvent
from .planning import Planner
from .reconciler import Reconciler
from .records import LaunchEvent, LaunchRecord, title_of
from .signing import BadSignature, Signer
from .starting import KEY_CHANGED, Report, launch_id, stopping
from .stopping import Stopper
from .store import Store
from .tables import launches


class Launcher(LoggingConfigurable):
    """Launches servers on the Hub on behalf of callers."""

    start_timeout = Float(
        300,
        min=0.01,
        help="""Seconds that a start may take, from its turn to the token; then its server is stopped.

        Who waits for the answer of `POST containers` waits as long for the turn. Time in which JupyterHub can't be
        reached does not count. Default: $STATUS_CHECK_INTERVAL x $STATUS_CHECK_COUNT, or else 300.
        """,
    ).tag(config=True)
    stop_timeout = Float(120, min=0.1, help="Seconds to wait until a server has stopped.").tag(config=True)
    token_lifetime = Integer(
        1800, min=1, help="Seconds for which a server's token is valid. Default: $USER_TOKEN_LIFETIME, or else 1800."
    ).tag(config=True)
    queue_timeout = Float(
        3600, min=0.01, help="Seconds that a launch may wait for its turn, unless it asks for less; then it expires."
    ).tag(config=True)

    @default("start_timeout")
    def _default_start_timeout(self) -> float:
        return environment.number("STATUS_CHECK_INTERVAL", 10) * environment.number("STATUS_CHECK_COUNT", 30)

    @default("token_lifetime")
    def _default_token_lifetime(self) -> int:
        return int(environment.number("USER_TOKEN_LIFETIME", 1800))

    def __init__(
        self,
        hub: Hub,
        access: Access,
        planner: Planner,
        store: Store,
        feed: Feed,
        reconciler: Reconciler,
        signer: Signer,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._access = access
        self._planner = planner
        self._store = store
        self._feed = feed
        self._reconciler = reconciler
        self._signer = signer
        self.stopper = Stopper(parent=self, hub=hub, timeout=self.stop_timeout)

    # -- launching

    async def submit(
        self, caller: Caller, request: LaunchRequest, *, key: str | None = None, waits: float | None = None
    ) -> LaunchRecord:
        """Accept a launch: from now on it comes to a stated end, whatever happens.

        Args:
            caller: who asks; their scopes and the policy decide.
            request: what for.
            key: the same caller's request with the same key is the same launch.
            waits: seconds that the caller waits for it at most.

        Raises:
            Forbidden, PolicyDenied, InvalidRequest: it may not be.
            ServerConflict: the server has a launch already.
            LimitReached, QueueFull: there is no room for it.
            KeyReused: the key was for another request.
            HubUnavailable, StoreUnavailable: try again.

        """
        record = await self.prepared(caller, request, key=key, waits=waits)
        try:
            kept, new = await self._store.add(record)
        except ServerConflict as conflict:
            if not await self._is_outdated(conflict):
                raise
            kept, new = await self._store.add(record)
        if new:
            self.log.info(
                "Launch %s: %s/%s with image %s for %s, by rule %r",
                *(kept.id, kept.username, kept.server_name, kept.spec.image, caller.label, kept.rule),
            )
        return kept

    async def wait(self, record: LaunchRecord, report: Report) -> Launched:
        """The server of a launch when it is ready.

        Args:
            record: of the launch.
            report: is told each step.

        Raises:
            LauncherError: why it will not be.

        """
        async with aclosing(self._feed.follow(record.id)) as events:
            async for event in events:
                if event.final:
                    break
                if event.name == "ready":
                    return await self._launched(record.id)
                if event.name == "progress":
                    await report(ProgressEvent.model_validate(event.data))
                elif event.name == "queued" and "position" in event.data:
                    await report(ProgressEvent(progress=0, message=event.data["message"], phase="queued"))
        raise restored(event.data) if "status" in event.data else _ended_early(record)

    async def _launched(self, launch: str) -> Launched:
        record = await self._store.get(launch)
        if not record or not record.token:
            raise _ended_early(record)
        token = self._unsealed(record.token)
        if token is None:
            raise LaunchFailed(KEY_CHANGED, reason="key_changed")
        return Launched(record.username, record.server_name, token, path=record.path or "", full_url=record.full_url)

    async def abandon(self, record: LaunchRecord) -> None:
        """Whoever waited for it has gone: if it has not begun, it need not; with a key they may come back."""
        current = await self._store.get(record.id)
        if current and current.state == "queued" and not current.idempotency_key:
            await self._store.ask_to_stop(record.id, record.caller)

    async def prepared(
        self,
        caller: Caller,
        request: LaunchRequest,
        *,
        key: str | None = None,
        waits: float | None = None,
        not_before: float | None = None,
    ) -> LaunchRecord:
        """The launch as it will be kept; the user exists.

        Args:
            caller: who asks.
            request: what for.
            key: the same caller's request with the same key is the same launch.
            waits: seconds that the caller waits for it at most.
            not_before: when it begins to wait for its turn, in seconds since 1970; None: now.

        Raises:
            Forbidden, PolicyDenied, InvalidRequest: it may not be.
            HubUnavailable: try again.

        """
        record = await self._planner.prepared(caller, request)
        begins = not_before or time.time()
        wait_until = begins + min(request.queue_timeout or math.inf, self.queue_timeout, waits or math.inf)
        due = not_before or wait_until
        return replace(record, idempotency_key=key, not_before=not_before, due=due, wait_until=wait_until)

    async def _is_outdated(self, conflict: ServerConflict) -> bool:
        """Whether the launch in the way is over, and nobody has told us."""
        other = await self._store.get(conflict.details["launch"])
        if other is None or other.final:
            return True
        if other.state != "ready":
            return False
        server = await self._hub.active_server(other.username, other.server_name)
        if server and server["pending"] == "stop":
            raise stopping(other.username, other.server_name)
        if not server:
            await self._reconciler.server_ended(other.id)
        return not server

    # -- launches

    async def get(self, caller: Caller, launch: str) -> LaunchRecord:
        """A launch that the caller may see: their own, and those of servers that their scopes let them read.

        Raises:
            NotFound: there is none.

        """
        record = await self._store.get(launch)
        if record and (record.caller == caller.label or await self._access.reaches(caller, record, READ)):
            return record
        raise NotFound("There is no such launch.", reason="launch_not_found")

    async def find(
        self,
        caller: Caller,
        before: int | None,
        most: int,
        *,
        state: list[str] | None = None,
        since: float | None = None,
        until: float | None = None,
        group: str | None = None,
        **equal: str,
    ) -> tuple[list[LaunchRecord], int | None]:
        """A page of the launches that the caller may see, the newest first, and where the next page begins.

        Args:
            caller: who asks.
            before: where the page begins; None: with the newest.
            most: launches on the page.
            state: any of these.
            since: asked for then or later; seconds since 1970.
            until: asked for before.
            group: of a user in this group.
            equal: further columns, and what they must be.

        Raises:
            Forbidden: the caller's scopes do not reach the group.

        """
        conditions = [launches.c[name] == value for name, value in equal.items()]
        if state is not None:
            conditions.append(launches.c.state.in_(state))
        if since is not None:
            conditions.append(launches.c.created >= since)
        if until is not None:
            conditions.append(launches.c.created < until)
        if group is not None:
            conditions.append(launches.c.username.in_(sorted(await self._access.members(caller, group))))
        visible = (await self._access.visible(caller)).condition()
        records = await self._store.find(visible, *conditions, before=before, most=most + 1)
        return records[:most], (records[most - 1].seq if len(records) > most else None)

    async def settled(self, record: LaunchRecord, seconds: float) -> LaunchRecord:
        """The launch as soon as it is ready or has ended, or as it is after so many seconds."""
        return await self._once(record, ("ready",), seconds)

    async def ended(self, record: LaunchRecord, seconds: float) -> LaunchRecord:
        """The launch as soon as it has ended, or as it is after so many seconds."""
        return await self._once(record, (), seconds)

    async def _once(self, record: LaunchRecord, names: tuple[str, ...], seconds: float) -> LaunchRecord:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), aclosing(self._feed.follow(record.id)) as events:
                async for event in events:
                    if event.name in names:
                        break
        return await self._store.get(record.id) or record

    async def token_of(self, caller: Caller, record: LaunchRecord) -> str | None:
        """The server's token, for those who may start the server and so could get one anyway."""
        if record.token and await self._access.reaches(caller, record, START):
            return self._unsealed(record.token)
        return None

    def _unsealed(self, token: str) -> str | None:
        """A server's token; None if the signing key has changed since."""
        try:
            return str(self._signer.unseal(token, "token"))
        except BadSignature:
            return None

    async def position(self, record: LaunchRecord) -> tuple[int, float | None] | None:
        """The place in the queue, and the seconds until its turn, if that is known."""
        if record.state != "queued" or record.waits_since > time.time():
            return None
        place = await self._store.place_of(record.id)
        return place, self._feed.estimate(place)

    def follow(self, launch: str, after: int, *, waits: bool) -> AsyncGenerator[LaunchEvent, None]:
        """What happened to a launch after that event, and what happens, until its end; see `Feed.follow`."""
        return self._feed.follow(launch, after, waits=waits)

    async def end(self, caller: Caller, launch: str) -> LaunchRecord:
        """Cancel a launch, or stop its server; the launch as it is then, which may not be its end yet.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may not stop this server.

        """
        record = await self.get(caller, launch)
        if record.final:
            return record
        if not await self._access.reaches(caller, record, STOP):
            raise out_of_reach(record.username, record.server_name, STOP)
        self.log.info("Launch %s: to be ended for %s", launch, caller.label)
        return await self._store.ask_to_stop(launch, caller.label) or record

    async def extend(self, caller: Caller, launch: str, seconds: float | None) -> LaunchRecord:
        """Give a launch so many seconds, from now on, or from ready; the launch as it is then.

        Args:
            caller: who asks; who may start the server may do this, as far as the policy allows it.
            launch: its id.
            seconds: None: until somebody stops it.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden, PolicyDenied: it may not be.
            ServerConflict: it has ended, or is being ended.

        """
        record = await self.get(caller, launch)
        await self._planner.check_lifetime(caller, record, seconds)
        (result,) = await self._store.extend([record.id], seconds, caller.label)
        if isinstance(result, LauncherError):
            raise result
        return result

    # -- servers

    async def status(self, caller: Caller, user: str, server: str) -> JsonObject:
        """The Hub's model of a running or pending server.

        Raises:
            Forbidden: the caller may not see it.
            NotFound: there is none.

        """
        target = await self._access.target(caller, user, server, READ)
        model = await self._hub.active_server(target.user, server)
        if not model:
            raise _not_running(target.user, server)
        if not caller.holds("admin:server_state", target.user, server, target.groups):
            model.pop("state", None)
        return model

    async def stop(self, caller: Caller, user: str, server: str) -> None:
        """Stop a server, or cancel its start, and revoke its tokens.

        Raises:
            Forbidden: the caller may not stop it.
            NotFound: there is none.
            StopFailed: it has not stopped within `stop_timeout`.

        """
        user = (await self._access.target(caller, user, server, STOP)).user
        launch = await self._store.active(user, server)
        running = await self._hub.active_server(user, server)
        if not running and not (launch and launch.state != "ready"):
            await self._hub.revoke_tokens(user, server)  # of a server that somebody else has stopped
            if launch:
                await self._reconciler.server_ended(launch.id)
            raise _not_running(user, server)
        self.log.info("Stopping %s/%s for %s", user, server, caller.label)
        if launch:
            await self._store.ask_to_stop(launch.id, caller.label)
            await self._end_of(launch)
        server_model = await self._hub.active_server(user, server)
        if server_model and (not launch or launch_id(server_model) == launch.id):
            await self.stopper.stop(user, server, launch_id(server_model))

    async def _end_of(self, launch: LaunchRecord) -> None:
        try:
            async with asyncio.timeout(self.stop_timeout), aclosing(self._feed.follow(launch.id)) as events:
                async for _ in events:
                    pass
        except TimeoutError:
            raise StopFailed(
                f"{title_of(launch.username, launch.server_name)} has not stopped within {self.stop_timeout:g} "
                "seconds; the Hub goes on trying. Ask for its status."
            ) from None


def _not_running(user: str, server: str) -> NotFound:
    return NotFound(f"{title_of(user, server)} is not running.", reason="server_not_found")


def _ended_early(record: LaunchRecord | None) -> LauncherError:
    if record is None:
        return NotFound("This launch is not known any more.", reason="launch_not_found")
    title = title_of(record.username, record.server_name)
    return LauncherError(f"{title} was stopped before it was ready.", reason="cancelled")
