"""``containers``: start a server and wait for it, ask for its status, stop it.

The contract, field by field and code by code, is docs/http.md's; clients of many years rely on it. Failures have the
status codes that those clients know: 400 for whatever the caller can mend, 500 for whatever went wrong; 401 and 403
say who may not.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from tornado.web import Finish

from ..errors import (
    CallerError,
    Forbidden,
    LauncherError,
    MethodNotAllowed,
    PolicyDenied,
    ShuttingDown,
    Unauthenticated,
)
from ..models import LaunchRequest, NoQuery, ProgressEvent, ServerQuery
from ..records import LaunchRecord
from .callers import HubHandler
from .streams import EventStream

# the fields of the Hub's server model that GET returns
STATUS_FIELDS = ("last_activity", "name", "pending", "progress_url", "ready", "started", "url")


class ContainersHandler(HubHandler):
    """One server of one user."""

    _stream: EventStream | None = None
    _submission: asyncio.Task[LaunchRecord] | None = None

    async def post(self) -> None:
        """Launch a server; answers when it is ready, or with each event as it happens."""
        self.query(NoQuery)
        request = self.body(LaunchRequest)
        sent = json.loads(self._received)

        launcher = self.services.parts.launcher

        async def launch() -> dict[str, Any]:
            submission = launcher.submit(self.caller, request, key=self.idempotency_key(), waits=launcher.start_timeout)
            self._submission = asyncio.create_task(submission)
            record = await asyncio.shield(self._submission)  # so that it is known if the client leaves meanwhile
            launched = await launcher.wait(record, self._report)
            await self.admit()
            return {
                "image": record.spec.image,
                "server_name": launched.server_name,
                "token": None if self.in_browser else launched.token,
                "url": self.absolute_url(launched.path, launched.full_url),
                "username": launched.username,
                "vols": sent.get("vols") or [],
                **{key: sent[key] for key in ("cpu", "memory", "gpu") if sent.get(key)},
            }

        if "text/event-stream" in self.request.headers.get("Accept", ""):
            self._stream = EventStream(self, self.serving.keepalive)
        try:
            result = await self.interruptible(launch())
        except Finish:
            if self._submission:
                with suppress(LauncherError):
                    await launcher.abandon(await self._submission)
            raise
        except Exception as error:
            if not (self._stream and self._stream.begun):
                raise
            self._stream.end(self._as_event(error), name="failed")
        else:
            if self._stream:
                self._stream.end(result, name="ready")
            else:
                self.answer(result)
        finally:
            if self._submission:  # which goes on if the service stops meanwhile
                await asyncio.gather(self._submission, return_exceptions=True)

    async def get(self) -> None:
        """Tell about a running or pending server."""
        query = self.query(ServerQuery)
        server = await self.services.parts.launcher.status(self.caller, query.username, query.server_name)
        self.answer({**{field: server[field] for field in STATUS_FIELDS}, "state": server.get("state") or {}})

    async def delete(self) -> None:
        """Stop a server; answers when it has stopped."""
        query = self.query(ServerQuery)
        await self.interruptible(self.services.parts.launcher.stop(self.caller, query.username, query.server_name))
        self.clear_header("Content-Type")
        await self.finish()

    def status_of(self, error: LauncherError) -> int:
        """The codes that the contract knows."""
        if isinstance(error, Unauthenticated | Forbidden | PolicyDenied | MethodNotAllowed | ShuttingDown):
            return error.status
        return 400 if isinstance(error, CallerError) else 500

    # -- the event stream

    def on_finish(self) -> None:
        """Forget the stream, however the request ended."""
        super().on_finish()
        if self._stream:
            self._stream.close()

    async def _report(self, event: ProgressEvent) -> None:
        if self._stream:
            await self._stream.send(event.model_dump(), name="progress")

    def _as_event(self, error: Exception) -> dict[str, Any]:
        if not isinstance(error, LauncherError):
            self.log_exception(type(error), error, error.__traceback__)
        ours = self.translate(error)
        return ours.as_dict(self.status_of(ours))
