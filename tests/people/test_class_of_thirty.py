"""A class on one Docker host, from the teacher's spreadsheet to the last package: what all of this is for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jhlauncher.client import Launch, LauncherClient
from jhlauncher.engines.disks import Disks
from tests.engines.hubs import DockerHub, disks_image, missing
from tests.engines.inside import run
from tests.engines.test_packages import INSTALL, wheel
from tests.people.browser import Browser
from tests.people.mail import MailServer, settings

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(missing("docker")), reason=missing("docker")),
]

STUDENTS = [f"Student {number}" for number in range(1, 31)]
USERS = [name.lower().replace(" ", "-") for name in STUDENTS]
SERVICE = """
c.Invitations.login = "link"
c.StartBound.concurrent_starts = 3  # other tests are at work on this machine
c.Policy.templates = {
    "course": {
        "image": IMAGE,
        "memory": {"limit": "300M"},
        "vols": [{"pvc": PREFIX + "-home-{username}", "mount": "/home/jovyan"}],
    },
}
c.Policy.rules = [
    {"name": "course", "groups": ["course-1"], "templates": ["course"], "memory": "300M",
     "limits": {"user": {"servers": 1}}, "create_volumes": {"size": "100M"}},
    *c.Policy.rules,
]
"""
HUB = """
c.JupyterHub.authenticator_class = "jhlauncher-password"
c.JupyterHub.load_groups = {{}}
c.DockerSpawner.disks = "loopback"
c.DockerSpawner.disks_image = {image!r}
c.DockerSpawner.disks_dir = {folder!r}
c.LauncherSpawnerMixin.persist_packages = {{"*": "3.11"}}
c.Spawner.start_timeout = c.Spawner.http_timeout = 240
c.Spawner.poll_interval = 2
"""
FILL = """
import errno
try:
    with open("/home/jovyan/big", "wb") as big:
        while True:
            big.write(bytes(1 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
HOG = """
import subprocess, sys
print(subprocess.run([sys.executable, "-c", "x = b'x' * 400_000_000"]).returncode)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, mail: MailServer) -> Iterator[DockerHub]:
    hub = DockerHub(tmp_path_factory.mktemp("hub"))
    disks = Disks(hub.docker, "loopback", disks_image(hub.docker), str(tmp_path_factory.mktemp("disks") / "disks"), "")
    with (hub.folder / "jhlauncher_config.py").open("a") as config:
        config.write(f"IMAGE, PREFIX = {hub.images['image']!r}, {hub.id!r}\n" + SERVICE + settings(mail))
    with (hub.folder / "jupyterhub_config.py").open("a") as config:
        config.write(HUB.format(image=disks.image, folder=disks.folder))
    try:
        with hub.running():
            yield hub
            asyncio.run(hub.clean())
    finally:
        for disk in disks.listed():
            disks.remove(disk.name)


async def command(hub: DockerHub, *arguments: str) -> str:
    """What ``jhlauncher`` prints, for the Hub's administrator."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jhlauncher", *arguments),
        env={**os.environ, "JHLAUNCHER_URL": hub.launcher_url, "JHLAUNCHER_TOKEN": hub.admin_token},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    said = out.decode()
    why = re.findall(r'"error": "[^"]+"', said)  # of thirty launches, which would fill pages
    assert process.returncode == 0, "\n".join(why or [said]) + err.decode()
    return said


def client(hub: DockerHub) -> LauncherClient:
    return LauncherClient(hub.launcher_url, hub.admin_token)


async def start(hub: DockerHub) -> tuple[str, dict[str, Launch]]:
    """Start the class; its id, and everybody's launch."""
    batch = json.loads(
        await command(hub, "batch", "start", "--group", "course-1", "--template", "course", "--stagger", "1s", "--json")
    )
    assert batch["counts"] == {"ready": 30, "refused": 0}, batch["counts"]
    async with client(hub) as launcher:
        return batch["id"], {launch.username: launch async for launch in launcher.list(batch=batch["id"])}


def server(launch: Launch) -> dict[str, Any]:
    return {"url": launch.url, "token": launch.token}


async def open_in_browser(launch: Launch, file: str) -> None:
    """What JupyterLab does when somebody opens a file."""
    headers = {"Authorization": f"token {launch.token}"}
    where = f"{launch.url}api/contents/{file}?content=1&format=base64&type=file"
    async with aiohttp.ClientSession(headers=headers) as browser, browser.get(where) as response:
        await response.read()


def inside(hub: DockerHub, users: Iterable[str], script: str) -> set[str]:
    """What a shell says in these users' containers."""

    def one(user: str) -> str:
        escaped = user.replace("-", "-2d") + "(.launch)?$"  # as DockerSpawner has it
        [container] = hub.docker.containers(filters={"name": f"/{hub.id}-{escaped}"})
        command = hub.docker.exec_create(container["Id"], ["sh", "-c", script])
        return str(hub.docker.exec_start(command).decode().strip())

    return {one(user) for user in users}


@pytest.mark.timeout(1200)  # sixty servers, on a machine that others use, too
async def test_a_class(hub: DockerHub, mail: MailServer, tmp_path: Path):
    # accounts, from a spreadsheet
    roster = tmp_path / "roster.csv"
    rows = [f"{name};{user}@example.org;course-1\r\n" for name, user in zip(STUDENTS, USERS, strict=True)]
    roster.write_bytes(("Name;E-Mail;Group\r\n" + "".join(rows)).encode("utf-8-sig"))
    assert await command(hub, "users", "import", str(roster)) == "30 created, 30 mailed now\n"

    # each reads their mail, sets a password, and logs in with it
    for user in USERS:
        async with Browser() as browser:
            status, _ = await browser.set_password(mail.link_to(f"{user}@example.org"), f"the password of {user}")
            assert status == 200
            assert await browser.log_in(hub.url, user, f"the password of {user}")

    # nine o'clock
    batch, launches = await start(hub)
    assert sorted(launches) == sorted(USERS)
    filler, hog, other = (launches[user] for user in USERS[:3])

    # each has a disk and memory as the policy says, and what they write
    [said] = inside(hub, USERS, "df -m --output=size /home/jovyan | tail -1; stat -c %U /home/jovyan")
    size, owner = said.split()
    assert 80 <= int(size) <= 100
    assert owner == "jovyan"
    inside(hub, USERS, "echo of the first day > /home/jovyan/notes")
    assert (await run(server(other), INSTALL.format(wheel=wheel()))).startswith("0")

    # one fills their disk, and nobody else notices
    assert await run(server(filler), FILL) == "ENOSPC\n"
    rest = [user for user in USERS if user != filler.username]
    assert inside(hub, rest, "head -c 1000000 /dev/zero > /home/jovyan/more && echo written") == {"written"}

    # one takes too much memory: that program is ended, and they are told why
    assert await run(server(hog), HOG) == "-9\n"
    async with client(hub) as launcher, asyncio.timeout(60):
        async for event in launcher.events(hog.id):
            if event.name == "warning":
                assert "more memory than it may have" in event.message
                break

    # one has their server take it, with a file that is too large to be shown: it is stopped, and they are told why
    with suppress(aiohttp.ClientError):
        await open_in_browser(filler, "big")
    async with client(hub) as launcher, asyncio.timeout(60):
        async for event in launcher.events(filler.id):
            if event.name == "stopped":
                break
        ended = await launcher.get(filler.id)
    assert ended.error is not None
    assert ended.error["reason"] == "out_of_memory", ended.error
    assert "has ended: The server ran out of memory (limit: 300M)" in ended.error["error"]

    # the lesson is over; the next day, everything is there
    await command(hub, "batch", "stop", batch)
    assert not await hub.remains()
    _, launches = await start(hub)
    assert inside(hub, USERS, "cat /home/jovyan/notes") == {"of the first day"}
    assert await run(server(launches[other.username]), "import kept; print(kept.WORD)") == "here\n"
