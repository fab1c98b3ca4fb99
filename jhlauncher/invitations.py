"""Invitations: the mail that tells somebody of their account, and the link in it that sets the password."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlencode

from traitlets import Enum, Float, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from .mailer import Connection, Mailer, MailFailed
from .register import PersonRecord, Register
from .roster import MailResult
from .signing import SET_PASSWORD, Signer


@dataclass(frozen=True)
class Invited:
    """What became of an invitation."""

    mail: MailResult
    problem: str | None = None


class Invitations(LoggingConfigurable):
    """Invites people."""

    login = Enum(
        ["none", "link"],
        "none",
        help="""What people log in with: "link": each sets a password with a link that works once, for Hubs with the
        authenticator "jhlauncher-password" or "jhlauncher-pam". "none": they have a login already, such as their
        university's, or only programs act for them.""",
    ).tag(config=True)
    link_lifetime = Float(
        7 * 86400, min=60, max=90 * 86400, help="Seconds for which a link that sets a password is good."
    ).tag(config=True)

    hub_url = Unicode(
        help="""The Hub's address in mails: https://hub.example.org/hub/.

        Default: below LauncherApp.public_url; without that, as the request came that enrolled people.
        """
    ).tag(config=True)

    @validate("hub_url")
    def _valid_hub_url(self, proposal: Any) -> str:
        url = str(proposal.value)
        if url and not re.fullmatch(r"https?://[^/\s]+/(\S+/)?hub/?", url):
            raise TraitError(f"Invitations.hub_url must be as https://hub.example.org/hub/, not {url!r}")
        return url and url.rstrip("/") + "/"

    def __init__(self, *, register: Register, mailer: Mailer, signer: Signer, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._register = register
        self._signer = signer
        self.mailer = mailer

    def link(self, username: str, hub_url: str, *, by_admin: bool) -> str:
        """A link with which its holder sets this user's password, once.

        Args:
            username: whose password.
            hub_url: the Hub's address, ending with ``/hub/``.
            by_admin: whether an administrator asks for it; only then it works for those who may do more than others.

        """
        now = time.time()
        said = {"user": username, "issued": now, "expires": now + self.link_lifetime, "admin": by_admin}
        return f"{hub_url}{SET_PASSWORD}?{urlencode({'token': self._signer.seal(said, 'password')})}"

    def at_work(self, hub_url: str, *, again: bool, by_admin: bool) -> InvitationRun:
        """For several invitations over one connection to the mail server.

        Args:
            hub_url: the Hub's address.
            again: also those who have had one, or may have.
            by_admin: whether an administrator asks for it.

        """
        return InvitationRun(self, self._register, hub_url, again, by_admin)


class InvitationRun:
    """Several invitations, over one connection."""

    def __init__(self, invitations: Invitations, register: Register, hub_url: str, again: bool, by_admin: bool) -> None:
        self._by_admin = by_admin
        self._invitations = invitations
        self._register = register
        self._hub_url = hub_url
        self._again = again
        self._connection = Connection(invitations.mailer)
        self._dead = ""
        """Why no mail can be sent any more."""
        self._lost = 0

    async def __aenter__(self) -> InvitationRun:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._connection.close()

    async def send(self, person: PersonRecord) -> Invited:
        """Invite somebody, once."""
        if not self._invitations.mailer.enabled or not person.emails:
            return Invited("none")
        if self._dead:
            return Invited("failed", self._dead)
        delivery = asyncio.create_task(self._deliver(person), name=f"mail to {person.username}")
        try:
            return await asyncio.shield(delivery)
        finally:  # who asked may have gone; what has begun comes to its end, so that it is known
            await asyncio.wait([delivery])

    async def _deliver(self, person: PersonRecord) -> Invited:
        if not await self._register.claim_mail(person.username, again=self._again):
            now = (await self._register.get([person.username])).get(person.username)
            return Invited("earlier") if now and now.mail == "sent" else Invited("unknown", _UNKNOWN)
        try:
            objection = await self._connection.send(self._message(person))
        except MailFailed as error:
            if error.maybe_sent:
                self._lost += 1
                self._dead = str(error) if self._lost == _MOST_LOST else ""
                return Invited("unknown", f"{error}. {_UNKNOWN}")
            self._dead = str(error) if error.fatal else ""
            await self._register.mailed(person.username, str(error), sent=False)
            return Invited("failed", str(error))
        await self._register.mailed(person.username, objection, sent=True)
        return Invited("sent", objection)

    def _message(self, person: PersonRecord) -> EmailMessage:
        ours = self._invitations
        link = ours.link(person.username, self._hub_url, by_admin=self._by_admin) if ours.login == "link" else None
        return ours.mailer.compose(
            "invitation",
            person.emails,
            {
                "name": person.name,
                "username": person.username,
                "hub_url": self._hub_url,
                "link": link,
                "days": round(ours.link_lifetime / 86400, 1),
            },
        )


_MOST_LOST = 3
"""Answers of the mail server's that may be lost, before the rest is not tried."""
_UNKNOWN = "Whether an earlier mail was sent is not known; ask them, or send it again"
