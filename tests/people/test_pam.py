"""System accounts, made by a Hub that runs as root, with passwords that PAM knows."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from jhlauncher.authenticators import SetsPasswords
from tests.people.browser import Browser
from tests.real_hub import RealHub

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes system accounts"),
    pytest.mark.skipif(not shutil.which("useradd"), reason="there is no useradd here"),
]

MARK = f"t{secrets.token_hex(2)}"
"""In the names of accounts that are these tests' own."""
AFTER = """
c.JupyterHub.authenticator_class = "jhlauncher-pam"
c.LauncherPAMAuthenticator.userdel = ["userdel", "--remove"]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    hub = RealHub(tmp_path_factory.mktemp("hub"), after=AFTER, service='c.Invitations.login = "link"\n')
    # load_groups of the Hub of the tests makes one, for whom there is to be an account, too
    with hub.running():
        yield hub
    for account in pwd.getpwall():
        if account.pw_name.startswith(MARK) or account.pw_name == "student":
            subprocess.run(["userdel", "--remove", "--", account.pw_name], capture_output=True, check=False)


async def link_for(hub: RealHub, username: str) -> str:
    body = {"users": [{"username": username}], "links": True, "mode": "some", "adopt": True}
    headers = {"Authorization": f"token {hub.admin_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{hub.launcher_url}users", json=body) as response,
    ):
        [result] = (await response.json())["users"]
        assert result["status"] in ("created", "exists"), result
        return str(result["link"])


class Watch(threading.Thread):
    """Looks at what every process was started with, until it is ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((folder / "cmdline").read_bytes())
                except OSError:
                    continue


async def test_an_account_its_password_and_its_end(hub: RealHub):
    name, password = f"{MARK}-ada", "correct: horse $(battery) 'staple'"
    link = await link_for(hub, name)
    account = pwd.getpwnam(name)
    assert account.pw_uid >= 1000
    assert account.pw_shell == "/usr/sbin/nologin"
    watch = Watch()
    watch.start()
    async with Browser() as browser:
        assert not await browser.log_in(hub.url, name, "")
        status, page = await browser.set_password(link, password)
        assert status == 200, page
        assert await browser.log_in(hub.url, name, password)
    watch.ended.set()
    watch.join()
    assert not any(b"battery" in command for command in watch.seen)
    async with Browser() as browser:
        assert not await browser.log_in(hub.url, name, "another password")
        assert (await browser.set_password(link, "the link once more"))[0] == 403
    assert (await hub.api("DELETE", f"/users/{name}"))[0] == 204
    with pytest.raises(KeyError):
        pwd.getpwnam(name)


async def test_accounts_that_are_not_the_hubs_stay_out_of_reach(hub: RealHub):
    """Of the machine's own: who may make users of the Hub must not come by their passwords, or remove them."""
    name = f"{MARK}-own"
    subprocess.run(["useradd", "--", name], check=True)  # noqa: ASYNC221
    before = [line for line in Path("/etc/shadow").read_text().splitlines() if line.startswith(("root:", f"{name}:"))]
    for whose in (name, "root"):
        link = await link_for(hub, whose)
        async with Browser() as browser:
            status, page = await browser.set_password(link, "the attacker's password")
            assert status == 500
            assert "could not be set" in page
        assert (await hub.api("DELETE", f"/users/{whose}"))[0] == 204
    after = [line for line in Path("/etc/shadow").read_text().splitlines() if line.startswith(("root:", f"{name}:"))]
    assert before == after
    assert pwd.getpwnam(name)
    assert "was not made by this Hub" in (hub.folder / "hub.log").read_text()


async def test_a_user_who_is_renamed_is_no_other_account(hub: RealHub):
    """Whoever may make users may rename them, too."""
    name, own = f"{MARK}-eve", f"{MARK}-own2"
    subprocess.run(["useradd", "--", own], check=True)  # noqa: ASYNC221
    link = await link_for(hub, name)
    before = Path("/etc/shadow").read_text()
    for other in ("root", own):
        assert (await hub.api("PATCH", f"/users/{name}", json={"name": other}))[0] == 200
        name = other
        link = await link_for(hub, other)
        async with Browser() as browser:
            assert (await browser.set_password(link, "the attacker's password"))[0] == 500
    assert (await hub.api("DELETE", f"/users/{own}"))[0] == 204
    assert Path("/etc/shadow").read_text() == before


async def test_a_name_that_is_no_accounts(hub: RealHub):
    """One is refused by name, and the others are made."""
    body = {"users": [{"username": f"{MARK}-bob"}, {"username": f"{MARK}+bob@example"}], "mode": "all"}
    headers = {"Authorization": f"token {hub.admin_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{hub.launcher_url}users", json=body) as response,
    ):
        results = {result["username"]: result for result in (await response.json())["users"]}
    assert results[f"{MARK}-bob"]["status"] == "created"
    other = results[f"{MARK}+bob@example"]
    assert other["status"] == "failed" or pwd.getpwnam(other["username"])


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("short", "at least 10"),
        ("a" * 257, "at most 256"),
        ("two\nlines of it", "one line"),
        ("adalovelace", "more than the user name"),
        ("a long enough one", None),
    ],
)
async def test_what_a_password_must_be(password: str, says: str | None):
    objection = SetsPasswords().objection("adalovelace", password)
    assert (says in objection) if says and objection else objection is None
