"""Mail, with real servers that encrypt, want a password, or break."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jhlauncher.mailer import EXAMPLE, Connection, Mailer, MailFailed
from jhlauncher.ports import SERVICES, free_port
from tests.people.mail import MailServer


def mailer_for(server: MailServer, **settings: Any) -> Mailer:
    ours = {"host": "127.0.0.1", "port": server.port, "sender": "Hub <hub@example.org>", "timeout": 5, "tls": "none"}
    mailer = Mailer(config=Config(Mailer={**ours, **settings}))
    mailer.validate_settings()
    return mailer


async def send(mailer: Mailer, to: str = "ada@example.org", **values: Any) -> str | None:
    connection = Connection(mailer)
    try:
        return await connection.send(mailer.compose("invitation", [to], {**EXAMPLE, **values}))
    finally:
        await connection.close()


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # which it does not see
@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_encrypted_and_with_a_password(tmp_path: Path, tls: str):
    with MailServer(tmp_path, tls, login=("hub", "secret")) as server:
        trusted = {"tls": tls, "ca_file": str(server.ca), "username": "hub"}
        assert await send(mailer_for(server, password="secret", **trusted)) is None
        [mail] = server.mails
        assert mail["Auto-Submitted"] == "auto-generated"
        with pytest.raises(MailFailed, match="user name and password") as refused:
            await send(mailer_for(server, password="wrong", **trusted))
        assert refused.value.fatal
        with pytest.raises(MailFailed, match="can't be reached") as refused:  # a certificate of nobody's
            await send(mailer_for(server, tls=tls, username="hub", password="secret"))
        assert refused.value.fatal
        assert len(server.mails) == 1


@pytest.mark.asyncio
async def test_nothing_is_sent_in_clear_by_a_server_without_tls(tmp_path: Path):
    with MailServer(tmp_path) as server:
        with pytest.raises(MailFailed, match="can't be reached"):
            await send(mailer_for(server, tls="starttls"))
        assert not server.mails


@pytest.mark.asyncio
async def test_no_server(tmp_path: Path):
    server = MailServer(tmp_path)
    with pytest.raises(MailFailed, match="can't be reached") as failed:
        await send(mailer_for(server, port=free_port(SERVICES)))
    assert failed.value.fatal
    assert not failed.value.maybe_sent


@pytest.mark.asyncio
async def test_an_answer_that_does_not_come(tmp_path: Path):
    """Whether a mail was sent is not known then, and that is said."""
    closing: list[asyncio.StreamWriter] = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closing.append(writer)
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            if line.startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                break
            writer.write(b"250 OK\r\n")
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server:
        mailer = mailer_for(MailServer(tmp_path), port=server.sockets[0].getsockname()[1])
        with pytest.raises(MailFailed, match="may have been sent") as lost:
            await send(mailer)
        assert lost.value.maybe_sent


@pytest.mark.asyncio
async def test_what_a_name_can_not_do(tmp_path: Path):
    """Neither HTML nor headers come of it."""
    with MailServer(tmp_path) as server:
        await send(mailer_for(server), name="<script>alert(1)</script>", username="a\r\nBcc: all@example.org")
        [mail] = server.mails
        assert mail["Bcc"] is None
        html = mail.get_body(("html",))
        assert html
        assert "<script>" not in html.get_content()


@pytest.mark.asyncio
async def test_templates_of_ones_own(tmp_path: Path):
    (tmp_path / "invitation.subject").write_text("Willkommen, {{ name }}\n")
    with MailServer(tmp_path) as server:
        await send(mailer_for(server, templates=str(tmp_path), reply_to="help@example.org"), name="Jörg Müller")
        [mail] = server.mails
        assert (mail["Subject"], mail["Reply-To"]) == ("Willkommen, Jörg Müller", "help@example.org")


def test_settings_that_can_not_work(tmp_path: Path):
    """Before anything is tried."""
    for settings_of, what in (
        ({"sender": ""}, "Mailer.sender"),
        ({"sender": "nobody"}, "Mailer.sender"),
        ({"sender": "a@example.org\nBcc: b@example.org"}, "Mailer.sender"),
        ({"reply_to": "x"}, "Mailer.reply_to"),
        ({"username": "me", "tls": "none"}, "without TLS"),
        ({"ca_file": str(tmp_path / "none")}, "ca_file"),
        ({"templates": str(tmp_path / "none")}, "no folder"),
    ):
        mailer = Mailer(config=Config(Mailer={"host": "mail", "sender": "hub@example.org", **settings_of}))
        with pytest.raises(TraitError, match=what):
            mailer.validate_settings()
    (tmp_path / "invitation.txt").write_text("Hello {{ nme }}")
    mailer = Mailer(config=Config(Mailer={"host": "mail", "sender": "hub@example.org", "templates": str(tmp_path)}))
    with pytest.raises(TraitError, match="nme"):
        mailer.validate_settings()
