"""The only place that talks to JupyterHub, and that turns its answers and failures into ours.

- Requests share kept-alive connections; what takes long (starting and stopping servers, event streams) has
  connections of its own, so that it takes no slot from the rest.
- Requests are repeated here and nowhere else: while the Hub can't be reached, with back-off, for `retry_timeout`
  seconds, and only where repeating does no harm.
- What the Hub answers is interpreted here (docs: https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html);
  callers see domain values and the errors of `jhlauncher.errors`.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from async_lru import alru_cache
from jupyterhub.services.auth import HubAuth
from jupyterhub.utils import make_ssl_context
from tornado.web import HTTPError
from traitlets import Float, TraitError, Unicode, default
from traitlets.config import LoggingConfigurable

from . import environment, sse
from .errors import AnswerLost, HubRefused, HubUnavailable, InvalidRequest, LauncherError, Unauthenticated
from .models import Caller

try:
    from jupyterhub.httpclient import JupyterHubHTTPClient  # what HubAuth uses
except ImportError:  # JupyterHub 5: HubAuth uses Tornado's client, which keeps nothing open
    JupyterHubHTTPClient = None

TOKEN_NOTE = "jhlauncher"  # noqa: S105  (a label, not a secret)

NEEDED_SCOPES = {"admin:users", "servers", "tokens"}
"""What our own token needs: to create users, to start, stop and see servers, to mint and revoke tokens."""

JsonObject = dict[str, Any]
Result = TypeVar("Result")


class NotStarting(Exception):
    """The Hub has no start of this server under way, so there is no progress to follow."""


Outcome = Literal[
    "ready", "accepted", "throttled", "running", "stopping", "no_user", "refused", "misconfigured", "failed"
]


@dataclass(frozen=True)
class StartReply:
    """How the Hub took the request to start a server. Neither ``ready`` nor ``failed`` is the last word."""

    outcome: Outcome
    message: str = ""
    retry_after: float | None = None
    """Seconds, when the Hub named them."""

    @property
    def accepted(self) -> bool:
        """The Hub has started it, or has found a start of it under way."""
        return self.outcome in ("ready", "accepted")


@dataclass(frozen=True)
class _Reply:
    status: int
    body: Any
    retry_after: float | None

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else ""

    def __getitem__(self, key: str) -> Any:
        """A field of the body, which the Hub's documentation promises."""
        if not isinstance(self.body, dict) or key not in self.body:
            raise _strange(f"without {key!r}")
        return self.body[key]


class Hub(LoggingConfigurable):
    """JupyterHub's REST API, as far as launching needs it."""

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
    auth_cache_seconds = Float(
        60,
        min=0.01,
        help="""Seconds for which a caller's identity and scopes are remembered.

        A token revoked at the Hub works here for as long.
        """,
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

    async def start(self) -> None:
        """Make the client; no request is sent."""
        url = urlsplit(self.api_url)
        on_socket = url.scheme == "http+unix"
        self._base = "http://localhost" + url.path.rstrip("/") if on_socket else self.api_url.rstrip("/")
        socket = unquote(url.netloc) if on_socket else None
        self._brief = await self._closing.enter_async_context(self._session(socket, limit=50))
        self._long = await self._closing.enter_async_context(self._session(socket, limit=0))
        self._auth = HubAuth(
            api_url=self.api_url.rstrip("/"),
            api_token=self.api_token,
            keyfile=self.keyfile,
            certfile=self.certfile,
            client_ca=self.client_ca,
        )
        if JupyterHubHTTPClient:
            self._closing.push_async_callback(JupyterHubHTTPClient.loop_instance().close)
        # Only successes stay in these caches, and those who ask at once share one request. HubAuth's own cache would
        # also keep every wrong token for minutes.
        self._check = alru_cache(ttl=2)(self._ask_missing_scopes)
        self._identify = alru_cache(maxsize=10_000, ttl=self.auth_cache_seconds)(self._ask_identity)
        for cache in (self._check, self._identify):
            self._closing.push_async_callback(cache.cache_close)

    async def stop(self) -> None:
        """Close all connections."""
        await self._closing.aclose()

    def _session(self, socket: str | None, limit: int) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if socket:
            connector = aiohttp.UnixConnector(path=socket, limit=limit)
        else:
            connector = aiohttp.TCPConnector(limit=limit, ssl=self.ssl_context() or True, keepalive_timeout=60)
        headers = {"Authorization": f"token {self.api_token}", "Accept": "application/json"}
        return aiohttp.ClientSession(connector=connector, headers=headers)

    def ssl_context(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> ssl.SSLContext | None:
        """The Hub's internal TLS, for a client or a server; None where it isn't used."""
        context: ssl.SSLContext | None = make_ssl_context(
            self.keyfile, self.certfile, cafile=self.client_ca, purpose=purpose
        )
        return context

    # -- callers

    async def identify(self, token: str) -> Caller:
        """Who holds this token.

        Raises:
            Unauthenticated: the Hub does not know it.

        """
        caller: Caller = await self._identify(token)
        return caller

    async def _ask_identity(self, token: str) -> Caller:
        async def ask() -> Any:
            try:
                async with asyncio.timeout(self.request_timeout):
                    return await self._auth.user_for_token(token, use_cache=False, sync=False)
            except (HTTPError, TimeoutError, ValueError) as error:
                raise HubUnavailable("JupyterHub could not be asked who holds this token.") from error

        model = await self._retried(ask, repeatable=True, patient=True)
        if model is None:
            raise Unauthenticated("JupyterHub does not know this token; it may have expired or been revoked.")
        if not isinstance(model, dict) or not {"name", "scopes"} <= model.keys():
            raise _strange("without a caller's name and scopes")
        return Caller(
            name=model["name"],
            kind="service" if model.get("kind") == "service" else "user",
            groups=frozenset(model.get("groups") or ()),
            scopes=frozenset(model["scopes"]),
        )

    # -- users and servers

    async def check(self) -> frozenset[str]:
        """Those of `NEEDED_SCOPES` that our token lacks; the Hub answers and accepts it.

        Raises:
            LauncherError: it doesn't.

        """
        missing: frozenset[str] = await self._check()
        return missing

    async def _ask_missing_scopes(self) -> frozenset[str]:
        reply = await self._request("GET", "/user", patient=False)
        # a role may be filtered to some users, which is the administrator's choice
        held = {scope.partition("!")[0] for scope in reply["scopes"]}
        return frozenset(NEEDED_SCOPES - held)

    async def get_user(self, user: str) -> JsonObject | None:
        """The Hub's model of a user, with the active servers; None if there is no such user."""
        reply = await self._request("GET", _path(user), expected=(404,))
        if reply.status == 404:
            return None
        if not isinstance(reply["servers"], dict):
            raise _strange("without a user's servers")
        return dict(reply.body)

    async def active_server(self, user: str, server: str) -> JsonObject | None:
        """The Hub's model of a server that runs, starts or stops; None if it does none of these."""
        model = await self.get_user(user)
        found: JsonObject | None = model["servers"].get(server) if model else None
        return found

    async def server_options(self, user: str, server: str) -> JsonObject:
        """The options of the latest start of a server, also of one that has ended or failed."""
        reply = await self._request("GET", _path(user) + "?include_stopped_servers", expected=(404,))
        if reply.status == 404 or server not in reply["servers"]:
            return {}
        return reply["servers"][server].get("user_options") or {}

    async def create_user(self, user: str) -> str | None:
        """Create a user, named as the Hub's login would name them.

        Returns:
            The name of the new user, or None if they were there already.

        Raises:
            InvalidRequest: the Hub's authenticator does not accept the name.

        """
        reply = await self._request("POST", "/users", json={"usernames": [user]}, expected=(400, 409), repeatable=True)
        if reply.status == 400:
            raise InvalidRequest(
                f"JupyterHub does not accept the user: {reply.message}",
                details={"fields": [{"field": "username", "problem": reply.message}]},
            )
        if reply.status == 409:
            return None
        try:
            return str(reply.body[0]["name"])
        except (TypeError, LookupError):
            raise _strange("without the new user's name") from None

    async def start_server(self, user: str, server: str, options: JsonObject) -> StartReply:
        """Ask the Hub to start a server. It may answer only after its slow_spawn_timeout.

        The options are the whole body: JupyterHub 5 knows no other form, JupyterHub 6 still takes it.

        Raises:
            HubUnavailable: it could not be reached, or the answer was lost: the start may be under way.

        """
        reply = await self._request("POST", _path(user, server), json=options, expected=range(400, 600), long=True)
        return StartReply(_outcome(reply.status, reply.message), reply.message, reply.retry_after)

    async def stop_server(self, user: str, server: str) -> bool:
        """Stop a server, or cancel its start. True when it has stopped, False while the Hub still works on it."""
        reply = await self._request("DELETE", _path(user, server), expected=(404,), long=True)
        return reply.status != 202

    async def progress(self, user: str, server: str) -> AsyncGenerator[JsonObject, None]:
        """The Hub's events for a start, one connection long.

        Raises:
            NotStarting: nothing is starting.
            HubUnavailable: the stream could not be opened, or broke.
            LauncherError: the Hub does not let us, or says something else.

        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout, sock_read=self.stream_timeout)
        url = self._base + _path(user, server) + "/progress"
        try:
            async with self._long.get(url, headers={"Accept": "text/event-stream"}, timeout=timeout) as response:
                if response.status in (400, 404):
                    raise NotStarting
                await self._raise_for_unexpected(response, ())
                async with aclosing(sse.decode(response.content.iter_any())) as events:
                    async for event in events:
                        yield json.loads(event.data)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise HubUnavailable("The Hub's progress stream broke.") from error

    # -- tokens

    async def create_token(self, user: str, server: str, expires_in: int) -> str:
        """A token of the user's that opens this one server, and expires after ``expires_in`` seconds."""
        body = {
            "note": f"{TOKEN_NOTE} {user}/{server}",
            "expires_in": expires_in,
            "scopes": [f"access:servers!server={user}/{server}"],
        }
        reply = await self._request("POST", _path(user) + "/tokens", json=body)
        return str(reply["token"])

    async def revoke_tokens(self, user: str, server: str) -> None:
        """Revoke what `create_token` made for this server."""
        reply = await self._request("GET", _path(user) + "/tokens", expected=(404,))
        tokens = reply["api_tokens"] if reply.status == 200 else []
        ours = [token["id"] for token in tokens if token["note"] == f"{TOKEN_NOTE} {user}/{server}"]
        for token_id in ours:
            await self._request("DELETE", f"{_path(user)}/tokens/{token_id}", expected=(404,))

    # -- requests

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        expected: tuple[int, ...] | range = (),
        long: bool = False,
        repeatable: bool | None = None,
        patient: bool = True,
    ) -> _Reply:
        """One request, tried again while the Hub can't be reached.

        Args:
            method: of HTTP.
            path: below the API's URL, escaped.
            json: the body.
            expected: error statuses that the caller interprets; others are raised.
            long: the answer may take `spawn_request_timeout`.
            repeatable: whether doing it twice does no harm; default: every method but POST.
            patient: whether to try again at all.

        """
        if repeatable is None:
            repeatable = method != "POST"

        async def request() -> _Reply:
            return await self._request_once(method, path, json, expected, long)

        return await self._retried(request, repeatable, patient)

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

    async def _request_once(
        self, method: str, path: str, json: Any, expected: tuple[int, ...] | range, long: bool
    ) -> _Reply:
        session = self._long if long else self._brief
        timeout = aiohttp.ClientTimeout(
            total=self.spawn_request_timeout if long else self.request_timeout,
            sock_connect=self.connect_timeout,
        )
        try:
            async with session.request(method, self._base + path, json=json, timeout=timeout) as response:
                await self._raise_for_unexpected(response, expected)
                return _Reply(response.status, await _json(response), _seconds(response.headers.get("Retry-After")))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise HubUnavailable(f"JupyterHub can't be reached ({method} {path}).") from error
        except (aiohttp.ClientError, TimeoutError) as error:
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


def _outcome(status: int, message: str) -> Outcome:
    """What the Hub's answer to a start means; some of it only its words tell."""
    known: dict[int, Outcome] = {201: "ready", 202: "accepted", 404: "no_user", 429: "throttled"}
    if status in known:
        return known[status]
    if status == 400 and "already running" in message:
        return "running"
    if status == 400 and "is pending" in message:
        return "stopping"
    if status == 403 and ("current scopes" in message or "not signed by the launcher" in message):
        return "misconfigured"
    return "refused" if status < 500 else "failed"


def _strange(what: str) -> LauncherError:
    return LauncherError(f"JupyterHub gave an answer {what}; an administrator must look at it.", reason="hub_error")


def _path(user: str, server: str | None = None) -> str:
    """A user's or a server's path in the API, escaped as the Hub does it."""
    path = "/users/" + quote(user, safe="@~")
    if server is None:
        return path
    return f"{path}/servers/{quote(server, safe='@~')}" if server else f"{path}/server"


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
