"""What all handlers share: authentication, bodies of bounded size, one shape of error, and its translation to HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qs, urljoin

from jupyterhub.utils import get_browser_protocol
from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body

from ..errors import (
    CallerError,
    Forbidden,
    InvalidRequest,
    LauncherError,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
    Unauthenticated,
)
from ..models import Caller, ModelType, parse
from ..parts import Parts
from .streams import Keepalive

Result = TypeVar("Result")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+([\x21-\x7e]+)\s*", re.IGNORECASE)


@dataclass
class Services:
    """What the handlers share."""

    parts: Parts
    authenticate_prometheus: bool
    """Whether `metrics` needs the scope read:metrics."""
    prefix: str
    """The path below which everything answers."""
    service_name: str
    """At the Hub."""
    public_url: str
    max_body_size: int
    """Bytes."""
    keepalive_interval: float
    """Seconds between signs of life on a quiet event stream."""
    keepalive: Keepalive = field(init=False)
    draining: bool = False
    """The service stops: no new requests."""
    requests: set[BaseHandler] = field(default_factory=set)
    """Those under way."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last request has been answered while draining."""

    def __post_init__(self) -> None:
        self.keepalive = Keepalive(self.keepalive_interval)

    async def drain(self, timeout: float) -> None:
        """Let requests end by themselves for ``timeout`` seconds, and then cut them short; streams at once."""
        self.draining = True
        for request in list(self.requests):
            if request.endless:
                request.interrupt()
        for wait in (timeout, 5):
            if self.requests:
                self.idle.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self.idle.wait()
                except TimeoutError:
                    for request in self.requests:
                        request.interrupt()


@stream_request_body
class BaseHandler(RequestHandler):
    """JSON in, JSON out, for callers that the Hub knows.

    The request's headers are judged before its body is read, so that strangers send nothing into memory.
    """

    needs_caller = True
    """Whether only callers with a token of the Hub's, and the scope to reach this service, are served."""
    endless = False
    """Whether the answer goes on until somebody ends it."""

    caller: Caller

    def initialize(self) -> None:
        """Register the request."""
        self._received = bytearray()
        self._reads_body = False
        self._task: asyncio.Task[Any] | None = None
        self._gone = False
        self.services.requests.add(self)

    def on_finish(self) -> None:
        """Unregister the request."""
        self._forget()

    def _forget(self) -> None:
        self.services.requests.discard(self)
        if not self.services.requests:
            self.services.idle.set()

    @property
    def services(self) -> Services:
        """The parts of the application."""
        services: Services = self.settings["services"]
        return services

    # -- the request

    async def prepare(self) -> None:
        """Turn away whom this service does not serve."""
        if self.services.draining:
            raise ShuttingDown("The launcher is stopping. Try again.", retry_after=10)
        if not self._answers_to(str(self.request.method)):
            raise MethodNotAllowed(f"This resource does not answer to {self.request.method}.")
        if self.needs_caller:
            self.caller = await self._admitted()
        self._reads_body = True

    def _answers_to(self, method: str) -> bool:
        return getattr(type(self), method.lower(), None) is not getattr(RequestHandler, method.lower(), None)

    async def authenticate(self) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: nobody whom the Hub knows.

        """
        match = _AUTHORIZATION.fullmatch(self.request.headers.get("Authorization", ""))
        if not match:
            raise Unauthenticated("Send a JupyterHub token: `Authorization: token ...`.")
        return await self.services.parts.hub.identify(match[1])

    async def _admitted(self) -> Caller:
        caller = await self.authenticate()
        access = "access:services"
        if caller.scopes.isdisjoint({access, f"{access}!service={self.services.service_name}"}):
            needs = f"{access}!service={self.services.service_name}"
            raise Forbidden(f"Your token can't reach this service: {needs} is needed.", details={"needs": needs})
        return caller

    async def admit_again(self) -> None:
        """Look again who calls, before something secret is said that they have waited for.

        Raises:
            Unauthenticated, Forbidden: their token is not good any more.

        """
        self.caller = await self._admitted()

    def data_received(self, chunk: bytes) -> None:
        """Keep the body up to one byte more than is allowed, of callers that we know."""
        if not self.needs_caller:
            return
        room = self.services.max_body_size + 1 - len(self._received)
        self._received += chunk[:room]

    def body(self, model: type[ModelType]) -> ModelType:
        """The request's body as a ``model``.

        Raises:
            InvalidRequest: it is not a valid one, or too large.

        """
        if len(self._received) > self.services.max_body_size:
            raise InvalidRequest(f"The body has more than {self.services.max_body_size} bytes.", reason="too_large")
        return parse(model, bytes(self._received))

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

    def absolute_url(self, path: str, full_url: str | None) -> str:
        """A server's URL as the caller can open it: as configured, else as the Hub says, else as they came here."""
        if self.services.public_url:
            return urljoin(self.services.public_url, path)
        if full_url:
            return full_url
        return urljoin(f"{get_browser_protocol(self.request)}://{self.request.host}", path)

    # -- work that may be cut short

    async def interruptible(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of long work, unless the client goes away or the service stops first.

        Raises:
            ShuttingDown: the service stops.

        """
        if self._gone:
            work.close()
            raise Finish
        self._task = task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            while task and task.cancelling():
                task.uncancel()  # it was `interrupt`, perhaps twice, and what follows is the answer
            if self.services.draining:
                raise ShuttingDown(
                    "The launcher has been stopped meanwhile; what JupyterHub was asked goes on there.",
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

    def compute_etag(self) -> None:
        """No tags: what this service says changes, and is not to be cached."""

    def answer(self, body: Any, status: int = 200) -> None:
        """Finish with a JSON body."""
        self.set_status(status)
        self.finish(json.dumps(body))

    def status_of(self, error: LauncherError) -> int:
        """The HTTP status of an error."""
        return error.status

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the error's one shape; Tornado calls this for whatever a handler raises."""
        error = self.translate(kwargs.get("exc_info", (None, None, None))[1], status_code)
        self.set_status(self.status_of(error))
        if isinstance(error, Unauthenticated):
            self.set_header("WWW-Authenticate", 'Bearer realm="JupyterHub"')
        if isinstance(error, MethodNotAllowed):
            methods = [method for method in self.SUPPORTED_METHODS if self._answers_to(method)]
            self.set_header("Allow", ", ".join(methods))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(math.ceil(error.retry_after)))
        if not self._reads_body and self.request.headers.get("Content-Length", "0") != "0":
            self.set_header("Connection", "close")  # Tornado does so when it has not read the body
        self.finish(json.dumps(error.as_dict(self.status_of(error))))

    def translate(self, error: BaseException | None, status_code: int = 500) -> LauncherError:
        """Any exception as one of ours; a foreign one says nothing of itself to the caller."""
        if isinstance(error, LauncherError):
            return error
        status = error.status_code if isinstance(error, HTTPError) else status_code
        if status == 405:
            return MethodNotAllowed(f"This resource does not answer to {self.request.method}.")
        if status < 500:
            return CallerError("The request is not valid HTTP for this service.")
        return LauncherError("The launcher has failed; its log tells why.")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a traceback for bugs only: what has a name is told where it happens, and in the access log."""
        if not isinstance(value, LauncherError | Finish):
            super().log_exception(typ, value, tb)


class NotFoundHandler(BaseHandler):
    """Any other address."""

    needs_caller = False

    async def prepare(self) -> None:
        """Answer 404 to every method."""
        raise NotFound(f"There is nothing at {self.request.path}.")
