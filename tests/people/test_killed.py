"""An import that is cut off anywhere, and asked for again: each account once, each mail once or reported."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.people.mail import MailServer, settings
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

MANY = 12
ROSTER = "name,email\n" + "".join(f"Pupil {n},pupil{n}@example.org\n" for n in range(MANY))


@pytest.fixture
def hub(tmp_path: Path, mail: MailServer) -> Iterator[RealHub]:
    mail.mails.clear()
    mail.on_data = None
    after = 'c.JupyterHub.authenticator_class = "jhlauncher-password"\n'
    hub = RealHub(tmp_path, after=after, service=settings(mail) + 'c.Invitations.login = "link"\n')
    with hub.running():
        yield hub


async def enrol(hub: RealHub) -> dict[str, Any]:
    headers = {"Authorization": f"token {hub.admin_token}", "Content-Type": "text/csv"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{hub.launcher_url}users", data=ROSTER) as response,
    ):
        assert response.status == 200, await response.text()
        return dict(await response.json())


def launcher_of(hub: RealHub) -> int:
    """The process of the launcher that this Hub manages."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == hub.process.pid and b"jhlauncher" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise AssertionError("the Hub has no launcher")


async def until_up(hub: RealHub) -> None:
    """The Hub starts its service anew."""
    async with asyncio.timeout(90), aiohttp.ClientSession() as client:
        while True:
            with suppress(aiohttp.ClientError):
                async with client.get(f"{hub.launcher_url}ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)


def fates(answer: dict[str, Any]) -> list[str]:
    return [result["mail"] for result in answer["users"]]


async def test_the_service_is_killed_while_a_mail_is_on_its_way(hub: RealHub, mail: MailServer):
    arrived = 0

    def kill_at_the_sixth(address: str) -> str | None:
        nonlocal arrived
        arrived += 1
        if arrived == 6:
            os.kill(launcher_of(hub), signal.SIGKILL)
        return None

    mail.on_data = kill_at_the_sixth
    with suppress(aiohttp.ClientError, AssertionError, json.JSONDecodeError):
        await enrol(hub)
    assert arrived == 6
    mail.on_data = None
    await until_up(hub)
    again = await enrol(hub)
    assert again["counts"] == {"exists": MANY, "mail_earlier": 5, "mail_unknown": 1, "mail_sent": MANY - 6}
    [unknown] = [result for result in again["users"] if result["mail"] == "unknown"]
    assert "not known" in unknown["problems"][0]
    for number in range(MANY):
        assert len(mail.to(f"pupil{number}@example.org")) == 1
    _, everybody = await hub.api("GET", "/users")
    assert {user["name"] for user in everybody} - {"student"} == {f"pupil-{n}" for n in range(MANY)}
    assert fates(await enrol(hub)).count("unknown") == 1, "who is reported stays so until a mail is asked for again"


async def test_the_client_goes_away_in_the_middle(hub: RealHub, mail: MailServer):
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell_the_third(address: str) -> str | None:
        if len(mail.mails) == 2:
            loop.call_soon_threadsafe(arrived.set)
        return None

    mail.on_data = tell_the_third
    first = asyncio.create_task(enrol(hub))
    await arrived.wait()
    first.cancel()
    await asyncio.wait([first])
    again = await enrol(hub)
    counts = again["counts"]
    assert counts["exists"] + counts.get("created", 0) == MANY
    assert counts["mail_earlier"] + counts.get("mail_unknown", 0) + counts.get("mail_sent", 0) == MANY
    for number in range(MANY):
        assert len(mail.to(f"pupil{number}@example.org")) == 1
