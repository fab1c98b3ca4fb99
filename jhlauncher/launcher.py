"""The use cases: launch servers, tell about launches, end them. Knows nothing of HTTP.

How a launch goes::

    scopes -> policy -> user (created if need be) -> kept in the store -> its turn -> started at the Hub
           -> a token for this server -> ready -> stopped

The first line is done here, while the caller waits; the second is `jhlauncher.worker`'s. A caller that wants to see the
second follows the events (`jhlauncher.feed`): `Launcher.wait` does that for one who asked for a server, not a launch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from traitlets import Float, Integer, default
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import (
    CallerError,
    Forbidden,
    InvalidRequest,
    LauncherError,
    NotFound,
    PolicyDenied,
    ServerConflict,
    StopFailed,
    restored,
)
from .feed import Feed
from .hub import Hub, JsonObject
from .models import BatchRequest, Caller, Launched, LaunchRequest, ProgressEvent
from .policy import Decision, Policy
from .queue import Pace, StartBound
from .records import BatchEvent, BatchRecord, LaunchEvent, LaunchRecord, Limit
from .rules import Rule, Template
from .signing import Signer
from .starting import Starter, launch_id, name_of, stopping, title_of
from .stopping import Stopper
from .store import Store
from .tables import launches
from .worker import Worker

Report = Callable[[ProgressEvent], Awaitable[None]]

# a scope's name before JupyterHub 6, where one scope was for all three
START, STOP, READ = ("start:servers", "servers"), ("delete:servers", "servers"), ("read:servers", "servers")


@dataclass(frozen=True)
class _Target:
    """Whose server it is about; the caller's scopes cover it."""

    user: str
    groups: frozenset[str] = frozenset()
    known: bool = False
    """The Hub is known to have this user."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask for."""

    rule: Rule
    """The one that decides."""
    templates: dict[str, Template]
    limits: list[dict[str, Any]]
    """With what is used of each."""


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
    stop_timeout = Float(120, min=0, help="Seconds to wait until a server has stopped.").tag(config=True)
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
        policy: Policy,
        store: Store,
        feed: Feed,
        starter: Starter,
        bound: StartBound,
        pace: Pace,
        signer: Signer,
        measure: Callable[[str, float], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._policy = policy
        self._store = store
        self._feed = feed
        self._signer = signer
        self._stopper = Stopper(parent=self, hub=hub, timeout=self.stop_timeout)
        self.worker = Worker(
            parent=self,
            hub=hub,
            store=store,
            feed=feed,
            bound=bound,
            pace=pace,
            starter=starter,
            stopper=self._stopper,
            signer=signer,
            start_timeout=self.start_timeout,
            token_lifetime=self.token_lifetime,
            measure=measure,
        )

    async def start(self) -> None:
        """Go on with what there is."""
        await self._feed.start()
        await self.worker.start()

    async def close(self) -> None:
        """Leave what is under way to the next process, or to another replica."""
        await self._stopper.close()
        await self.worker.stop()
        await self._feed.stop()

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
        record = await self._prepared(caller, request, key, waits)
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

    async def plan(self, caller: Caller, request: LaunchRequest) -> dict[str, Any]:
        """What would become of a request, as of now; nothing is started, kept or created.

        Raises:
            Forbidden: the caller's scopes do not reach the server.

        """
        try:
            user, decision = await self._decide(caller, request, create_user=False)
        except (PolicyDenied, InvalidRequest) as error:
            rule = error.details.get("rule")
            return {"decision": "refuse", "rule": rule, "spec": None, "error": error.as_dict()}
        record = self._record(caller, request, user, decision)
        place, obstacle = await self._store.would_be(record)
        plan: dict[str, Any] = {
            "decision": "refuse" if obstacle else "queue" if place > 1 else "start",
            "username": user,
            "rule": decision.rule,
            "spec": decision.spec,
            "lifetime": decision.lifetime,
            "limits": await self._limits(decision.limits),
        }
        if obstacle:
            return {**plan, "error": obstacle.as_dict()}
        return {**plan, "position": place, "estimate": self._feed.estimate(place)}

    async def options(self, caller: Caller, user: str, server: str) -> Options:
        """What a caller may ask for this server.

        Raises:
            Forbidden: the caller's scopes do not reach the server.
            PolicyDenied: no rule is for the caller.

        """
        target = await self._target(caller, user, server, START, self._policy.needs_groups)
        rule = self._policy.rule_for(caller, target.user, target.groups)
        limits = await self._limits(rule.limits_for(target.user, target.groups))
        return Options(rule, self._policy.templates_for(rule), limits)

    async def _limits(self, limits: list[Limit]) -> list[dict[str, Any]]:
        """Limits, with what is used of each."""
        used = await self._store.usage({limit.key for limit in limits})
        return [
            {
                "key": limit.key,
                "resource": limit.resource,
                "most": limit.most,
                "used": used.get(limit.key, {}).get(limit.resource, 0),
                "when_full": "queue" if limit.wait else "refuse",
            }
            for limit in limits
        ]

    async def _launched(self, launch: str) -> Launched:
        record = await self._store.get(launch)
        if not record or not record.token:
            raise _ended_early(record)
        token = self._signer.unseal(record.token)
        return Launched(record.username, record.server_name, token, path=record.path or "", full_url=record.full_url)

    async def abandon(self, record: LaunchRecord) -> None:
        """Whoever waited for it has gone: if it has not begun, it need not."""
        current = await self._store.get(record.id)
        if current and current.state == "queued":
            await self._store.ask_to_stop(record.id, record.caller)

    async def _prepared(
        self, caller: Caller, request: LaunchRequest, key: str | None, waits: float | None
    ) -> LaunchRecord:
        """The launch as it will be kept; the user exists."""
        user, decision = await self._decide(caller, request, create_user=True)
        wait_until = time.time() + min(request.queue_timeout or self.queue_timeout, waits or math.inf)
        record = self._record(caller, request, user, decision)
        return replace(record, idempotency_key=key, due=wait_until, wait_until=wait_until)

    def _record(self, caller: Caller, request: LaunchRequest, user: str, decision: Decision) -> LaunchRecord:
        return LaunchRecord(
            caller=caller.label,
            username=user,
            server_name=request.server_name,
            spec=decision.spec.model_copy(update={"env": {}}),
            env=self._signer.seal(decision.spec.env) if decision.spec.env else None,
            rule=decision.rule,
            share=decision.share,
            weight=decision.weight,
            limits=decision.limits,
            keys=decision.keys,
            lifetime=decision.lifetime,
            template=request.template,
            request=self._signer.fingerprint(request.model_dump(mode="json")),
        )

    async def _decide(self, caller: Caller, request: LaunchRequest, *, create_user: bool) -> tuple[str, Decision]:
        """The user's name and what the policy says."""
        server = request.server_name
        target = await self._target(caller, request.username, server, START, self._policy.needs_groups)
        decision = self._policy.authorise(caller, target.user, target.groups, request)
        user = await self._ensure_user(caller, target, request) if create_user else target.user
        if user != target.user:
            decision = self._policy.authorise(caller, user, frozenset(), request)
        return user, decision

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
            await self.worker.server_ended(other.id)
        return not server

    # -- launches

    async def get(self, caller: Caller, launch: str) -> LaunchRecord:
        """A launch that the caller may see: their own, and those of servers that their scopes let them read.

        Raises:
            NotFound: there is none.

        """
        record = await self._store.get(launch)
        if record and (record.caller == caller.label or await self._reaches(caller, record, READ)):
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
            equal: further columns, and what they must be.

        """
        conditions = [launches.c[name] == value for name, value in equal.items()]
        if state is not None:
            conditions.append(launches.c.state.in_(state))
        if since is not None:
            conditions.append(launches.c.created >= since)
        if until is not None:
            conditions.append(launches.c.created < until)
        records = await self._store.find(await self._visible(caller), *conditions, before=before, most=most + 1)
        return records[:most], (records[most - 1].seq if len(records) > most else None)

    async def _visible(self, caller: Caller) -> sa.ColumnElement[bool]:
        """Condition: the launches that a caller may see."""
        if not caller.scopes.isdisjoint(READ):
            return sa.true()
        users: set[str] = set()
        reached = [launches.c.caller == caller.label]
        for scope in READ:
            users |= caller.filters(scope, "user")
            groups = caller.filters(scope, "group")
            if groups:
                users |= await self._hub.members(groups)
            for server in caller.filters(scope, "server"):
                user, _, name = server.partition("/")
                reached.append((launches.c.username == user) & (launches.c.server_name == name))
        return sa.or_(launches.c.username.in_(sorted(users)), *reached)

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
        if record.token and await self._reaches(caller, record, START):
            token: str = self._signer.unseal(record.token)
            return token
        return None

    async def position(self, record: LaunchRecord) -> tuple[int, float | None] | None:
        """The place in the queue, and the seconds until its turn, if that is known."""
        if record.state != "queued":
            return None
        order = await self._store.queue_order()
        place = order.index(record.id) + 1 if record.id in order else 1
        return place, self._feed.estimate(place)

    def follow(self, launch: str, after: int = 0) -> AsyncGenerator[LaunchEvent, None]:
        """What happened to a launch, and what happens, until its end."""
        return self._feed.follow(launch, after)

    async def end(self, caller: Caller, launch: str) -> LaunchRecord:
        """Cancel a launch, or stop its server; the launch as it is then, which may not be its end yet.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may not stop this server.

        """
        record = await self.get(caller, launch)
        if record.final:
            return record
        if not await self._reaches(caller, record, STOP):
            raise _out_of_reach(record.username, record.server_name, STOP)
        self.log.info("Launch %s: to be ended for %s", launch, caller.label)
        return await self._store.ask_to_stop(launch, caller.label) or record

    async def _reaches(self, caller: Caller, record: LaunchRecord, scopes: tuple[str, ...]) -> bool:
        with contextlib.suppress(Forbidden):
            return (await self._target(caller, record.username, record.server_name, scopes)).user == record.username
        return False

    # -- batches

    async def submit_batch(self, caller: Caller, request: BatchRequest, key: str | None = None) -> BatchRecord:
        """Accept many launches in one.

        Raises:
            BatchRefused: all or none were wanted, and one can't be accepted.
            KeyReused: the key was for another request.

        """
        batch = BatchRecord(
            caller=caller.label,
            request=self._signer.fingerprint(request.model_dump(mode="json")),
            idempotency_key=key,
        )
        asked = await asyncio.gather(*(self._asked(caller, one, batch.id) for one in request.launches))
        return await self._store.add_batch(batch, asked, all_or_none=request.mode == "all")

    async def _asked(self, caller: Caller, request: LaunchRequest, batch: str) -> LaunchRecord | LauncherError:
        try:
            return replace(await self._prepared(caller, request, None, None), batch=batch)
        except CallerError as error:
            return error

    async def get_batch(self, caller: Caller, batch: str) -> tuple[BatchRecord, dict[str, LaunchRecord]]:
        """A batch of the caller's, and its launches by id.

        Raises:
            NotFound: there is none.

        """
        record = await self._store.batch(batch)
        if not record or (record.caller != caller.label and caller.scopes.isdisjoint(READ)):
            raise NotFound("There is no such batch.", reason="batch_not_found")
        return record, {launch.id: launch for launch in await self._store.launches_of(batch)}

    def follow_batch(self, batch: str, after: int = 0) -> AsyncGenerator[BatchEvent, None]:
        """To which states its launches come, until all have ended."""
        return self._feed.follow_batch(batch, after)

    async def end_batch(self, caller: Caller, batch: str) -> bool:
        """End all launches of a batch; whether all have ended.

        Raises:
            NotFound: there is no such batch.
            Forbidden: the caller may not stop one of its servers; those before it are being ended.

        """
        _, found = await self.get_batch(caller, batch)
        ended = [await self.end(caller, launch) for launch in found]
        return all(record.final for record in ended)

    # -- servers

    async def status(self, caller: Caller, user: str, server: str) -> JsonObject:
        """The Hub's model of a running or pending server.

        Raises:
            Forbidden: the caller may not see it.
            NotFound: there is none.

        """
        target = await self._target(caller, user, server, READ)
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
        user = (await self._target(caller, user, server, STOP)).user
        launch = await self._store.active(user, server)
        running = await self._hub.active_server(user, server)
        if not running and not (launch and launch.state != "ready"):
            await self._hub.revoke_tokens(user, server)  # of a server that somebody else has stopped
            if launch:
                await self.worker.server_ended(launch.id)
            raise _not_running(user, server)
        self.log.info("Stopping %s/%s for %s", user, server, caller.label)
        if launch:
            await self._store.ask_to_stop(launch.id, caller.label)
            await self._end_of(launch)
        server_model = await self._hub.active_server(user, server)
        if server_model and (not launch or launch_id(server_model) == launch.id):
            await self._stopper.stop(user, server, launch_id(server_model))

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

    # -- for whom

    async def _target(
        self, caller: Caller, user: str, server: str, scopes: tuple[str, ...], with_groups: bool = False
    ) -> _Target:
        """The user as the Hub knows them, if the caller's scopes cover this server of theirs.

        A name with capitals is taken as it is if there is such a user, and else as the Hub's login would have it.
        """
        with_groups = with_groups or any(caller.filters_by_group(scope) for scope in scopes)
        for name in dict.fromkeys((user, user.lower())):
            target = await self._look_up(caller, name, needed=with_groups or name != name.lower())
            if target and any(caller.holds(scope, name, server, target.groups) for scope in scopes):
                return target
        raise _out_of_reach(user, server, scopes)

    async def _look_up(self, caller: Caller, name: str, needed: bool) -> _Target | None:
        """This user, with groups if that is ``needed``; None for a name with capitals that nobody has."""
        if caller.kind == "user" and name == caller.name:
            return _Target(name, caller.groups, known=True)
        if not needed:
            return _Target(name)
        model = await self._hub.get_user(name)
        if model:
            return _Target(name, frozenset(model.get("groups", ())), known=True)
        return _Target(name) if name == name.lower() else None

    async def _ensure_user(self, caller: Caller, target: _Target, request: LaunchRequest) -> str:
        """The user's name; creates the user if there is none and the caller may."""
        if target.known or "admin:users" not in caller.scopes:
            return target.user
        created = await self._hub.create_user(request.username)
        if created is None or created == target.user:
            return target.user
        # the Hub's authenticator has names of its own; the caller's scopes must reach that one, too
        if not any(caller.holds(scope, created, request.server_name) for scope in START):
            raise Forbidden(f"The Hub calls this user {created}, whom your token's scopes do not reach.")
        return created


def _out_of_reach(user: str, server: str, scopes: tuple[str, ...]) -> Forbidden:
    return Forbidden(
        f"Your token's scopes do not reach {name_of(user, server)}: {scopes[0]} is needed for it.",
        details={"needs": f"{scopes[0]}!server={user}/{server}"},
    )


def _not_running(user: str, server: str) -> NotFound:
    return NotFound(f"{title_of(user, server)} is not running.", reason="server_not_found")


def _ended_early(record: LaunchRecord | None) -> LauncherError:
    if record is None:
        return NotFound("This launch is not known any more.", reason="launch_not_found")
    title = title_of(record.username, record.server_name)
    return LauncherError(f"{title} was stopped before it was ready.", reason="cancelled")
