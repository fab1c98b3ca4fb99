"""The use cases of people: enrol those of a roster, list them, remove them. Knows no HTTP.

Whatever is done for somebody may be cut off and asked for again: an account that exists stays, and a mail is sent once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import CallerError, Forbidden, InvalidRequest, LauncherError
from .hub import Hub
from .hub_users import HubUsers
from .invitations import InvitationRun, Invitations
from .models import Caller
from .register import PersonRecord, Register
from .roster import EnrolRequest, RemoveResult, Roster, Row, UserResult
from .signing import Signer

_TOGETHER = 50
"""Accounts in one request to the Hub, which with system accounts takes a tenth of a second for each."""

StopServer = Callable[[Caller, str, str], Awaitable[None]]
"""Stops a server of a user's for a caller, as `Launcher.stop` does."""


@dataclass(frozen=True)
class Manager:
    """Who manages people."""

    caller: Caller
    token: str
    """Whose rights at the Hub count."""
    hub_url: str
    """The Hub's address, for mails: https://hub.example.org/hub/."""


@dataclass(frozen=True)
class PersonAtHub:
    """A user of the Hub, and what is known of the person."""

    model: dict[str, Any]
    record: PersonRecord | None


class People:
    """People, for those who manage them.

    Args:
        hub: where they have their accounts.
        register: where they are kept.
        invitations: how they are told.
        signer: who hashes what they are known by.
        stop: stops a server.

    """

    def __init__(
        self, hub: Hub, register: Register, invitations: Invitations, signer: Signer, stop: StopServer
    ) -> None:
        self._hub = hub
        self._register = register
        self._invitations = invitations
        self._signer = signer
        self._stop = stop
        self.reading = asyncio.Semaphore(2)
        """Held while a roster is read, which takes long for a large one."""

    def check(self, caller: Caller) -> None:
        """See that the caller may manage people at all, before anything of theirs is looked at.

        Raises:
            Forbidden: they may not.

        """
        if "admin:users" not in caller.scopes:
            raise Forbidden(
                "Your token's scopes do not reach this: admin:users is needed.", details={"needs": "admin:users"}
            )

    async def plan(self, manager: Manager, roster: Roster, request: EnrolRequest) -> Enrolment:
        """What a roster comes to; nothing is touched yet.

        Raises:
            Forbidden: the caller may not do this.
            InvalidRequest: there is nothing in it, or ``mode`` is "all" and a row can't be used.
            HubUnavailable, StoreUnavailable: try again.

        """
        _check_groups(manager.caller, roster)
        if not roster.rows:
            raise InvalidRequest("The roster can't be used: it has no rows.", reason="bad_roster")
        if request.links and self._invitations.login != "link":
            raise InvalidRequest('There are no links to set passwords: Invitations.login is not "link".')
        users = HubUsers(self._hub, manager.token)
        models = {model["name"]: model async for model in users.all()}
        await self._assign(roster, models)
        by_admin = await users.is_admin()
        if not by_admin:
            _protect_administrators(roster, models)
        if roster.bad and (request.mode == "all" or len(roster.bad) == len(roster.rows)):
            raise _refused(roster)
        return Enrolment(self, manager, users, roster, request, models, by_admin)

    async def _assign(self, roster: Roster, models: dict[str, Any]) -> None:
        """Give everybody their user name."""
        persons = [row.person for row in roster.rows if row.person]
        hashed = {person.identity: self.identity(person.identity) for person in persons}
        names = await self._register.names_of(list(hashed.values()))
        known = {identity: names[key] for identity, key in hashed.items() if key in names}
        await asyncio.to_thread(roster.assign, known, {*models, *await self._register.taken()})

    def identity(self, identity: str) -> str:
        """What is kept of a person's identity: a keyed hash."""
        return self._signer.fingerprint({"person": identity})

    # -- list and remove

    async def page(self, manager: Manager, offset: int, limit: int, name: str) -> tuple[list[PersonAtHub], int | None]:
        """Users whom the caller may see, and where the next page begins.

        Raises:
            Forbidden: the caller may list none.

        """
        models, following = await HubUsers(self._hub, manager.token).page(offset, limit, name)
        personal = "admin:users" in manager.caller.scopes  # names and addresses are for those who manage them
        records = await self._register.get(model["name"] for model in models) if personal else {}
        return [PersonAtHub(model, records.get(model["name"])) for model in models], following

    async def remove(self, manager: Manager, usernames: Iterable[str]) -> AsyncGenerator[RemoveResult, None]:
        """Stop their servers, and remove their accounts; their volumes stay.

        Raises:
            Forbidden: the caller may remove nobody.

        """
        self.check(manager.caller)
        users = HubUsers(self._hub, manager.token)
        for username in dict.fromkeys(usernames):
            try:
                found = await self._remove(manager.caller, users, username)
            except CallerError as error:
                yield RemoveResult(username=username, status="failed", problem=error.message)
            else:
                yield RemoveResult(username=username, status="removed" if found else "absent")

    async def _remove(self, caller: Caller, users: HubUsers, username: str) -> bool:
        model = await users.get(username)
        for server in model.get("servers") or {} if model else ():
            await self._stop(caller, username, server)
        there = bool(model) and await users.delete(username)
        return await self._register.remove(username) or there


class Enrolment:
    """The people of one roster, on their way to accounts; see `People.plan`."""

    def __init__(
        self,
        people: People,
        manager: Manager,
        users: HubUsers,
        roster: Roster,
        request: EnrolRequest,
        models: dict[str, Any],
        by_admin: bool,
    ) -> None:
        self._people = people
        self._manager = manager
        self._users = users
        self._request = request
        self._models = models
        self._by_admin = by_admin
        self._strangers: set[str] = set()
        """Whose accounts were there before, with other addresses or none."""
        self.roster = roster

    async def run(self) -> AsyncGenerator[UserResult, None]:
        """Make accounts, put them into groups and invite them; what became of each row, as it happens.

        Raises:
            HubUnavailable, StoreUnavailable: the rest is not done; send the roster again.
            EnrolledMeanwhile: nothing is done, since another request was faster.

        """
        for row in self.roster.bad:
            yield UserResult(row=row.number, said=row.said, username=None, status="refused", problems=row.problems)
        good = [row for row in self.roster.rows if not row.problems]
        if self._request.dry_run:
            for row in good:
                yield self._result(row)
            return
        records = await self._keep(good)
        await self._make_groups(good)
        again = self._request.mail == "again"
        async with self._people._invitations.at_work(
            self._manager.hub_url, again=again, by_admin=self._by_admin
        ) as invitations:
            for start in range(0, len(good), _TOGETHER):
                part = good[start : start + _TOGETHER]
                failed = await self._make_accounts(part)
                made = [row for row in part if row.username not in failed]
                await self._join_groups(made)
                for row in part:
                    yield (
                        self._result(row, status="failed", problems=[failed[row.username]])
                        if row.username in failed
                        else await self._invited(row, records[row.username], invitations)
                    )

    def _result(self, row: Row, **values: Any) -> UserResult:
        status = "exists" if row.username in self._models else "created"
        return UserResult(**{"row": row.number, "said": row.said, "username": row.username, "status": status, **values})

    async def _keep(self, rows: Sequence[Row]) -> dict[str, PersonRecord]:
        """Keep who they are, before their accounts are made: what is repeated gives the same user names."""
        held = await self._people._register.get(row.username for row in rows)
        records = {}
        for row in rows:
            assert row.person  # noqa: S101  (for mypy: rows without a person have problems)
            known = held.get(row.username)
            emails = row.person.emails or (known.emails if known else [])
            invited = bool(row.person.emails or self._request.links) and not self._request.adopt
            if invited and row.username in self._models and (not known or known.emails != emails):
                self._strangers.add(row.username)
                emails = known.emails if known else []
            records[row.username] = PersonRecord(
                username=row.username,
                identity=known.identity if known else self._people.identity(row.person.identity),
                name=row.person.name or (known.name if known else ""),
                emails=emails,
                caller=self._manager.caller.label,
            )
        await self._people._register.keep(list(records.values()))
        return records

    async def _make_groups(self, rows: Sequence[Row]) -> None:
        """Make the groups that do not exist."""
        for group in sorted({group for row in rows if row.person for group in row.person.groups}):
            if not await self._users.has_group(group):
                await self._users.create_group(group)

    async def _make_accounts(self, rows: Sequence[Row]) -> dict[str, str]:
        """Make the accounts that do not exist; user name -> why, of those that could not be made."""
        failed: dict[str, str] = {}
        for admin in (False, True):
            wanted = [row.username for row in rows if row.person and row.person.admin is admin]
            new = [name for name in wanted if name not in self._models]
            try:
                if new:
                    await self._users.create(new, admin=admin)
            except CallerError:
                failed |= await self._make_one_by_one(new, admin)
            for name in wanted if admin else ():
                if name in self._models and not self._models[name].get("admin"):
                    await self._users.promote(name)
        return failed

    async def _make_one_by_one(self, names: Sequence[str], admin: bool) -> dict[str, str]:
        """After the Hub has refused one of several."""
        failed = {}
        for name in names:
            try:
                await self._users.create([name], admin=admin)
            except Forbidden:
                raise
            except CallerError as error:
                failed[name] = error.message
        return failed

    async def _join_groups(self, rows: Sequence[Row]) -> None:
        members: dict[str, list[str]] = {}
        for row in rows:
            for group in row.person.groups if row.person else ():
                members.setdefault(group, []).append(row.username)
        for group, names in members.items():
            await self._users.add_to_group(group, names)

    async def _invited(self, row: Row, record: PersonRecord, invitations: InvitationRun) -> UserResult:
        if row.username in self._strangers:
            return self._result(row, problems=[_STRANGER])
        if self._request.links:
            link = self._people._invitations.link(row.username, self._manager.hub_url, by_admin=self._by_admin)
            return self._result(row, link=link)
        if self._request.mail == "no":
            return self._result(row)
        invited = await invitations.send(record)
        return self._result(row, mail=invited.mail, problems=[invited.problem] if invited.problem else [])


_STRANGER = (
    "There is an account of this name, which was not made with these addresses, so no mail and no link went to them. "
    "If it is the same person, say so with adopt"
)


def _protect_administrators(roster: Roster, models: dict[str, Any]) -> None:
    """Only administrators may make or invite administrators; the Hub's page for passwords looks again.

    Raises:
        Forbidden: there is one.

    """
    for row in roster.rows:
        if row.person and (row.person.admin or models.get(row.username, {}).get("admin")):
            raise Forbidden(
                f"Row {row.number} is or would be an administrator of JupyterHub: only an administrator's token may "
                "make, mail or link to one."
            )


def _check_groups(caller: Caller, roster: Roster) -> None:
    """See that the caller's own scopes reach the groups.

    Raises:
        Forbidden: they don't.

    """
    groups = {group for row in roster.rows if row.person for group in row.person.groups}
    needed = {f"groups!group={name}": {"groups", f"groups!group={name}"} for name in sorted(groups)}
    missing = [scope for scope, enough in needed.items() if caller.scopes.isdisjoint(enough)]
    if missing:
        raise Forbidden(
            f"Your token's scopes do not reach this: {', '.join(missing)} is needed.", details={"needs": missing[0]}
        )


def _refused(roster: Roster) -> LauncherError:
    rows = [{"row": row.number, "said": row.said, "problems": row.problems} for row in roster.bad]
    return InvalidRequest(
        f"{len(rows)} of the {len(roster.rows)} rows can't be used, so nothing was done: see details.rows.",
        reason="bad_roster",
        details={"rows": rows},
    )
