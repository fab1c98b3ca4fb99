"""A real mail server on loopback, which keeps what it takes, and can be told to misbehave."""

from __future__ import annotations

import email
import email.policy
import re
import ssl
import subprocess
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from jhlauncher.ports import SERVICES, free_port

LINK = re.compile(r"https?://\S+/hub/set-password\?token=\S+")


class MailServer:
    """A mail server.

    Args:
        folder: for its certificate.
        tls: "none", "starttls" or "tls".
        login: the user name and password that it wants, if any.

    """

    def __init__(self, folder: Path, tls: str = "none", login: tuple[str, str] | None = None) -> None:
        self.port = free_port(SERVICES)
        self.mails: list[EmailMessage] = []
        self.refused: dict[str, str] = {}
        """Addresses that it does not take, and what it says of them."""
        self.on_data: Callable[[str], str | None] | None = None
        """Is told to whom a mail is, before it is taken; what it returns is answered instead."""
        self._login = login
        settings: dict[str, Any] = {}
        self.ca = folder / "mail.crt"
        if tls != "none":
            context = self._context(folder)
            settings = {"ssl_context": context} if tls == "tls" else {"tls_context": context, "require_starttls": True}
        if login:
            settings |= {
                "authenticator": self._authenticate,
                "auth_required": True,
                "auth_require_tls": tls == "starttls",
            }
        self._settings = settings

    def __enter__(self) -> MailServer:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **self._settings)
        self._controller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._controller.stop()

    def _context(self, folder: Path) -> ssl.SSLContext:
        key = folder / "mail.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(self.ca)],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.ca, key)
        return context

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        return AuthResult(success=given == self._login, handled=False)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        instead = self.on_data(envelope.rcpt_tos[0]) if self.on_data else None
        if instead is not None:
            return instead
        assert isinstance(envelope.content, bytes)
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore[arg-type]
        return "250 taken"

    # -- what came

    def to(self, address: str) -> list[EmailMessage]:
        """The mails to this address."""
        return [mail for mail in self.mails if address in str(mail["To"])]

    def link_to(self, address: str) -> str:
        """The link in the newest mail to this address."""
        body = self.to(address)[-1].get_body(("plain",))
        assert body is not None
        [link] = LINK.findall(body.get_content())
        return str(link)


def settings(server: MailServer, **more: object) -> str:
    """The service's configuration for this server."""
    traits = {"host": "127.0.0.1", "port": server.port, "tls": "none", "sender": "Notebooks <hub@example.org>", **more}
    return "".join(f"c.Mailer.{name} = {value!r}\n" for name, value in traits.items())
