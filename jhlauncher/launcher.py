"""The use cases: launch a server, tell about it, stop it. Knows nothing of HTTP.

How a launch goes::

    scopes -> policy -> user (created if need be) -> sign the spec -> ask the Hub to start it
           -> follow its events -> ask the Hub whether it is true -> a token for this server

The Hub's answers along the way are hints: its 201 may come before the server is ready, and its 500 while it still
starts. For a second after a cancel, both its event stream and the server's model say ``ready``. Only the marks decide
that the mixin in the Hub leaves in the options; they also tell whether what runs is what was asked here (another start
may have been under way, whose options the Hub keeps).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from traitlets import Float, Integer, default
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import (
    AnswerLost,
    Forbidden,
    HubRefused,
    HubUnavailable,
    InvalidRequest,
    LauncherError,
    LaunchFailed,
    NotFound,
    ServerConflict,
    StopFailed,
)
from .hub import Hub, JsonObject, NotStarting, StartReply
from .models import Caller, Launched, LaunchRequest, LaunchSpec, ProgressEvent
from .policy import Policy
from .progress import Progress
from .signing import OPTIONS_KEY, Signer

Report = Callable[[ProgressEvent], Awaitable[None]]

_READY = ProgressEvent(progress=100, message="", phase="ready")
"""The Hub has nothing more to tell of the start."""

# a scope's name before JupyterHub 6, where one scope was for all three
START, STOP, READ = ("start:servers", "servers"), ("delete:servers", "servers"), ("read:servers", "servers")


@dataclass(frozen=True)
class _Target:
    """Whose server it is about; the caller's scopes cover it."""

    user: str
    groups: frozenset[str] = frozenset()
    known: bool = False
    """The Hub is known to have this user."""


@dataclass
class _Launch:
    """A launch under way."""

    user: str
    server: str
    spec: LaunchSpec
    deadline: float
    """By the event loop's clock."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    work: asyncio.Task[Launched] | None = None
    stopped: bool = False
    """Somebody asked this launcher to stop the server meanwhile."""
    unanswered: bool = False
    """The Hub may still take up a start that was sent to it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Give up, whatever is being waited for."""
        self.stopped = True
        if self.work:
            self.work.cancel()


class Launcher(LoggingConfigurable):
    """Launches servers on the Hub on behalf of callers."""

    start_timeout = Float(
        300,
        min=0.01,
        help="""Seconds that a launch may take, from acceptance to the token; then its server is stopped.

        Default: $STATUS_CHECK_INTERVAL x $STATUS_CHECK_COUNT, or else 300.
        """,
    ).tag(config=True)
    stop_timeout = Float(120, min=0, help="Seconds to wait until a server has stopped.").tag(config=True)
    token_lifetime = Integer(
        1800, min=1, help="Seconds for which a server's token is valid. Default: $USER_TOKEN_LIFETIME, or else 1800."
    ).tag(config=True)
    throttle_delay = Float(
        10, min=0, help="Seconds before a start that the Hub throttled is tried again, where the Hub does not say."
    ).tag(config=True)
    progress_delay = Float(
        0.2,
        min=0,
        help="""Seconds that the Hub gets to answer a start before its progress is followed.

        This spares the event stream of a start that is refused or over at once.
        """,
    ).tag(config=True)

    @default("start_timeout")
    def _default_start_timeout(self) -> float:
        return environment.number("STATUS_CHECK_INTERVAL", 10) * environment.number("STATUS_CHECK_COUNT", 30)

    @default("token_lifetime")
    def _default_token_lifetime(self) -> int:
        return int(environment.number("USER_TOKEN_LIFETIME", 1800))

    def __init__(self, hub: Hub, policy: Policy, progress: Progress, signer: Signer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._policy = policy
        self._progress = progress
        self._signer = signer
        self._launches: dict[tuple[str, str], _Launch] = {}
        self._stops: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Let stops under way come to their end for a moment."""
        if self._stops:
            await asyncio.wait(self._stops.values(), timeout=5)

    # -- use cases

    async def launch(self, caller: Caller, request: LaunchRequest, report: Report) -> Launched:
        """Start a server and wait until it is ready.

        A caller that goes away (the task is cancelled) leaves the start to the Hub.

        Args:
            caller: who asks; their scopes and the policy decide.
            request: what for.
            report: is told each step.

        Raises:
            Forbidden, PolicyDenied, ServerConflict, InvalidRequest, NotFound: nothing was started.
            LaunchFailed: it did not start, and what there was of it has been stopped, as far as the Hub lets us.
            HubUnavailable: it is not known what became of it.

        """
        server = request.server_name
        target = await self._target(caller, request.username, server, START, self._policy.needs_groups)
        decision = self._policy.authorise(caller, target.user, target.groups, request.spec())
        user = await self._ensure_user(caller, target, request)
        if user != target.user:
            decision = self._policy.authorise(caller, user, frozenset(), request.spec())
        if (user, server) in self._launches:
            raise ServerConflict(f"{_title(user, server)} is already being started.", reason="server_starting")
        deadline = asyncio.get_running_loop().time() + self.start_timeout
        launch = self._launches[user, server] = _Launch(user, server, decision.spec, deadline)
        self.log.info(
            "Launch %s: %s/%s with image %s for %s, by rule %r",
            *(launch.id, user, server, launch.spec.image, caller.label, decision.rule),
        )
        try:
            launched = await self._run_in_time(launch, report)
        except LauncherError as error:
            self.log.warning("Launch %s: %s (%s)", launch.id, error.message, error.reason)
            raise
        finally:
            del self._launches[user, server]
            launch.ended.set()
        self.log.info("Launch %s: %s/%s is ready", launch.id, user, server)
        return launched

    async def status(self, caller: Caller, user: str, server: str) -> JsonObject:
        """The Hub's model of a running or pending server.

        Raises:
            Forbidden: the caller may not see it.
            NotFound: there is none.

        """
        target = await self._target(caller, user, server, READ)
        model = await self._active_server(target.user, server)
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
        launch = self._launches.get((user, server))
        if launch:
            launch.stop()
        elif not await self._active_server(user, server):
            await self._hub.revoke_tokens(user, server)  # of a server that somebody else has stopped
            raise _not_running(user, server)
        self.log.info("Stopping %s/%s for %s", user, server, caller.label)
        if launch:
            await launch.ended.wait()
        if await self._active_server(user, server):
            await self._stop(user, server)

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
        raise Forbidden(
            f"Your token's scopes do not reach {_named(user, server)}: {scopes[0]} is needed for it.",
            details={"needs": f"{scopes[0]}!server={user}/{server}"},
        )

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

    # -- a launch, step by step

    async def _run_in_time(self, launch: _Launch, report: Report) -> Launched:
        """The launch within `start_timeout`; what it leaves when it fails is stopped."""
        title = _title(launch.user, launch.server)
        launch.work = asyncio.create_task(self._run(launch, report), name=f"launch {launch.id}")
        try:
            async with asyncio.timeout_at(launch.deadline):
                return await launch.work
        except TimeoutError:
            error: Exception = LaunchFailed(
                f"{title} was not ready within {self.start_timeout:g} seconds; what this launch started is stopped.",
                reason="timeout",
            )
        except asyncio.CancelledError:
            if not launch.stopped:
                raise  # the caller has gone, or this service stops; the start is the Hub's
            error = _cancelled(launch)
        except (ServerConflict, HubUnavailable):
            raise
        except Exception as problem:
            error = problem
        # whoever cancels at the Hub also stops: a second stop at the same time would make the Hub fail the first
        if launch.stopped or not (isinstance(error, LaunchFailed) and error.reason == "cancelled"):
            await self._clean_up(launch)
        raise error

    async def _run(self, launch: _Launch, report: Report) -> Launched:
        """Start the server, make sure of it, mint its token."""
        final = await self._begin(launch, report)
        while True:
            final = final or await self._follow(launch, report)
            if final and final.phase == "failed":
                raise _failed(launch, final.message)
            server = await self._confirm(launch)
            if server:
                break
            if not final:
                # pending, and yet without progress: the Hub checks its servers after a restart, and tells nobody
                await asyncio.sleep(1)
            final = None
        token = await self._hub.create_token(launch.user, launch.server, self.token_lifetime)
        return Launched(launch.user, launch.server, token, path=server["url"], full_url=server.get("full_url"))

    async def _begin(self, launch: _Launch, report: Report) -> ProgressEvent | None:
        """Have the Hub start the server, waiting while it is throttled.

        Returns:
            The final event, if the start has come to an end already.

        """
        while True:
            reply, final = await self._request_start(launch, report)
            if reply is None or reply.accepted:
                return final
            if reply.outcome != "throttled":
                raise await self._refusal(launch, reply, final)
            delay = self.throttle_delay if reply.retry_after is None else reply.retry_after
            if asyncio.get_running_loop().time() + delay > launch.deadline:
                raise LaunchFailed(
                    f"JupyterHub is too busy to start {_named(launch.user, launch.server)}: {reply.message}",
                    reason="throttled",
                    retry_after=delay,
                )
            await report(ProgressEvent(progress=0, message=f"{reply.message} Trying again in {delay:g} seconds."))
            await asyncio.sleep(delay)

    async def _request_start(self, launch: _Launch, report: Report) -> tuple[StartReply | None, ProgressEvent | None]:
        """Send the request, and follow the start while its answer is outstanding.

        Returns:
            The answer, None if it was lost, and the final event, None if there was none.

        """
        options = self._signer.sign(launch.id, launch.user, launch.server, launch.spec)
        post = asyncio.create_task(self._hub.start_server(launch.user, launch.server, {OPTIONS_KEY: options}))
        launch.unanswered = True
        tasks: list[asyncio.Task[Any]] = [post]
        final = None
        try:
            await asyncio.wait(tasks, timeout=self.progress_delay)
            if not post.done():
                follow = asyncio.create_task(self._follow(launch, report))
                tasks.append(follow)
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                # an acceptance leaves the rest to the events, anything else ends them
                await asyncio.wait([follow if not follow.done() and _is_accepted(post) else post])
                final = follow.result() if follow.done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            reply = post.result()
            launch.unanswered = False
            if reply.outcome == "ready":
                return reply, _READY
            if reply.accepted and final and final.phase == "failed":
                final = None  # of the start before, which the Hub repeats until it has begun with ours
            return reply, final
        except AnswerLost:
            if final is None and not await self._active_server(launch.user, launch.server):
                raise
            return None, final

    async def _follow(self, launch: _Launch, report: Report) -> ProgressEvent | None:
        """Report the Hub's events; the final one, or None if nothing is starting."""
        try:
            async with aclosing(self._progress.follow(launch.user, launch.server)) as events:
                async for event in events:
                    if event.final:
                        return event
                    await report(event)
        except NotStarting:
            pass
        return None

    async def _refusal(self, launch: _Launch, reply: StartReply, final: ProgressEvent | None) -> LauncherError:
        """What the Hub's refusal of a start means for the caller."""
        title, named = _title(launch.user, launch.server), _named(launch.user, launch.server)
        match reply.outcome:
            case "running":
                return ServerConflict(f"{title} is already running. Use it as it is, or stop it first.")
            case "stopping":
                return ServerConflict(f"{title} is being stopped. Try again.", reason="server_stopping", retry_after=5)
            case "no_user":
                return NotFound(
                    f"JupyterHub knows no user {launch.user}: your token does not hold admin:users to create one, "
                    "or the Hub's authenticator has another name for them.",
                    reason="user_not_found",
                )
            case "misconfigured":
                return HubRefused(
                    f"JupyterHub refuses the launcher: {reply.message} An administrator must check that the Hub and "
                    "the launcher have the same signing key, and that the launcher's role has its scopes."
                )
            case "refused":
                return InvalidRequest(f"JupyterHub did not start {named}: {reply.message}", reason="refused_by_hub")
        server = await self._active_server(launch.user, launch.server)
        if server and server["pending"] == "spawn":  # the process is gone, the Hub still waits for it to answer
            words = f" ({reply.message})" if "status=" in reply.message else ""
            return LaunchFailed(
                f"{title} did not start: its process ended while it was starting{words}. Its own log may say why.",
                reason="crashed",
            )
        # of a start that failed, the Hub repeats its verdict; of one that was cancelled, it has none
        final = final or (None if server else await self._follow(launch, _ignore))
        return _failed(launch, final.message) if final and final.phase == "failed" else _cancelled(launch)

    async def _confirm(self, launch: _Launch) -> JsonObject | None:
        """The Hub's model of the server if it is ready, None if it still starts.

        Raises:
            LaunchFailed, ServerConflict: it is gone, or not the one that was asked for.

        """
        server = await self._active_server(launch.user, launch.server)
        if not server or server["pending"] == "stop":
            raise _cancelled(launch)
        options = _launch_options(server)
        if not self._is_ours(server, launch):
            raise ServerConflict(
                f"Another start of {_named(launch.user, launch.server)} was under way; what runs has its options.",
                reason="server_starting",
            )
        if not server["ready"]:
            return None
        if options.get("up") == self._signer.mark(launch.id, launch.user, launch.server):
            return server
        if options.get("applied"):
            raise _cancelled(launch)
        raise LaunchFailed(
            "The Hub's spawner has ignored the launch options: its class lacks the launcher's mixin. "
            "An administrator must use install_launcher in jupyterhub_config.py.",
            reason="spawner_not_wrapped",
        )

    # -- servers

    async def _active_server(self, user: str, server: str) -> JsonObject | None:
        model = await self._hub.get_user(user)
        found: JsonObject | None = model["servers"].get(server) if model else None
        return found

    def _is_ours(self, server: JsonObject, launch: _Launch) -> bool:
        """Whether this launch has started it."""
        return bool(_launch_options(server).get("id") == launch.id)

    async def _stop(self, user: str, server: str) -> None:
        """Stop a server and revoke its tokens: once for all who ask for it, and to the end even if they go away."""
        key = (user, server)
        task = self._stops.get(key)
        if task is None:
            task = self._stops[key] = asyncio.create_task(self._stop_and_revoke(user, server), name=f"stop {key}")
            task.add_done_callback(lambda task: (self._stops.pop(key), task.cancelled() or task.exception()))
        await asyncio.shield(task)

    async def _stop_and_revoke(self, user: str, server: str) -> None:
        try:
            async with asyncio.timeout(self.stop_timeout):
                stopped = await self._hub.stop_server(user, server)
                await self._hub.revoke_tokens(user, server)
                delay = 0.5
                while not stopped:  # the Hub has no event for it
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 5)
                    stopped = await self._active_server(user, server) is None
        except TimeoutError:
            raise StopFailed(
                f"{_title(user, server)} has not stopped within {self.stop_timeout:g} seconds; "
                "the Hub goes on trying. Ask for its status."
            ) from None

    async def _clean_up(self, launch: _Launch) -> None:
        """Stop what a failed launch has left, unless it is another's."""
        try:
            for delay in (0, 1, 2):  # a start that was not answered may appear after we have given up
                await asyncio.sleep(delay)
                server = await self._active_server(launch.user, launch.server)
                if server and self._is_ours(server, launch):
                    return await self._stop(launch.user, launch.server)
                if server or not launch.unanswered:
                    return None
        except LauncherError as error:
            self.log.error("Launch %s failed and may have left a server: %s", launch.id, error.message)


async def _ignore(event: ProgressEvent) -> None:
    """Report to nobody."""


def _is_accepted(post: asyncio.Task[StartReply]) -> bool:
    return post.done() and not post.exception() and post.result().accepted


def _launch_options(server: JsonObject) -> JsonObject:
    options = (server.get("user_options") or {}).get(OPTIONS_KEY)
    return options if isinstance(options, dict) else {}


def _title(user: str, server: str) -> str:
    """The server at the beginning of a sentence; `_named` is for its middle."""
    return "T" + _named(user, server)[1:]


def _named(user: str, server: str) -> str:
    return f"the server {server!r} of {user}" if server else f"the server of {user}"


def _not_running(user: str, server: str) -> NotFound:
    return NotFound(f"{_title(user, server)} is not running.", reason="server_not_found")


def _cancelled(launch: _Launch) -> LaunchFailed:
    title = _title(launch.user, launch.server)
    return LaunchFailed(f"{title} was stopped before it was ready.", reason="cancelled")


def _failed(launch: _Launch, message: str) -> LaunchFailed:
    """What the Hub's final word on a start means."""
    title = _title(launch.user, launch.server)
    text = message.removeprefix("Spawn failed:").strip()
    if message == "Spawn cancelled":
        return _cancelled(launch)
    if not text:
        return LaunchFailed(f"{title} did not start within the spawner's start_timeout.", reason="timeout")
    reason = "never_ready" if "didn't respond in" in text else "start_failed"
    return LaunchFailed(f"{title} did not start: {text}", reason=reason)
