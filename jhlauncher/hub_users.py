"""Users and groups at the Hub, managed with the token of who asks for it: the Hub itself decides what they may.

The launcher's own token is not used, so that it needs no rights for this.
Docs: https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from .errors import CallerError
from .hub import Hub
from .transport import Reply

JsonObject = dict[str, Any]


class HubUsers:
    """The users of the Hub, as somebody may manage them.

    Args:
        hub: where they are.
        token: whose rights count.

    """

    def __init__(self, hub: Hub, token: str) -> None:
        self._hub = hub
        self._token = token

    async def is_admin(self) -> bool:
        """Whether the token is an administrator's, who alone may make others administrators."""
        return bool((await self._ask("GET", "/user"))["admin"])

    def all(self) -> AsyncGenerator[JsonObject, None]:
        """The Hub's models of all users that may be seen."""
        return self._hub.users_seen_by(self._token)

    async def page(self, offset: int, limit: int, name: str = "") -> tuple[list[JsonObject], int | None]:
        """A page of the users that may be seen, and where the next one begins.

        Args:
            offset: users before it.
            limit: users on it.
            name: a part of their names.

        """
        query = urlencode({"offset": offset, "limit": limit, **({"name_filter": name} if name else {})})
        reply = await self._ask("GET", f"/users?{query}", accept="application/jupyterhub-pagination+json")
        following = reply["_pagination"]["next"]
        return list(reply["items"]), following["offset"] if following else None

    async def get(self, user: str) -> JsonObject | None:
        """The Hub's model of a user; None if there is none that may be seen."""
        reply = await self._ask("GET", f"/users/{_part(user)}", expected=(404,))
        return None if reply.status == 404 else dict(reply.body)

    async def create(self, users: Sequence[str], *, admin: bool) -> None:
        """Make these users; those who are there already stay as they are.

        Raises:
            CallerError: the Hub refuses one of the names; some of the others may have been made.

        """
        body = {"usernames": list(users), "admin": admin}
        reply = await self._ask("POST", "/users", json=body, expected=(400, 409), repeatable=True, long=True)
        if reply.status == 400:
            raise CallerError(f"JupyterHub did not make the user: {reply.message}")

    async def promote(self, user: str) -> None:
        """Make somebody an administrator."""
        await self._ask("PATCH", f"/users/{_part(user)}", json={"admin": True})

    async def has_group(self, group: str) -> bool:
        """Whether there is such a group."""
        return (await self._ask("GET", f"/groups/{_part(group)}", expected=(404,))).status != 404

    async def create_group(self, group: str) -> None:
        """Make a group, if there is none."""
        await self._ask("POST", f"/groups/{_part(group)}", json={}, expected=(409,), repeatable=True)

    async def add_to_group(self, group: str, users: Sequence[str]) -> None:
        """Make users members of a group."""
        await self._ask("POST", f"/groups/{_part(group)}/users", json={"users": list(users)}, repeatable=True)

    async def delete(self, user: str) -> bool:
        """Have the Hub forget a user, whose servers are stopped; whether there was one.

        Raises:
            CallerError: the Hub refuses it, as of the caller's own account.

        """
        reply = await self._ask("DELETE", f"/users/{_part(user)}", expected=(400, 404), long=True)
        if reply.status == 400:
            raise CallerError(f"JupyterHub did not remove the user: {reply.message}")
        return reply.status != 404

    async def _ask(self, method: str, path: str, **kwargs: Any) -> Reply:
        return await self._hub.as_caller(self._token, method, path, **kwargs)


def _part(name: str) -> str:
    return quote(name, safe="@~")
