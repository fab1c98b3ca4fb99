"""What is left of servers that no Hub knows any more: on the engine, and in the Hub itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..hub import Hub
from ..signing import OPTIONS_KEY
from .found import Engine, Found

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


class Orphanage:
    """Finds and removes them.

    Args:
        engine: where servers run; None: only the Hub is looked at.
        hub: None if there is none any more: then nothing is known to anybody.
        api_url: the Hub's API as servers know it.

    """

    def __init__(self, engine: Engine | None, hub: Hub | None, api_url: str) -> None:
        self._engine = engine
        self._hub = hub
        self._api_url = api_url

    async def find(self) -> AsyncIterator[Orphan]:
        """All of them.

        Raises:
            EngineUnavailable: the engine can't be asked.
            LauncherError: the Hub can't be asked, or does not let us.

        """
        # first what there is, then what is known: a server that starts meanwhile is in neither or in both
        there = await self._engine.servers(self._api_url) if self._engine else []
        known = await self._hub.active_servers() if self._hub else {}
        for found in there:
            if why := self._unknown(found, known):
                yield Orphan(found.kind, found.name, found.user, found.server, found.since, why, found)
        if self._hub:
            async for orphan in self._in_the_hub(self._hub, known):
                yield orphan

    def _unknown(self, found: Found, known: dict[tuple[str, str], Any]) -> str:
        """Why nobody misses it; "" if somebody may."""
        if self._hub is None:
            return "its Hub is gone"
        return "" if (found.user, found.server) in known else "the Hub has no such server running"

    async def _in_the_hub(self, hub: Hub, known: dict[tuple[str, str], Any]) -> AsyncIterator[Orphan]:
        users = [user async for user in hub.users_with_stopped_servers()]
        for start in range(0, len(users), _AT_A_TIME):
            some = users[start : start + _AT_A_TIME]
            for user, tokens in zip(
                some, await asyncio.gather(*(hub.launchers_tokens(user["name"]) for user in some)), strict=True
            ):
                for orphan in [*_tokens(user["name"], tokens, known), *_rows(user)]:
                    yield orphan

    async def remove(self, orphan: Orphan) -> bool:
        """Remove it, unless it has found somebody in the meantime; whether it was removed.

        Raises:
            EngineUnavailable: the engine does not do it.
            LauncherError: the Hub does not do it.

        """
        if self._hub and await self._hub.active_server(orphan.user, orphan.server) and not orphan.token:
            return False
        if orphan.found:
            assert self._engine  # noqa: S101  (for mypy: who else has found it)
            await self._engine.remove(orphan.found)
        elif orphan.token:
            assert self._hub  # noqa: S101  (for mypy)
            await self._hub.delete_token(orphan.user, orphan.token)
        else:
            assert self._hub  # noqa: S101  (for mypy)
            await self._hub.remove_server(orphan.user, orphan.server)
        return True


def _tokens(user: str, tokens: list[Any], known: dict[tuple[str, str], Any]) -> list[Orphan]:
    """The launcher's tokens that open a server which is not that launch's any more."""
    orphans = []
    for token in tokens:
        launch = token["launch"]
        running = known.get((user, token["server"]))
        if running is None:
            why = "it opens a server that does not run"
        elif ((running.get("user_options") or {}).get(OPTIONS_KEY) or {}).get("id") != launch:
            why = f"it is of the launch {launch}, which has ended"
        else:
            continue
        name = f"token {token['id']}"
        since = (token["created"] or "").partition(".")[0]
        orphans.append(Orphan("token", name, user, token["server"], since, why, token=token["id"]))
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
