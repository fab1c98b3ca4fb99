"""``containers``: start a server and wait for it, ask for its status, stop it.

The contract, field by field and code by code, is docs/http.md's; clients of many years rely on it. Failures have the
status codes that those clients know: 400 for whatever the caller can mend, 500 for whatever went wrong; 401 and 403
say who may not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from tornado.ioloop import PeriodicCallback
from tornado.iostream import StreamClosedError
from tornado.web import Finish

from .. import sse
from ..errors import (
    CallerError,
    Forbidden,
    LauncherError,
    MethodNotAllowed,
    PolicyDenied,
    ShuttingDown,
    Unauthenticated,
)
from ..models import LaunchRequest, ProgressEvent, ServerQuery
from ..records import LaunchRecord
from .base import BaseHandler

# the fields of the Hub's server model that GET returns
STATUS_FIELDS = ("last_activity", "name", "pending", "progress_url", "ready", "started", "url")


class ContainersHandler(BaseHandler):
    """One server of one user."""

    _keepalive: PeriodicCallback | None = None
    _launch: LaunchRecord | None = None

    async def post(self) -> None:
        """Launch a server; answers when it is ready, or with each event as it happens."""
        request = self.body(LaunchRequest)
        sent = json.loads(self._received)

        launcher = self.services.launcher

        async def launch() -> dict[str, Any]:
            self._launch = await launcher.submit(
                self.caller, request, key=self.idempotency_key(), waits=launcher.start_timeout
            )
            launched = await launcher.wait(self._launch, self._report)
            return {
                "image": self._launch.spec.image,
                "server_name": launched.server_name,
                "token": launched.token,
                "url": self.absolute_url(launched.path, launched.full_url),
                "username": launched.username,
                "vols": sent.get("vols") or [],
                **{key: sent[key] for key in ("cpu", "memory", "gpu") if sent.get(key)},
            }

        self._wants_events = "text/event-stream" in self.request.headers.get("Accept", "")
        try:
            result = await self.interruptible(launch())
        except Finish:
            if self._launch:
                await launcher.abandon(self._launch)
            raise
        except Exception as error:
            if not self._headers_written:
                raise
            self._end_stream("failed", self._as_event(error))
        else:
            if self._wants_events:
                self._end_stream("ready", result)
            else:
                self.answer(result)

    async def get(self) -> None:
        """Tell about a running or pending server."""
        query = self.query(ServerQuery)
        server = await self.services.launcher.status(self.caller, query.username, query.server_name)
        self.answer({**{field: server[field] for field in STATUS_FIELDS}, "state": server.get("state") or {}})

    async def delete(self) -> None:
        """Stop a server; answers when it has stopped."""
        query = self.query(ServerQuery)
        await self.interruptible(self.services.launcher.stop(self.caller, query.username, query.server_name))
        self.clear_header("Content-Type")
        await self.finish()

    def status_of(self, error: LauncherError) -> int:
        """The codes that the contract knows."""
        if isinstance(error, Unauthenticated | Forbidden | PolicyDenied | MethodNotAllowed | ShuttingDown):
            return error.status
        return 400 if isinstance(error, CallerError) else 500

    # -- the event stream

    def on_finish(self) -> None:
        """Stop the keepalive, however the request ended."""
        super().on_finish()
        if self._keepalive:
            self._keepalive.stop()

    async def _report(self, event: ProgressEvent) -> None:
        if self._wants_events:
            self._begin_stream()
            await self._send(sse.encode(event.model_dump(), name="progress"))

    async def _send(self, text: str) -> None:
        with suppress(StreamClosedError):  # on_connection_close deals with it
            self.write(text)
            await self.flush()

    def _begin_stream(self) -> None:
        if not self._headers_written:
            self.set_header("Content-Type", "text/event-stream")
            self.set_header("X-Accel-Buffering", "no")  # nginx would hold events back
            self._keepalive = PeriodicCallback(
                lambda: self._send(sse.KEEPALIVE), self.services.keepalive_interval * 1000
            )
            self._keepalive.start()

    def _end_stream(self, name: str, data: dict[str, Any]) -> None:
        self._begin_stream()
        self.finish(sse.encode(data, name=name))

    def _as_event(self, error: Exception) -> dict[str, Any]:
        if not isinstance(error, LauncherError):
            self.log_exception(type(error), error, error.__traceback__)
        ours = self.translate(error)
        return ours.as_dict(self.status_of(ours))
