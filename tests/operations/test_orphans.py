"""``jhlauncher orphans`` at a real Hub with the local engine; tests/deployments has it on the other engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyterhub
import pytest

from tests.cli.terminal import piped
from tests.conftest import until
from tests.faults import LIGHT_SERVERS, is_alive, starts
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

ONE_SERVER_AT_A_TIME = "c.JupyterHub.active_server_limit = 2\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "starts.log").touch()
    (folder / "token").touch(0o600)
    hub = RealHub(folder, after=LIGHT_SERVERS.format(seconds=0) + ONE_SERVER_AT_A_TIME)
    (folder / "token").write_text(hub.second_token + "\n")
    with hub.running():
        yield hub


def orphans(hub: RealHub, *arguments: str, token: str = "") -> tuple[int, Any]:
    """The exit status, and what is told."""
    command = [sys.executable, "-m", "jhlauncher", "orphans", "--json", *arguments]
    where = ["--hub-config=jupyterhub_config.py", f"--token-file={token or 'token'}"]
    done = subprocess.run(
        [*command, *where], cwd=hub.folder, capture_output=True, text=True, timeout=180,
        env={"PATH": os.environ["PATH"], "HOME": str(hub.folder)},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


async def test_nothing_is_left_over(hub: RealHub):
    await hub.launcher("POST", username="ada", image="light")
    assert orphans(hub) == (0, [])
    assert orphans(hub, "--remove") == (0, [])
    assert is_alive(dict(starts(hub))["ada"])
    await hub.launcher("DELETE", "?username=ada")


async def test_a_server_that_a_killed_hub_has_lost(hub: RealHub, tmp_path: Path):
    """Its Hub comes back with a database of before the launch."""
    await hub.api("POST", "/users/eve")
    hub.end(signal.SIGTERM)
    database = hub.folder / "hub.sqlite"
    before = database.read_bytes()
    hub.begin()
    status, launched = await hub.launcher("POST", username="eve", image="light")
    assert status == 200, launched
    process = dict(starts(hub))["eve"]
    hub.end(signal.SIGKILL)
    await until(lambda: not _proxy(hub), 20)
    database.write_bytes(before)
    for name in ("hub.sqlite-wal", "hub.sqlite-shm", "hub.sqlite-journal"):
        (hub.folder / name).unlink(missing_ok=True)
    hub.begin()
    assert is_alive(process)
    status, found = orphans(hub)
    assert status == 1
    (orphan,) = found
    assert (orphan["kind"], orphan["name"], orphan["user"], orphan["server"]) == (
        "process", f"process {process}", "eve", "",
    )  # fmt: skip
    assert orphan["why"] == "the Hub has no such server running"
    status, found = orphans(hub, "--remove")
    assert (status, [orphan["done"] for orphan in found]) == (0, ["removed"])
    assert not is_alive(process)
    assert orphans(hub) == (0, [])


def _proxy(hub: RealHub) -> bool:
    """Whether the proxy of a Hub that was killed still runs; the next Hub would end it, and then miss it."""
    pid = hub.folder / "proxy.pid"
    if pid.exists() and is_alive(int(pid.read_text())):
        os.kill(int(pid.read_text()), signal.SIGTERM)
        return True
    return False


async def test_a_token_and_a_row_that_nobody_needs(hub: RealHub):
    """As a launcher leaves them that is killed before it revokes one, and a Hub that turns a start down."""
    for name in ("one", "two"):
        status, answer = await hub.launcher("POST", username=name, image="light")
        assert status == 200, answer
    # the Hub has no room, and keeps the row of the named server that it has not started
    await hub.api("POST", "/users/three")
    options = {"launcher": {"id": "0123456789abcdef"}}
    status, answer = await hub.api("POST", "/users/three/servers/third", json=options)
    assert status == 429, answer
    _, model = await hub.api("GET", "/users/three?include_stopped_servers=1")
    assert "third" in model["servers"]
    if jupyterhub.version_info[0] >= 6:  # somebody makes a server for later
        status, answer = await hub.api("PUT", "/users/three/servers/later", json={"display_name": "Later"})
        assert status == 201, answer
    body = {"note": "jhlauncher two/ (0123456789abcdef)", "scopes": ["access:servers!server=two/"]}
    status, token = await hub.api("POST", "/users/two/tokens", json=body)
    assert status == 201, token
    status, found = orphans(hub)
    assert status == 1
    assert {(orphan["kind"], orphan["user"], orphan["server"]): orphan["why"] for orphan in found} == {
        ("token", "two", ""): "it is of the launch 0123456789abcdef, which has ended",
        ("server", "three", "third"): "it never ran: a start that was turned down or failed has left it",
    }
    status, found = orphans(hub, "--remove")
    assert (status, {orphan["done"] for orphan in found}) == (0, {"removed"})
    _, model = await hub.api("GET", "/users/three?include_stopped_servers=1")
    assert "third" not in model["servers"]
    _, tokens = await hub.api("GET", "/users/two/tokens")
    assert token["id"] not in {each["id"] for each in tokens["api_tokens"]}
    # what is in use stays
    _, model = await hub.api("GET", "/users/two")
    assert model["servers"][""]["ready"]
    assert orphans(hub) == (0, [])


async def test_a_hub_that_is_gone(hub: RealHub):
    """And is none, as long as it answers."""
    status, told = orphans(hub, "--hub-gone", "--remove")
    assert (status, "leave --hub-gone out" in told) == (4, True), told
    hub.end(signal.SIGKILL)
    await until(lambda: not _proxy(hub), 20)
    pids = [pid for name, pid in starts(hub) if name in ("one", "two") and is_alive(pid)]
    assert len(pids) == 2
    status, found = orphans(hub, "--hub-gone")
    assert (status, sorted(orphan["user"] for orphan in found)) == (1, ["one", "two"])
    assert {orphan["why"] for orphan in found} == {"its Hub is gone"}
    assert {orphan["kind"] for orphan in found} == {"process"}
    status, found = orphans(hub, "--hub-gone", "--remove")
    assert (status, {orphan["done"] for orphan in found}) == (0, {"removed"})
    assert not any(map(is_alive, pids))
    hub.begin()


async def test_who_may_not_ask(hub: RealHub):
    (hub.folder / "other").write_text("no-such-token")
    status, told = orphans(hub, token="other")
    assert (status, "does not know this token" in told) == (4, True), told
    assert "no-such-token" not in told
    # who does not see all users would take others' servers for lost
    (hub.folder / "other").write_text(await hub.user_token("one"))
    status, told = orphans(hub, token="other")
    assert (status, "for all users" in told) == (4, True), told
    # a platform's token does, and sees no tokens
    (hub.folder / "other").write_text(hub.platform_token)
    status, told = orphans(hub, token="other")
    assert (status, told) == (0, []), told
    assert orphans(hub, token="no-such-file")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--engine=docker"],
        ["--engine=moon", "--api-url=http://hub/hub/api"],
        ["--engine=kubernetes", "--api-url=http://hub/hub/api"],
    ],
)
async def test_wrong_arguments(arguments: list[str]):
    done = await piped(None, "orphans", *arguments)
    assert done.status == 2, done
    assert "Traceback" not in done.err
