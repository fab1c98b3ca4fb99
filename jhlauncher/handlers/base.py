"""What all handlers share: bodies of bounded size, one shape of error, and its translation to HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import parse_qs

from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body

from ..errors import (
    CallerError,
    InvalidRequest,
    LauncherError,
    MethodNotAllowed,
    ShuttingDown,
    Unauthenticated,
)
from ..models import ModelType, parse
from .serving import Serving

Result = TypeVar("Result")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@stream_request_body
class BaseHandler(RequestHandler):
    """JSON in, JSON out, with bounded bodies and one shape of error; who may call is a subclass's.

    The request's headers are judged before its body is read, so that strangers send nothing into memory.
    """

    needs_caller = True
    """Whether only those are served whom `admit` lets in."""
    endless = False
    """Whether the answer goes on until somebody ends it."""
    challenge = 'Bearer realm="JupyterHub"'
    """How to say who one is (RFC 9110, 11.6.1)."""

    def initialize(self) -> None:
        """Register the request."""
        self._received = bytearray()
        self._reads_body = False
        self._task: asyncio.Task[Any] | None = None
        self._gone = False
        self.serving.requests.add(self)

    def on_finish(self) -> None:
        """Unregister the request."""
        self._forget()

    def _forget(self) -> None:
        self.serving.requests.discard(self)
        if not self.serving.requests:
            self.serving.idle.set()

    @property
    def serving(self) -> Serving:
        """What all requests share."""
        serving: Serving = self.settings["serving"]
        return serving

    # -- the request

    async def prepare(self) -> None:
        """Turn away whom this service does not serve."""
        if self.serving.draining:
            raise ShuttingDown("The service is stopping. Try again.", retry_after=10)
        if not self._answers_to(str(self.request.method)):
            raise MethodNotAllowed(f"This resource does not answer to {self.request.method}.")
        if self.needs_caller:
            await self.admit()
        self._reads_body = True

    async def admit(self) -> None:
        """Find out who calls.

        Raises:
            Unauthenticated, Forbidden: nobody who is served here.

        """
        raise NotImplementedError

    def _answers_to(self, method: str) -> bool:
        return getattr(type(self), method.lower(), None) is not getattr(RequestHandler, method.lower(), None)

    def data_received(self, chunk: bytes) -> None:
        """Keep the body up to one byte more than is allowed, of callers that we know."""
        if not self.needs_caller:
            return
        room = self.serving.max_body_size + 1 - len(self._received)
        self._received += chunk[:room]

    def body(self, model: type[ModelType]) -> ModelType:
        """The request's body as a ``model``.

        Raises:
            InvalidRequest: it is not a valid one, or too large.

        """
        return parse(model, self.received())

    def idempotency_key(self) -> str | None:
        """The header ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header), with or without its quotes.

        Raises:
            InvalidRequest: it is empty, too long, or has other than visible ASCII characters.

        """
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidRequest("The Idempotency-Key must have 1 to 255 visible ASCII characters.")
        return key

    def received(self) -> bytes:
        """The request's body as it came.

        Raises:
            InvalidRequest: it is too large.

        """
        if len(self._received) > self.serving.max_body_size:
            raise InvalidRequest(f"The body has more than {self.serving.max_body_size} bytes.", reason="too_large")
        return bytes(self._received)

    def query(self, model: type[ModelType]) -> ModelType:
        """The request's query as a ``model``; each name at most once.

        Raises:
            InvalidRequest: it is not a valid one.

        """
        try:
            query = parse_qs(self.request.query, keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError:
            raise InvalidRequest("The query is not valid: it is not URL-encoded UTF-8, or too long.") from None
        repeated = [name for name, values in query.items() if len(values) > 1]
        if repeated:
            fields = [{"field": name, "problem": "is given more than once"} for name in repeated]
            raise InvalidRequest(f"The query has {', '.join(repeated)} more than once.", details={"fields": fields})
        return parse(model, {name: values[0] for name, values in query.items()})

    # -- work that may be cut short

    async def interruptible(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of long work, unless the client goes away or the service stops first.

        Raises:
            ShuttingDown: the service stops.

        """
        if self._gone or self.request.connection.stream.closed():  # type: ignore[union-attr]
            # of a client that leaves right after asking, Tornado does not tell
            work.close()
            raise Finish
        self._task = task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            while task and task.cancelling():
                task.uncancel()  # it was `interrupt`, perhaps twice, and what follows is the answer
            if self.serving.draining:
                raise ShuttingDown(
                    "The service has been stopped meanwhile; what was asked for may go on.",
                    retry_after=10,
                ) from None
            self.set_status(499, "Client Closed Request")
            raise Finish from None
        finally:
            self._task = None

    def interrupt(self) -> None:
        """Cut long work short."""
        if self._task:
            self._task.cancel()

    def on_connection_close(self) -> None:
        """The client has gone: nobody waits for the answer."""
        self._gone = True
        body = self.request._body_future
        waits_for_body = body is not None and not body.done()
        super().on_connection_close()  # ends Tornado's wait for a body that will not come
        self.interrupt()
        if waits_for_body:
            self._forget()  # Tornado lets such a request go without finishing it

    # -- the answer

    def set_default_headers(self) -> None:
        """Answers are for the caller alone; nothing here is to be shown in a frame or guessed to be HTML."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

    def compute_etag(self) -> None:
        """No tags: what this service says changes, and is not to be cached."""

    def answer(self, body: Any, status: int = 200) -> None:
        """Finish with a JSON body."""
        self.set_status(status)
        self.finish(json.dumps(body))

    def nothing(self) -> None:
        """Finish with 204."""
        self.clear_header("Content-Type")
        self.set_status(204)
        self.finish()

    def redirect(self, url: str, permanent: bool = False, status: int | None = None) -> None:
        """Send the client elsewhere; before the body is read, on another connection, as in `write_error`."""
        if not self._reads_body:
            self.set_header("Connection", "close")
        super().redirect(url, permanent, status)

    def status_of(self, error: LauncherError) -> int:
        """The HTTP status of an error."""
        return error.status

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the error's one shape; Tornado calls this for whatever a handler raises."""
        error = self.translate(kwargs.get("exc_info", (None, None, None))[1], status_code)
        self.set_status(self.status_of(error))
        if isinstance(error, Unauthenticated):
            self.set_header("WWW-Authenticate", self.challenge)
        if isinstance(error, MethodNotAllowed):
            methods = [method for method in self.SUPPORTED_METHODS if self._answers_to(method)]
            self.set_header("Allow", ", ".join(methods))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(math.ceil(error.retry_after)))
        if not self._reads_body:
            # Tornado closes it then, and a proxy that is not told would send its next request into the void
            self.set_header("Connection", "close")
        self.finish_error(error)

    def finish_error(self, error: LauncherError) -> None:
        """Finish with what is said of an error; status and headers are set."""
        self.finish(json.dumps(self.error_body(error)))

    def error_body(self, error: LauncherError) -> Any:
        """What is said of an error."""
        return error.as_dict(self.status_of(error))

    def translate(self, error: BaseException | None, status_code: int = 500) -> LauncherError:
        """Any exception as one of ours; a foreign one says nothing of itself to the caller."""
        if isinstance(error, LauncherError):
            return error
        status = error.status_code if isinstance(error, HTTPError) else status_code
        if status == 405:
            return MethodNotAllowed(f"This resource does not answer to {self.request.method}.")
        if status < 500:
            return CallerError("The request is not valid HTTP for this service.")
        return LauncherError("The service has failed; its log tells why.")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a traceback for bugs only: what has a name is told where it happens, and in the access log."""
        refused = isinstance(value, HTTPError) and value.status_code < 500  # its words may be the caller's
        if not refused and not isinstance(value, LauncherError | Finish):
            super().log_exception(typ, value, tb)
