"""What is left of servers that no Hub knows any more: on the engine, and in the Hub itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..errors import Unauthenticated
from ..hub import Hub
from ..signing import OPTIONS_KEY
from .found import Engine, EngineUnavailable, Found

_AT_A_TIME = 8
"""Users that the Hub is asked about at a time."""


@dataclass(frozen=True)
class Orphan:
    """Something that nobody misses."""

    kind: str
    """container, service, pod, process, token or server."""
    name: str
    user: str
    server: str
    since: str
    why: str
    found: Found | None = None
    """If it is the engine's."""
    token: str = ""
    """The id of a token."""
    launch: str = ""
    """Whose token it is."""


class Orphanage:
    """Finds and removes what one Hub has lost. At each step, first what there is, and then what is known.

    Args:
        engine: where servers run.
        hub: which should know them.
        api_url: the Hub's API as servers know it.
        with_tokens: whether we may look at tokens.

    """

    def __init__(self, engine: Engine, hub: Hub, api_url: str, *, with_tokens: bool) -> None:
        self._engine = engine
        self._hub = hub
        self._api_url = api_url
        self._with_tokens = with_tokens

    async def find(self) -> AsyncIterator[Orphan]:
        """All of them.

        Raises:
            EngineUnavailable: the engine can't be asked.
            LauncherError: the Hub can't be asked, or does not let us.

        """
        there = await self._engine.servers(self._api_url)
        users = [user async for user in self._hub.all_users()]
        tokens = await self._tokens_of([user["name"] for user in users])
        known = await self._hub.active_servers()
        for found in there:
            if (found.user, found.server) not in known and not await self._is_missed(found):
                why = "the Hub has no such server running"
                yield Orphan(found.kind, found.name, found.user, found.server, found.since, why, found)
        for user in users:
            for orphan in [*_tokens(user["name"], tokens.get(user["name"], []), known), *_rows(user)]:
                yield orphan

    async def _tokens_of(self, users: list[str]) -> dict[str, list[Any]]:
        if not self._with_tokens:
            return {}
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def of(user: str) -> list[Any]:
            async with turns:
                return await self._hub.launchers_tokens(user)

        return dict(zip(users, await asyncio.gather(*map(of, users)), strict=True))

    async def _is_missed(self, found: Found) -> bool:
        """Whether the Hub still knows the server's own token, as when its user has got another name."""
        if not found.token:
            return False
        try:
            await self._hub.identify(found.token)
        except Unauthenticated:
            return False
        return True

    async def remove(self, orphan: Orphan) -> bool:
        """Remove it, unless it has found somebody in the meantime; whether it was removed.

        Raises:
            EngineUnavailable: the engine does not do it.
            LauncherError: the Hub does not do it.

        """
        running = await self._hub.active_server(orphan.user, orphan.server)
        if running and not (orphan.token and _launch(running) != orphan.launch):
            return False
        if orphan.found:
            await self._engine.remove(orphan.found)
        elif orphan.token:
            await self._hub.delete_token(orphan.user, orphan.token)
        elif self._engine.forgetting_removes_volumes:
            raise EngineUnavailable("KubeSpawner would delete its volume, too; remove it at the Hub's own page")
        else:
            await self._hub.remove_server(orphan.user, orphan.server)
        return True


class Abandoned:
    """What a Hub has left behind that is gone: nobody knows any of its servers.

    Args:
        engine: where they run.
        api_url: the Hub's API as they knew it.

    """

    def __init__(self, engine: Engine, api_url: str) -> None:
        self._engine = engine
        self._api_url = api_url

    async def find(self) -> AsyncIterator[Orphan]:
        """All of them.

        Raises:
            EngineUnavailable: the engine can't be asked.

        """
        for found in await self._engine.servers(self._api_url):
            yield Orphan(found.kind, found.name, found.user, found.server, found.since, "its Hub is gone", found)

    async def remove(self, orphan: Orphan) -> bool:
        """Remove it.

        Raises:
            EngineUnavailable: the engine does not do it.

        """
        if orphan.found:
            await self._engine.remove(orphan.found)
        return True


def _launch(server: dict[str, Any]) -> str | None:
    """Of which launch a server is, that the Hub has this model of."""
    launch: str | None = ((server.get("user_options") or {}).get(OPTIONS_KEY) or {}).get("id")
    return launch


def _tokens(user: str, tokens: list[Any], known: dict[tuple[str, str], Any]) -> list[Orphan]:
    """The launcher's tokens that open a server which is not that launch's any more."""
    orphans = []
    for token in tokens:
        server, launch = token["server"], token["launch"]
        running = known.get((user, server))
        if running is not None and _launch(running) == launch:
            continue
        why = f"it is of the launch {launch}, which has ended" if running else "it opens a server that does not run"
        since = (token["created"] or "").partition(".")[0]
        name = f"token {token['id']}"
        orphans.append(Orphan("token", name, user, server, since, why, token=token["id"], launch=launch))
    return orphans


def _rows(user: dict[str, Any]) -> list[Orphan]:
    """Named servers at the Hub that never ran: what is left of a start that was turned down, or never came up.

    A named server that somebody has made for later has a name to be shown, or options.
    """
    orphans = []
    for name, model in (user.get("servers") or {}).items():
        ran = model["ready"] or model["pending"] or model["started"] or model["last_activity"]
        options = model.get("user_options") or {}
        shown = model.get("display_name") or name
        meant = (options and OPTIONS_KEY not in options) or shown != name
        if name and not ran and not meant:
            why = "it never ran: a start that was turned down or failed has left it"
            orphans.append(Orphan("server", f"{user['name']}/{name}", user["name"], name, "", why))
    return orphans
