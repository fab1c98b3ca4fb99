"""Mail through SMTP (RFC 5321), from templates that an administrator may replace."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Any

import aiosmtplib
from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    TemplateError,
    select_autoescape,
)
from traitlets import Enum, Float, Integer, TraitError, Unicode, default
from traitlets.config import LoggingConfigurable

from . import environment

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_CLOSING = 421
"""The code with which a server ends a connection (RFC 5321, 3.8), as after so many mails."""


class MailFailed(Exception):
    """A mail was not sent; the text says why, for the administrator.

    Args:
        text: what the mail server said, or what happened to the connection.
        maybe_sent: it may have been taken after all: the answer was lost.
        fatal: so will be the next one: the server can't be reached, or does not let us in.
        closing: the server ends the connection, and has not taken it.

    """

    def __init__(self, text: str, *, maybe_sent: bool = False, fatal: bool = False, closing: bool = False) -> None:
        super().__init__(text)
        self.closing = closing
        self.maybe_sent = maybe_sent
        self.fatal = fatal


class Mailer(LoggingConfigurable):
    """Sends mail to people."""

    host = Unicode(help="The mail server; empty: no mail is sent.").tag(config=True)
    port = Integer(0, min=0, max=65535, help="Its port. 0: 587, or 465 with tls, or 25 with none.").tag(config=True)
    tls = Enum(
        ["starttls", "tls", "none"],
        "starttls",
        help="""How the connection is encrypted: "starttls" (RFC 3207), "tls" from the start (RFC 8314), or "none",
        which is for a server on the same machine.""",
    ).tag(config=True)
    ca_file = Unicode(help="The CA that signed the server's certificate. Default: the system's.").tag(config=True)
    username = Unicode(help="To log in with; empty: without.").tag(config=True)
    password = Unicode(help="To log in with. Default: $JHLAUNCHER_SMTP_PASSWORD.").tag(config=True)
    sender = Unicode(help="The address that mail comes from, such as Notebooks <hub@example.org>.").tag(config=True)
    reply_to = Unicode(help="The address that answers go to. Default: the sender.").tag(config=True)
    timeout = Float(30, min=0.1, help="Seconds to wait for each answer of the server's.").tag(config=True)
    templates = Unicode(
        help="""Folder with templates of Jinja2's that are used instead of our own: invitation.subject,
        invitation.txt, invitation.html. See docs/people.md for the names that they know."""
    ).tag(config=True)

    @default("password")
    def _default_password(self) -> str:
        return environment.text("JHLAUNCHER_SMTP_PASSWORD")

    @property
    def enabled(self) -> bool:
        """Whether mail is sent at all."""
        return bool(self.host)

    def validate_settings(self) -> None:
        """Refuse what can't work, before anything is sent.

        Raises:
            TraitError: a setting is missing or wrong, or a template is.

        """
        if not self.enabled:
            return
        for trait in ("sender", "reply_to"):
            value = getattr(self, trait)
            if not value and trait == "reply_to":
                continue
            try:
                addresses = _message({"From": value})["From"].addresses
            except (ValueError, AttributeError):
                addresses = ()
            if len(addresses) != 1 or "@" not in addresses[0].addr_spec:
                raise TraitError(f"Mailer.{trait} must be one e-mail address, not {value!r}")
        if self.username and self.tls == "none":
            raise TraitError('Mailer.username: a password is not sent without TLS; set Mailer.tls = "starttls"')
        if self.ca_file and not os.access(self.ca_file, os.R_OK):
            raise TraitError(f"Mailer.ca_file: {self.ca_file} can't be read")
        if self.templates and not Path(self.templates).is_dir():
            raise TraitError(f"Mailer.templates: there is no folder {self.templates}")
        try:
            self.compose("invitation", ["ada@example.org"], EXAMPLE)
        except (TemplateError, ValueError) as error:
            raise TraitError(f"Mailer.templates: the templates can't be filled in: {error}") from None

    def compose(self, template: str, to: list[str], values: dict[str, Any]) -> EmailMessage:
        """A mail from a template.

        Args:
            template: its name, without the ending.
            to: the addresses.
            values: what the template knows.

        Raises:
            TemplateError: the template has a fault.

        """
        own = [FileSystemLoader(self.templates)] if self.templates else []
        environment = Environment(
            loader=ChoiceLoader([*own, PackageLoader("jhlauncher", "templates/mail")]),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        text = {
            ending: environment.get_template(f"{template}.{ending}").render(values)
            for ending in ("subject", "txt", "html")
        }
        headers = {
            "Subject": " ".join(text["subject"].split()),
            "From": self.sender,
            "To": [Address(addr_spec=address) for address in to],
            "Date": formatdate(localtime=True),
            "Message-ID": make_msgid(domain=self.sender.rpartition("@")[2].strip("> ") or None),
            "Auto-Submitted": "auto-generated",  # RFC 3834: nobody's holiday is to answer
        }
        message = _message(headers | ({"Reply-To": self.reply_to} if self.reply_to else {}))
        message.set_content(text["txt"])
        message.add_alternative(text["html"], subtype="html")
        return message


class Connection:
    """A connection to the mail server, made anew when it has broken."""

    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer
        self._client: aiosmtplib.SMTP | None = None

    async def send(self, message: EmailMessage) -> str | None:
        """Send a mail; what the server had to object to some of the addresses.

        Raises:
            MailFailed: it was not sent, or it is not known.

        """
        try:
            return await self._try(message)
        except MailFailed as error:
            if not error.closing:
                raise
            return await self._try(message)  # it had enough of the old connection, and took nothing

    async def _try(self, message: EmailMessage) -> str | None:
        client = await self._connected()
        try:
            refused, _ = await client.send_message(message)
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise MailFailed(_clean(f"{each.recipient}: {each.message}" for each in error.recipients)) from error
        except aiosmtplib.SMTPResponseException as error:
            closing = error.code == _CLOSING
            await (self.close() if closing else self._reset())
            raise MailFailed(f"The mail server refused it: {_said(error)}", closing=closing) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            await self.close()
            raise MailFailed(
                f"The connection to the mail server broke ({_said(error)}): it may have been sent", maybe_sent=True
            ) from error
        return _clean(f"{address}: {reply.code} {reply.message}" for address, reply in refused.items()) or None

    async def _connected(self) -> aiosmtplib.SMTP:
        if self._client and self._client.is_connected:
            return self._client
        settings = self._mailer
        client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port or _PORTS[settings.tls],
            use_tls=settings.tls == "tls",
            start_tls=settings.tls == "starttls",
            cert_bundle=settings.ca_file or None,
            username=settings.username or None,
            password=(settings.password or None) if settings.username else None,
            timeout=settings.timeout,
        )
        try:
            await client.connect()
        except aiosmtplib.SMTPAuthenticationError as error:
            raise MailFailed("The mail server does not accept the user name and password", fatal=True) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            where = f"{settings.host}:{settings.port or _PORTS[settings.tls]}"
            raise MailFailed(f"The mail server {where} can't be reached: {_said(error)}", fatal=True) from error
        self._client = client
        return client

    async def _reset(self) -> None:
        with suppress(aiosmtplib.SMTPException, OSError):
            if self._client:
                await self._client.rset()

    async def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client and client.is_connected:
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
            client.close()


EXAMPLE = {
    "name": "Ada Lovelace",
    "username": "ada-lovelace",
    "hub_url": "https://hub.example.org/hub/",
    "link": "https://hub.example.org/hub/set-password?token=...",
    "days": 7,
}
"""What a template knows."""


def _message(headers: dict[str, Any]) -> EmailMessage:
    message = EmailMessage(policy=SMTP_POLICY)
    for name, value in headers.items():
        message[name] = value
    return message


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    return _clean([str(getattr(error, "message", "") or error or type(error).__name__)])


def _clean(texts: Iterable[str]) -> str:
    """A mail server's words: one line of printable text, not too long, and without a link that it may have quoted."""
    text = "; ".join(texts)
    text = re.sub(r"token=\S+", "token=[hidden]", text.encode("utf-8", "replace").decode())
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:300]
