"""The use cases: launch a server, tell about it, stop it. Knows nothing of HTTP.

How a launch goes::

    scopes -> policy -> user (created if need be) -> sign the spec -> ask the Hub to start it
           -> follow its events -> ask the Hub whether it is true -> a token for this server

`jhlauncher.starting` has the middle of it, and why it asks the Hub once more than it seems to need.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from traitlets import Float, Integer, default
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import Forbidden, HubUnavailable, LauncherError, LaunchFailed, NotFound, ServerConflict, StopFailed
from .hub import Hub, JsonObject
from .models import Caller, Launched, LaunchRequest
from .policy import Policy
from .starting import Launch, Report, Starter, cancelled, is_ours, name_of, title_of

# a scope's name before JupyterHub 6, where one scope was for all three
START, STOP, READ = ("start:servers", "servers"), ("delete:servers", "servers"), ("read:servers", "servers")


@dataclass(frozen=True)
class _Target:
    """Whose server it is about; the caller's scopes cover it."""

    user: str
    groups: frozenset[str] = frozenset()
    known: bool = False
    """The Hub is known to have this user."""


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

    @default("start_timeout")
    def _default_start_timeout(self) -> float:
        return environment.number("STATUS_CHECK_INTERVAL", 10) * environment.number("STATUS_CHECK_COUNT", 30)

    @default("token_lifetime")
    def _default_token_lifetime(self) -> int:
        return int(environment.number("USER_TOKEN_LIFETIME", 1800))

    def __init__(self, hub: Hub, policy: Policy, starter: Starter, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._policy = policy
        self._starter = starter
        self._launches: dict[tuple[str, str], Launch] = {}
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
        decision = self._policy.authorise(caller, target.user, target.groups, request)
        user = await self._ensure_user(caller, target, request)
        if user != target.user:
            decision = self._policy.authorise(caller, user, frozenset(), request)
        if (user, server) in self._launches:
            raise ServerConflict(f"{title_of(user, server)} is already being started.", reason="server_starting")
        deadline = asyncio.get_running_loop().time() + self.start_timeout
        launch = self._launches[user, server] = Launch(user, server, decision.spec, deadline)
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
        launch = self._launches.get((user, server))
        if launch:
            launch.stop()
        elif not await self._hub.active_server(user, server):
            await self._hub.revoke_tokens(user, server)  # of a server that somebody else has stopped
            raise _not_running(user, server)
        self.log.info("Stopping %s/%s for %s", user, server, caller.label)
        if launch:
            await launch.ended.wait()
        if await self._hub.active_server(user, server):
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
            f"Your token's scopes do not reach {name_of(user, server)}: {scopes[0]} is needed for it.",
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

    # -- a launch

    async def _run_in_time(self, launch: Launch, report: Report) -> Launched:
        """The launch within `start_timeout`; what it leaves when it fails is stopped."""
        title = title_of(launch.user, launch.server)
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
            error = cancelled(launch)
        except (ServerConflict, HubUnavailable):
            raise
        except Exception as problem:
            error = problem
        # whoever cancels at the Hub also stops: a second stop at the same time would make the Hub fail the first
        if launch.stopped or not (isinstance(error, LaunchFailed) and error.reason == "cancelled"):
            await self._clean_up(launch)
        raise error

    async def _run(self, launch: Launch, report: Report) -> Launched:
        """Start the server and mint its token."""
        server = await self._starter.start(launch, report)
        token = await self._hub.create_token(launch.user, launch.server, self.token_lifetime)
        return Launched(launch.user, launch.server, token, path=server["url"], full_url=server.get("full_url"))

    # -- servers

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
                    stopped = await self._hub.active_server(user, server) is None
        except TimeoutError:
            raise StopFailed(
                f"{title_of(user, server)} has not stopped within {self.stop_timeout:g} seconds; "
                "the Hub goes on trying. Ask for its status."
            ) from None

    async def _clean_up(self, launch: Launch) -> None:
        """Stop what a failed launch has left, unless it is another's."""
        try:
            for delay in (0, 1, 2):  # a start that was not answered may appear after we have given up
                await asyncio.sleep(delay)
                server = await self._hub.active_server(launch.user, launch.server)
                if server and is_ours(server, launch):
                    return await self._stop(launch.user, launch.server)
                if server or not launch.unanswered:
                    return None
        except LauncherError as error:
            self.log.error("Launch %s failed and may have left a server: %s", launch.id, error.message)


def _not_running(user: str, server: str) -> NotFound:
    return NotFound(f"{title_of(user, server)} is not running.", reason="server_not_found")
