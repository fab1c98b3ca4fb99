"""One start of a server at the Hub: from the request to the certainty that it is up, or why not.

The Hub's answers along the way are hints: its 201 may come before the server is ready, and its 500 while it still
starts. For a second after a cancel, both its event stream and the server's model say ``ready``. Only the marks decide
that the mixin in the Hub tells in the stream, and leaves in the options; they also tell whether what runs is what was
asked here (another start may have been under way, whose options the Hub keeps).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from .errors import AnswerLost, HubRefused, InvalidRequest, LauncherError, LaunchFailed, NotFound, ServerConflict
from .failures import Failure
from .hub import Hub, JsonObject, NotStarting, StartReply
from .models import LaunchSpec, ProgressEvent, parse
from .progress import Progress, ReadyEvent
from .records import name_of, title_of
from .signing import OPTIONS_KEY, BadSignature, Signer
from .turnstile import Turnstile

Report = Callable[[ProgressEvent], Awaitable[None]]

KEY_CHANGED = "The launcher's signing key has changed since this launch was accepted. Ask for it again."
_READY = ProgressEvent(progress=100, message="", phase="ready")
"""The Hub has nothing more to tell of the start."""


@dataclass
class Launch:
    """A launch under way."""

    user: str
    server: str
    spec: LaunchSpec
    id: str
    request: asyncio.Task[StartReply] | None = None
    """The start as it was sent to the Hub; until it is answered, the Hub may still take it up."""


class Throttled(Exception):
    """The Hub starts enough servers for now, or has enough of them."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds, when the Hub named them."""


class Starter(LoggingConfigurable):
    """Starts servers at the Hub."""

    progress_delay = Float(
        0.05,
        min=0,
        help="""Seconds that the Hub gets to answer a start before its progress is followed.

        This spares the event stream of a start that is refused or over at once.
        """,
    ).tag(config=True)
    requests_at_once = Integer(
        3,
        min=1,
        help="""Starts that each replica asks the Hub for at a time; the next one when it has taken one up.

        To take one up keeps the Hub's one thread busy for tens of milliseconds. Of many at once the last waits for all
        anyway, and with it everybody whose server is just ready, or who is at the Hub's pages.
        """,
    ).tag(config=True)
    request_patience = Float(
        1, min=0.01, help="Seconds after which the next start is asked for, whatever has become of the one before."
    ).tag(config=True)

    def __init__(self, hub: Hub, progress: Progress, signer: Signer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._progress = progress
        self._signer = signer
        self._turnstile = Turnstile(self.requests_at_once, self.request_patience)

    async def start(self, launch: Launch, report: Report, *, resumed: bool = False) -> JsonObject:
        """Start the server and make sure of it; its ``url`` and ``full_url`` as in the Hub's model of it.

        Args:
            launch: what to start.
            report: is told each step.
            resumed: the start may have been sent to the Hub before.

        Raises:
            LaunchFailed, ServerConflict, InvalidRequest, NotFound, HubRefused: it did not start, or is another's.
            HubUnavailable: it is not known what became of it; to be resumed.
            Throttled: the Hub did not take it up.

        """
        final = None
        if not (resumed and await self._is_taken_up(launch)):
            final = await self._begin(launch, report)
        while True:
            final = final or await self._follow(launch, report)
            if final and final.phase == "failed":
                raise await self._verdict(launch, final.message)
            server = self._proved(launch, final) or await self._confirm(launch, patient=resumed)
            if server:
                return server
            if not final:
                # pending, and yet without progress: the Hub checks its servers after a restart, and tells nobody
                await asyncio.sleep(1)
            final = None

    async def _is_taken_up(self, launch: Launch) -> bool:
        """Whether the Hub knows of this launch: then it starts or runs. It is not if the Hub lost it in a restart.

        Raises:
            LauncherError: it has ended.

        """
        if await self._hub.active_server(launch.user, launch.server):
            return True
        options = _launch_options({"user_options": await self._hub.server_options(launch.user, launch.server)})
        if options.get("id") == launch.id and (options.get("failure") or options.get("ended") or options.get("up")):
            raise await self._known_failure(launch) or cancelled(launch)
        return False

    async def _begin(self, launch: Launch, report: Report) -> ProgressEvent | None:
        """Have the Hub start the server.

        Returns:
            The final event, if the start has come to an end already.

        """
        reply, final = await self._request_start(launch, report)
        if reply and reply.outcome == "throttled":
            raise Throttled(reply.message, reply.retry_after)
        if reply and not reply.accepted:
            raise await self._refusal(launch, reply, final)
        return final

    async def _request_start(self, launch: Launch, report: Report) -> tuple[StartReply | None, ProgressEvent | None]:
        """Send the request, and follow the start while its answer is outstanding.

        Returns:
            The answer, None if it was lost, and the final event, None if there was none.

        """
        taken_up = await self._turnstile.enter()

        async def report_and_let_next_in(event: ProgressEvent) -> None:
            taken_up()
            await report(event)

        options = self._signer.sign(launch.id, launch.user, launch.server, launch.spec)
        post = asyncio.create_task(self._hub.start_server(launch.user, launch.server, {OPTIONS_KEY: options}))
        launch.request = post
        follow = asyncio.create_task(self._follow_while_outstanding(post, launch, report_and_let_next_in))
        try:
            await asyncio.wait([post, follow], return_when=asyncio.FIRST_COMPLETED)
            taken_up()
            # an acceptance leaves the rest to the events, anything else ends them
            await asyncio.wait([follow if not follow.done() and _is_accepted(post) else post])
            final = follow.result() if follow.done() else None
        finally:
            taken_up()
            follow.cancel()
            await asyncio.wait([follow])
        try:
            reply = post.result()
            if reply.outcome == "ready" and not (final and final.phase == "ready"):
                return reply, _READY
            if reply.accepted and final and final.phase == "failed":
                final = None  # of the start before, which the Hub repeats until it has begun with ours
            return reply, final
        except AnswerLost:
            if final is None and not await self._hub.active_server(launch.user, launch.server):
                raise
            return None, final

    async def _follow_while_outstanding(
        self, post: asyncio.Task[StartReply], launch: Launch, report: Report
    ) -> ProgressEvent | None:
        """The final event, None if the answer came first; a busy Hub may not have come to the request for a while."""
        delay = self.progress_delay
        while True:
            await asyncio.wait([post], timeout=delay)
            if post.done():
                return None
            final = await self._follow(launch, report)
            if final:
                return final
            delay = min(2 * delay, 5)

    async def _follow(self, launch: Launch, report: Report) -> ProgressEvent | None:
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

    async def _refusal(self, launch: Launch, reply: StartReply, final: ProgressEvent | None) -> LauncherError:
        """What the Hub's refusal of a start means for the caller."""
        if reply.outcome in ("refused", "failed"):
            known = await self._known_failure(launch)
            if known:
                return known
        title, named = title_of(launch.user, launch.server), name_of(launch.user, launch.server)
        match reply.outcome:
            case "running":
                return ServerConflict(f"{title} is already running. Use it as it is, or stop it first.")
            case "stopping":
                return stopping(launch.user, launch.server)
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
        server = await self._hub.active_server(launch.user, launch.server)
        if server and server["pending"] == "spawn":  # the process is gone, the Hub still waits for it to answer
            words = f" ({reply.message})" if "status=" in reply.message else ""
            return LaunchFailed(
                f"{title} did not start: its process ended while it was starting{words}. Its own log may say why.",
                reason="crashed",
            )
        # of a start that failed, the Hub repeats its verdict; of one that was cancelled, it has none
        final = final or (None if server else await self._follow(launch, _ignore))
        return _failed(launch, final.message) if final and final.phase == "failed" else cancelled(launch)

    async def _verdict(self, launch: Launch, message: str) -> LauncherError:
        """Why the start failed: what the spawner has left for us, and else what the Hub's words mean."""
        return await self._known_failure(launch) or _failed(launch, message)

    async def _known_failure(self, launch: Launch) -> LauncherError | None:
        """What the mixin in the Hub has found out, if it was this launch that failed."""
        options = await self._hub.server_options(launch.user, launch.server)
        sealed = _launch_options({"user_options": options}).get("failure")
        try:
            known = self._signer.unseal(sealed, "failure") if sealed else {}
        except BadSignature:
            return None
        if not isinstance(known, dict) or known.get("id") != launch.id:
            return None
        failure = parse(Failure, known["failure"])
        message = f"{title_of(launch.user, launch.server)} did not start: {failure.message}"
        if failure.refused:
            return InvalidRequest(message, reason=failure.reason)
        return LaunchFailed(message, reason=failure.reason, details=failure.details())

    def _proved(self, launch: Launch, final: ProgressEvent | None) -> JsonObject | None:
        """Where the server is, if the stream has told that this launch is up."""
        up = final.up if isinstance(final, ReadyEvent) else None
        if up and compare_digest(up.mark.encode(), self._mark(launch).encode()):
            return {"url": up.url, "full_url": up.full_url}
        return None

    def _mark(self, launch: Launch) -> str:
        return self._signer.mark(launch.id, launch.user, launch.server)

    async def _confirm(self, launch: Launch, patient: bool) -> JsonObject | None:
        """The Hub's model of the server if it is ready, None if it still starts.

        Args:
            launch: whose it should be.
            patient: the Hub may just have taken it up; until it begins, it shows the options of the start before.

        Raises:
            LaunchFailed, ServerConflict: it is gone, or not the one that was asked for.

        """
        server = await self._hub.active_server(launch.user, launch.server)
        if not server or server["pending"] == "stop":
            raise await self._known_failure(launch) or cancelled(launch)
        options = _launch_options(server)
        if not is_ours(server, launch):
            if patient and server["pending"]:
                return None
            raise ServerConflict(
                f"Another start of {name_of(launch.user, launch.server)} was under way; what runs has its options.",
                reason="server_starting",
            )
        if not server["ready"]:
            return None
        if options.get("up") == self._mark(launch):
            return server
        if options.get("applied"):
            raise await self._known_failure(launch) or cancelled(launch)
        raise LaunchFailed(
            "The Hub's spawner has ignored the launch options: its class lacks the launcher's mixin. "
            "An administrator must use install_launcher in jupyterhub_config.py.",
            reason="spawner_not_wrapped",
        )


def launch_id(server: JsonObject) -> str | None:
    """The id of the launch that has started the server."""
    found: str | None = _launch_options(server).get("id")
    return found


def is_ours(server: JsonObject, launch: Launch) -> bool:
    """Whether this launch has started the server."""
    return launch_id(server) == launch.id


async def _ignore(event: ProgressEvent) -> None:
    """Report to nobody."""


def _is_accepted(post: asyncio.Task[StartReply]) -> bool:
    return post.done() and not post.exception() and post.result().accepted


def _launch_options(server: JsonObject) -> JsonObject:
    options = (server.get("user_options") or {}).get(OPTIONS_KEY)
    return options if isinstance(options, dict) else {}


def cancelled(launch: Launch) -> LaunchFailed:
    """The end of a launch that somebody stopped."""
    title = title_of(launch.user, launch.server)
    return LaunchFailed(f"{title} was stopped before it was ready.", reason="cancelled")


def stopping(user: str, server: str) -> ServerConflict:
    """The error for a server that must have stopped before it can start."""
    return ServerConflict(
        f"{title_of(user, server)} is being stopped. Try again.", reason="server_stopping", retry_after=5
    )


def _failed(launch: Launch, message: str) -> LaunchFailed:
    """What the Hub's final word on a start means."""
    title = title_of(launch.user, launch.server)
    text = message.removeprefix("Spawn failed:").strip()
    if message == "Spawn cancelled":
        return cancelled(launch)
    if not text:
        return LaunchFailed(f"{title} did not start within the spawner's start_timeout.", reason="timeout")
    reason = "never_ready" if "didn't respond in" in text else "start_failed"
    return LaunchFailed(f"{title} did not start: {text}", reason=reason)
