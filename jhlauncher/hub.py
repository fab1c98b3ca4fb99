"""JupyterHub's REST API, as far as launching needs it: the only place that interprets what the Hub answers.

Docs: https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html. Callers see domain values and the errors of
`jhlauncher.errors`; how requests travel, and when they are repeated, is `jhlauncher.transport`'s.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
from async_lru import alru_cache
from traitlets import Float

from . import sse
from .errors import AnswerLost, HubUnavailable, InvalidRequest, LauncherError, Unauthenticated
from .models import Caller
from .signing import noted, token_note
from .transport import Reply, Transport, raise_for_stranger, strange

NEEDED_SCOPES = {"admin:users", "servers", "tokens"}
"""What our own token needs: to create users, to start, stop and see servers, to mint and revoke tokens."""

JsonObject = dict[str, Any]

_PAGE = 200
"""Users of one answer of the Hub's; more than its own limit does no harm."""


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


class Hub(Transport):
    """JupyterHub's REST API, as far as launching needs it."""

    auth_cache_seconds = Float(
        60,
        min=0.01,
        help="""Seconds for which a caller's identity and scopes are remembered.

        A token revoked at the Hub works here for as long.
        """,
    ).tag(config=True)

    async def start(self) -> None:
        """Make the client and the caches; no request is sent."""
        await super().start()
        # only successes stay in these caches, and those who ask at once share one request
        self._check = alru_cache(ttl=2)(self._ask_missing_scopes)
        self._identify = alru_cache(maxsize=10_000, ttl=self.auth_cache_seconds)(self._ask_identity)
        self._members = alru_cache(maxsize=1000, ttl=self.auth_cache_seconds)(self._ask_members)
        for cache in (self._check, self._identify, self._members):
            self._closing.push_async_callback(cache.cache_close)
        self._asking: asyncio.Task[None] | None = None
        self._closing.push_async_callback(self._stop_asking)

    async def _stop_asking(self) -> None:
        if self._asking:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    # -- callers

    async def identify(self, token: str, session: str = "") -> Caller:
        """Who holds this token.

        Args:
            token: of the Hub.
            session: of a browser: with a new one, the Hub is asked again.

        Raises:
            Unauthenticated: the Hub does not know it.

        """
        caller: Caller = await self._identify(token, session)
        return caller

    async def _ask_identity(self, token: str, session: str) -> Caller:
        reply = await self._holder(token)
        if reply.status in (401, 403):
            raise Unauthenticated("JupyterHub does not know this token; it may have expired or been revoked.")
        model = reply.body
        if not isinstance(model, dict) or not {"name", "scopes"} <= model.keys():
            raise strange("without a caller's name and scopes")
        return Caller(
            name=model["name"],
            kind="service" if model.get("kind") == "service" else "user",
            groups=frozenset(model.get("groups") or ()),
            scopes=frozenset(model["scopes"]),
        )

    async def redeem(self, fields: dict[str, str]) -> str:
        """The token of someone who has logged in with a browser, for the fields of OAuth's request (RFC 6749, 4.1.3).

        Raises:
            Unauthenticated: the code in it is not good, or not any more.

        """
        reply = await self._request("POST", "/oauth2/token", form=fields, expected=(400,), for_stranger=True)
        if reply.status == 400:
            raise Unauthenticated("JupyterHub does not accept this login any more. Log in again.")
        return str(reply["access_token"])

    # -- the Hub

    async def reachable(self) -> None:
        """Return as soon as the Hub answers, and takes our token; those who wait share the asking."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_until_reached(), name="waiting for JupyterHub")
        await asyncio.shield(self._asking)

    async def _ask_until_reached(self) -> None:
        delay = self.retry_delay
        while True:
            try:
                await self._request("GET", "/user", patient=False)
                return
            except LauncherError:
                await asyncio.sleep(delay)
                delay = min(max(delay, 0.05) * 2, 5)

    async def service(self, name: str) -> JsonObject | None:
        """The Hub's model of a service, None if it does not show us one of this name."""
        reply = await self._request("GET", f"/services/{quote(name, safe='')}", expected=(403, 404))
        return dict(reply.body) if reply.status == 200 and isinstance(reply.body, dict) else None

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
        _servers(reply.body)
        return dict(reply.body)

    async def active_server(self, user: str, server: str) -> JsonObject | None:
        """The Hub's model of a server that runs, starts or stops; None if it does none of these."""
        model = await self.get_user(user)
        found: JsonObject | None = model["servers"].get(server) if model else None
        return found

    async def active_servers(self) -> dict[tuple[str, str], JsonObject]:
        """The Hub's models of all servers that run, start or stop, by user and server."""
        return {
            (user["name"], name): model
            async for user in self._users("&state=active")
            for name, model in _servers(user).items()
        }

    async def _users(self, which: str = "", token: str = "") -> AsyncGenerator[JsonObject, None]:
        """The Hub's models of users, page by page."""
        offset: int | None = 0
        while offset is not None:
            path = f"/users?offset={offset}&limit={_PAGE}{which}"
            reply = await self._request("GET", path, accept="application/jupyterhub-pagination+json", token=token)
            for user in reply["items"]:
                yield user
            following = reply["_pagination"]["next"]
            offset = following["offset"] if following else None

    def users_seen_by(self, token: str) -> AsyncGenerator[JsonObject, None]:
        """The Hub's models of all users that the holder of this token may see."""
        return self._users(token=token)

    async def as_caller(self, token: str, method: str, path: str, **kwargs: Any) -> Reply:
        """A request with the rights of a caller; see `Transport._request`."""
        return await self._request(method, path, token=token, **kwargs)

    async def all_users(self) -> AsyncGenerator[JsonObject, None]:
        """The Hub's models of all users, with their named servers that do not run, too."""
        async for user in self._users("&include_stopped_servers=1"):
            yield user

    async def remove_server(self, user: str, server: str) -> None:
        """Have the Hub forget a named server."""
        await self._request("DELETE", _path(user, server), json={"remove": True}, expected=(404,))

    async def members(self, groups: frozenset[str]) -> frozenset[str]:
        """The users in any of these groups, as they were up to `auth_cache_seconds` ago."""
        found: frozenset[str] = await self._members(groups)
        return found

    async def _ask_members(self, groups: frozenset[str]) -> frozenset[str]:
        return frozenset([user["name"] async for user in self._users() if groups.intersection(user["groups"])])

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
            raise strange("without the new user's name") from None

    async def start_server(self, user: str, server: str, options: JsonObject) -> StartReply:
        """Ask the Hub to start a server. It may answer only after its slow_spawn_timeout.

        The options are the whole body: JupyterHub 5 knows no other form, JupyterHub 6 still takes it.

        Raises:
            HubUnavailable: it could not be reached, or the answer was lost: the start may be under way.

        """
        reply = await self._request("POST", _path(user, server), json=options, expected=range(400, 600), long=True)
        return StartReply(_outcome(reply.status, reply.message), reply.message, reply.retry_after)

    async def stop_server(self, user: str, server: str) -> None:
        """Ask the Hub to stop a server, or to cancel its start; whether it has, is to be asked.

        A busy Hub answers 500 to the cancel of a start that does not end at once, and then may go on with the start.
        """
        await self._request("DELETE", _path(user, server), expected=(404, 500), long=True)

    async def progress(self, user: str, server: str) -> AsyncGenerator[JsonObject, None]:
        """The Hub's events for a start, one connection long.

        Raises:
            NotStarting: nothing is starting.
            AnswerLost: the stream broke.
            HubUnavailable: it could not be opened.
            LauncherError: the Hub does not let us, or says something else.

        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout, sock_read=self.stream_timeout)
        url = self._base + _path(user, server) + "/progress"
        opened = False
        try:
            async with self._long.get(url, headers={"Accept": "text/event-stream"}, timeout=timeout) as response:
                self.observed("GET", response.status)
                raise_for_stranger(response)
                if response.status in (400, 404):
                    raise NotStarting
                await self._raise_for_unexpected(response, ())
                opened = True
                async with aclosing(sse.decode(response.content.iter_any())) as events:
                    async for event in events:
                        yield json.loads(event.data)
        except (aiohttp.ClientError, TimeoutError, ValueError, AnswerLost) as error:
            if opened:
                raise AnswerLost("The Hub's progress stream broke.") from error
            raise HubUnavailable("JupyterHub can't be reached for the progress of a start.") from error

    # -- tokens

    async def create_token(self, user: str, server: str, launch: str, expires_in: int) -> str:
        """A token of the user's that opens this one server, and expires after ``expires_in`` seconds."""
        body = {
            "note": f"{token_note(user, server)}{launch})",
            "expires_in": expires_in,
            "scopes": [f"access:servers!server={user}/{server}"],
        }
        reply = await self._request("POST", _path(user) + "/tokens", json=body)
        return str(reply["token"])

    async def revoke_tokens(self, user: str, server: str, launch: str = "") -> None:
        """Revoke what `create_token` made for this server, or only for one launch of it."""
        for token in await self.launchers_tokens(user):
            if token["server"] == server and launch in ("", token["launch"]):
                await self.delete_token(user, token["id"])

    async def launchers_tokens(self, user: str) -> list[JsonObject]:
        """The Hub's models of what `create_token` made for this user, each with its ``server`` and ``launch``."""
        reply = await self._request("GET", _path(user) + "/tokens", expected=(404,))
        tokens = reply["api_tokens"] if reply.status == 200 else []
        whose = [(token, noted(user, token["note"] or "")) for token in tokens]
        return [{**token, "server": of[0], "launch": of[1]} for token, of in whose if of]

    async def delete_token(self, user: str, token_id: str) -> None:
        """Revoke a token; nothing happens if it is gone."""
        await self._request("DELETE", f"{_path(user)}/tokens/{token_id}", expected=(404,))


def _servers(user: Any) -> JsonObject:
    """The servers in the Hub's model of a user: who may not see them must not take them for none."""
    if not isinstance(user, dict) or not isinstance(user.get("servers"), dict):
        raise strange("without a user's servers")
    return dict(user["servers"])


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


def _path(user: str, server: str | None = None) -> str:
    """A user's or a server's path in the API, escaped as the Hub does it."""
    path = "/users/" + quote(user, safe="@~")
    if server is None:
        return path
    return f"{path}/servers/{quote(server, safe='@~')}" if server else f"{path}/server"
