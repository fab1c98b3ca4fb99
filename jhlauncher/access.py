"""For whom a request is: which user's server, and whether the caller's own scopes at JupyterHub cover it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from .errors import Forbidden, InvalidRequest
from .hub import Hub
from .models import Caller, LaunchRequest
from .records import LaunchRecord, name_of
from .tables import launches

# a scope's name before JupyterHub 6, where one scope was for all three
START, STOP, READ = ("start:servers", "servers"), ("delete:servers", "servers"), ("read:servers", "servers")


@dataclass(frozen=True)
class Target:
    """Whose server it is about; the caller's scopes cover it."""

    user: str
    groups: frozenset[str] = frozenset()
    known: bool = False
    """The Hub is known to have this user."""


@dataclass(frozen=True)
class Visible:
    """The launches that a caller may see: their own, and those of servers that their scopes let them read."""

    caller: str
    everything: bool = False
    users: frozenset[str] = frozenset()
    servers: frozenset[tuple[str, str]] = frozenset()
    groups: frozenset[str] = frozenset()
    """Whose members are among the users."""

    def covers(self, record: LaunchRecord) -> bool:
        """Whether a launch is among them."""
        return (
            self.everything
            or record.caller == self.caller
            or record.username in self.users
            or (record.username, record.server_name) in self.servers
        )

    def condition(self) -> sa.ColumnElement[bool]:
        """The same for the database."""
        if self.everything:
            return sa.true()
        servers = [(launches.c.username == user) & (launches.c.server_name == name) for user, name in self.servers]
        return sa.or_(launches.c.username.in_(sorted(self.users)), launches.c.caller == self.caller, *servers)


class Access:
    """What callers reach."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def target(
        self, caller: Caller, user: str, server: str, scopes: tuple[str, ...], with_groups: bool = False
    ) -> Target:
        """The user as the Hub knows them, if the caller's scopes cover this server of theirs.

        A name with capitals is taken as it is if there is such a user, and else as the Hub's login would have it.

        Args:
            caller: who asks.
            user: whose server.
            server: its name.
            scopes: the one that is needed, and older names of it.
            with_groups: the user's groups are wanted.

        Raises:
            Forbidden: the scopes do not cover it.

        """
        with_groups = with_groups or any(caller.filters_by_group(scope) for scope in scopes)
        for name in dict.fromkeys((user, user.lower())):
            target = await self._look_up(caller, name, needed=with_groups or name != name.lower())
            if target and any(caller.holds(scope, name, server, target.groups) for scope in scopes):
                return target
        raise out_of_reach(user, server, scopes)

    async def _look_up(self, caller: Caller, name: str, needed: bool) -> Target | None:
        """This user, with groups if that is ``needed``; None for a name with capitals that nobody has."""
        if caller.kind == "user" and name == caller.name:
            return Target(name, caller.groups, known=True)
        if not needed:
            return Target(name)
        model = await self._hub.get_user(name)
        if model:
            return Target(name, frozenset(model.get("groups", ())), known=True)
        return Target(name) if name == name.lower() else None

    async def ensure_user(self, caller: Caller, target: Target, request: LaunchRequest) -> str:
        """The user's name; creates the user if there is none and the caller may.

        Raises:
            Forbidden: the Hub's authenticator has another name for them, which the caller's scopes do not cover.

        """
        if target.known or "admin:users" not in caller.scopes:
            return target.user
        created = await self._hub.create_user(request.username)
        if created is None or created == target.user:
            return target.user
        # the Hub's authenticator has names of its own; the caller's scopes must reach that one, too
        if not any(caller.holds(scope, created, request.server_name) for scope in START):
            raise Forbidden(f"The Hub calls this user {created}, whom your token's scopes do not reach.")
        return created

    async def reaches(self, caller: Caller, record: LaunchRecord, scopes: tuple[str, ...]) -> bool:
        """Whether one of the caller's scopes covers the server of a launch."""
        user, server = record.username, record.server_name
        if any(caller.holds(scope, user, server, frozenset()) for scope in scopes):
            return True
        groups = caller.filters("group", *scopes)
        return bool(groups) and user in await self._hub.members(groups)

    async def visible(self, caller: Caller) -> Visible:
        """The launches that a caller may see."""
        if not caller.scopes.isdisjoint(READ):
            return Visible(caller.label, everything=True)
        groups, users = caller.filters("group", *READ), caller.filters("user", *READ)
        if groups:
            users |= await self._hub.members(groups)
        pairs = (server.partition("/") for server in caller.filters("server", *READ))
        return Visible(caller.label, False, users, frozenset((user, name) for user, _, name in pairs), groups)

    async def members(self, caller: Caller, group: str) -> frozenset[str]:
        """The users in a group whose servers the caller may see.

        Raises:
            Forbidden: the caller's scopes do not reach this group.

        """
        visible = await self.visible(caller)
        if not visible.everything and group not in visible.groups | caller.groups:
            raise Forbidden(
                f"Your token's scopes do not reach the group {group}: {READ[0]} is needed for it.",
                details={"needs": f"{READ[0]}!group={group}"},
            )
        return await self._hub.members(frozenset({group}))

    async def people(self, caller: Caller, group: str) -> list[str]:
        """The members of a group that is not to be empty, in order.

        Raises:
            Forbidden: the caller's scopes do not reach this group.
            InvalidRequest: nobody is in it.

        """
        members = sorted(await self.members(caller, group))
        if not members:
            problem = f"JupyterHub has no group {group}, or nobody is in it"
            raise InvalidRequest(
                f"The request is not valid. group: {problem}",
                reason="group_empty",
                details={"fields": [{"field": "group", "problem": problem}]},
            )
        return members


def out_of_reach(user: str, server: str, scopes: tuple[str, ...]) -> Forbidden:
    """The error for a server that the caller's scopes do not cover."""
    return Forbidden(
        f"Your token's scopes do not reach {name_of(user, server)}: {scopes[0]} is needed for it.",
        details={"needs": f"{scopes[0]}!server={user}/{server}"},
    )
