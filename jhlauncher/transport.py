"""Requests to JupyterHub: settings, connections, retries, and the errors that its failures become.

- Requests share kept-alive connections; what takes long (starting and stopping servers, event streams) has
  connections of its own, and so has the question who holds a token, which any stranger can have asked: neither takes a
  slot from the rest.
- Requests are repeated here and nowhere else: while the Hub can't be reached, with back-off, for `retry_timeout`
  seconds, and only where repeating does no harm.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp
from jupyterhub.utils import make_ssl_context
from traitlets import Float, TraitError, Unicode, default
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import AnswerLost, Forbidden, HubRefused, HubUnavailable, LauncherError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """An answer of the Hub's."""

    status: int
    body: Any
    retry_after: float | None

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else ""

    def __getitem__(self, key: str) -> Any:
        """A field of the body, which the Hub's documentation promises."""
        if not isinstance(self.body, dict) or key not in self.body:
            raise strange(f"without {key!r}")
        return self.body[key]


class Transport(LoggingConfigurable):
    """The connections to the Hub."""

    api_url = Unicode(
        help="""URL of the Hub's API, for example http://127.0.0.1:8081/hub/api.

        Default: $JUPYTERHUB_API_URL, or else $JUPYTERHUB_URL + $JUPYTERHUB_API_PREFIX ("/hub/api").
        """
    ).tag(config=True)
    api_token = Unicode(help="This service's token at the Hub. Default: $JUPYTERHUB_API_TOKEN.").tag(config=True)
    connect_timeout = Float(5, min=0.01, help="Seconds to wait for a connection to the Hub.").tag(config=True)
    request_timeout = Float(30, min=0.01, help="Seconds to wait for the Hub's answer to an ordinary request.").tag(
        config=True
    )
    spawn_request_timeout = Float(
        60,
        min=0.01,
        help="""Seconds to wait for the Hub's answer when starting or stopping a server.

        The Hub answers after its own slow_spawn_timeout or slow_stop_timeout (10 s) at the latest.
        """,
    ).tag(config=True)
    stream_timeout = Float(
        30,
        min=0.01,
        help="""Seconds without a byte after which an event stream counts as broken.

        The Hub sends a keepalive every 8 seconds.
        """,
    ).tag(config=True)
    retry_timeout = Float(
        20, min=0, help="Seconds for which a Hub that can't be reached is tried again. 0: never again."
    ).tag(config=True)
    retry_delay = Float(
        0.1, min=0, help="Seconds before the first such retry; each later one waits twice as long."
    ).tag(config=True)
    keyfile = Unicode(help="Key for TLS with the Hub (internal_ssl). Default: $JUPYTERHUB_SSL_KEYFILE.").tag(
        config=True
    )
    certfile = Unicode(help="Certificate for TLS with the Hub. Default: $JUPYTERHUB_SSL_CERTFILE.").tag(config=True)
    client_ca = Unicode(help="CA that signed the Hub's certificate. Default: $JUPYTERHUB_SSL_CLIENT_CA.").tag(
        config=True
    )

    @default("api_url")
    def _default_api_url(self) -> str:
        hub, prefix = (
            environment.text("JUPYTERHUB_URL"),
            environment.text("JUPYTERHUB_API_PREFIX", "/hub/api"),
        )
        fallback = hub.rstrip("/") + "/" + prefix.strip("/") if hub else ""
        return environment.text("JUPYTERHUB_API_URL", fallback)

    @default("api_token")
    def _default_api_token(self) -> str:
        return environment.text("JUPYTERHUB_API_TOKEN")

    @default("keyfile")
    def _default_keyfile(self) -> str:
        return environment.text("JUPYTERHUB_SSL_KEYFILE")

    @default("certfile")
    def _default_certfile(self) -> str:
        return environment.text("JUPYTERHUB_SSL_CERTFILE")

    @default("client_ca")
    def _default_client_ca(self) -> str:
        return environment.text("JUPYTERHUB_SSL_CLIENT_CA")

    def validate_settings(self) -> None:
        """Refuse what can't work, before anything is tried.

        Raises:
            TraitError: a setting is missing, or two contradict each other.

        """
        if not self.api_url:
            raise TraitError("the Hub's API is not known: set JUPYTERHUB_API_URL, or JUPYTERHUB_URL")
        url = urlsplit(self.api_url)
        if url.scheme not in ("http", "https", "http+unix") or not url.netloc:
            raise TraitError(f"the Hub's API URL must begin with http:// or https://, not be {self.api_url!r}")
        if not self.api_token:
            raise TraitError("the launcher has no token for the Hub: set JUPYTERHUB_API_TOKEN")
        prefix = environment.text("JUPYTERHUB_API_PREFIX")
        if prefix and not url.path.rstrip("/").endswith(prefix.rstrip("/")):
            raise TraitError(f"JUPYTERHUB_API_PREFIX={prefix} contradicts the Hub's API URL {self.api_url}")
        if bool(self.keyfile) != bool(self.certfile):
            raise TraitError("TLS with the Hub needs both JUPYTERHUB_SSL_KEYFILE and JUPYTERHUB_SSL_CERTFILE")
        for path in filter(None, (self.keyfile, self.certfile, self.client_ca)):
            if not os.access(path, os.R_OK):
                raise TraitError(f"the TLS file {path} can't be read")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._closing = AsyncExitStack()
        self.observers: list[Callable[[str, str], None]] = []
        """Called with the method and the status of each request; "error" if there was no answer."""

    def observed(self, method: str, code: int | str) -> None:
        """A request has been made."""
        for observer in self.observers:
            observer(method, str(code))

    async def start(self) -> None:
        """Make the client; no request is sent."""
        url = urlsplit(self.api_url)
        on_socket = url.scheme == "http+unix"
        self._base = "http://localhost" + url.path.rstrip("/") if on_socket else self.api_url.rstrip("/")
        socket = unquote(url.netloc) if on_socket else None
        self._brief = await self._session(socket, limit=50, seconds=self.request_timeout)
        self._callers = await self._session(socket, limit=50, seconds=self.request_timeout)
        self._long = await self._session(socket, limit=0, seconds=self.spawn_request_timeout)

    async def stop(self) -> None:
        """Close all connections."""
        await self._closing.aclose()

    async def _session(self, socket: str | None, limit: int, seconds: float) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if socket:
            connector = aiohttp.UnixConnector(path=socket, limit=limit)
        else:
            connector = aiohttp.TCPConnector(limit=limit, ssl=self.ssl_context() or True, keepalive_timeout=60)
        headers = {"Authorization": f"token {self.api_token}", "Accept": "application/json"}
        session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(seconds, sock_connect=self.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie set for one caller must not speak for the next
        )
        return await self._closing.enter_async_context(session)

    def ssl_context(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> ssl.SSLContext | None:
        """The Hub's internal TLS, for a client or a server; None where it isn't used."""
        context: ssl.SSLContext | None = make_ssl_context(
            self.keyfile, self.certfile, cafile=self.client_ca, purpose=purpose
        )
        return context

    # -- requests

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        form: dict[str, str] | None = None,
        expected: tuple[int, ...] | range = (),
        long: bool = False,
        repeatable: bool | None = None,
        patient: bool = True,
        for_stranger: bool = False,
        accept: str = "application/json",
        token: str = "",
    ) -> Reply:
        """One request, tried again while the Hub can't be reached.

        Args:
            method: of HTTP.
            path: below the API's URL, escaped.
            json: the body.
            form: the body of a request that takes the fields of a form.
            expected: error statuses that the caller interprets; others are raised.
            long: the answer may take `spawn_request_timeout`.
            repeatable: whether doing it twice does no harm; default: every method but POST.
            patient: whether to try again at all.
            accept: the form of the answer.
            for_stranger: anybody can have it asked, so that it must not hold up the rest.
            token: whose rights count; "": the launcher's own.

        Raises:
            HubUnavailable: the Hub does not answer.
            HubRefused: it refuses the launcher's own token.
            Forbidden: it refuses the ``token``.

        """
        headers = {"Accept": accept, **({"Authorization": f"token {token}"} if token else {})}
        if repeatable is None:
            repeatable = method != "POST"
        session = self._callers if for_stranger else self._long if long else self._brief

        async def request() -> Reply:
            async with self._answer(session, method, path, headers, json, form) as response:
                if token and response.status in (401, 403):
                    raise _not_for_you(method, path, await _json(response))
                await self._raise_for_unexpected(response, expected)
                return Reply(response.status, await _json(response), _seconds(response.headers.get("Retry-After")))

        return await self._retried(request, repeatable, patient)

    async def _holder(self, token: str) -> Reply:
        """The Hub's model of who holds a token; 401 or 403 if it knows nobody. Other errors are tried again."""

        async def request() -> Reply:
            async with self._answer(self._callers, "GET", "/user", {"Authorization": f"token {token}"}) as response:
                if response.status >= 400 and response.status not in (401, 403):
                    raise AnswerLost("JupyterHub could not be asked who holds this token.")
                return Reply(response.status, await _json(response), None)

        return await self._retried(request, repeatable=True, patient=True)

    async def _retried(self, attempt: Callable[[], Awaitable[Result]], repeatable: bool, patient: bool) -> Result:
        """The result of an attempt, made again with back-off while the Hub can't be reached."""
        deadline = time.monotonic() + (self.retry_timeout if patient else 0)
        delay = self.retry_delay
        while True:
            try:
                return await attempt()
            except HubUnavailable as error:
                harmless = repeatable or not isinstance(error, AnswerLost)
                if not harmless or time.monotonic() + delay > deadline:
                    raise
                self.log.warning("%s (%s) Trying again in %.1f s.", error.message, self.api_url, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5)

    @asynccontextmanager
    async def _answer(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: dict[str, str],
        json: Any = None,
        form: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The Hub's answer, whatever it is.

        Raises:
            HubUnavailable: the request was not sent.
            AnswerLost: it may have been, or somebody else has answered.

        """
        try:
            async with session.request(method, self._base + path, json=json, data=form, headers=headers) as response:
                self.observed(method, response.status)
                raise_for_stranger(response)
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.observed(method, "error")
            raise HubUnavailable(f"JupyterHub can't be reached ({method} {path}).") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            self.observed(method, "error")
            raise AnswerLost(f"JupyterHub does not answer ({method} {path}).") from error

    async def _raise_for_unexpected(self, response: aiohttp.ClientResponse, expected: tuple[int, ...] | range) -> None:
        status, what = response.status, f"{response.method} {response.url.path}"
        if status < 400 or (status in expected and status not in (401, 502, 503, 504)):
            return
        if status in (502, 503, 504):
            raise AnswerLost(f"JupyterHub is not available ({what} answered {status}).")
        if status in (401, 403):
            raise HubRefused(
                f"JupyterHub refuses the launcher's own token ({what} answered {status}). "
                "An administrator must check the token and the scopes of the launcher's role."
            )
        raise LauncherError(f"JupyterHub answered {status} to {what}.", reason="hub_error")


def raise_for_stranger(response: aiohttp.ClientResponse) -> None:
    """Take no other's word for the Hub's: a 404 of what is in front of it must not mean that a server is gone.

    All errors of the Hub's API are JSON (jupyterhub.apihandlers.APIHandler.write_error), those of a gateway that has
    lost it, or of whoever has its address meanwhile, are pages.

    Raises:
        AnswerLost: it is not the Hub's.

    """
    if response.status >= 400 and response.content_type != "application/json":
        what = f"{response.method} {response.url.path}"
        raise AnswerLost(f"JupyterHub is not available ({what} was answered {response.status} by something else).")


def _not_for_you(method: str, path: str, body: Any) -> Forbidden:
    said = body.get("message") if isinstance(body, dict) else None
    return Forbidden(f"JupyterHub does not let your token do this: {said or f'{method} {path}'}.")


def strange(what: str) -> LauncherError:
    return LauncherError(f"JupyterHub gave an answer {what}; an administrator must look at it.", reason="hub_error")


async def _json(response: aiohttp.ClientResponse) -> Any:
    """The body, if it is JSON: starts and stops answer with an empty one, a proxy perhaps with a page."""
    try:
        return json.loads(await response.read())
    except ValueError:
        return None


def _seconds(header: str | None) -> float | None:
    """``Retry-After`` in seconds (RFC 9110, 10.2.3); JupyterHub never sends its other form, a date."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
