"""``jhlauncher batch`` and ``extend``, in a terminal and piped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jhlauncher.cli.names import NESTED
from tests.cli.terminal import piped, terminal
from tests.conftest import Service, running_service, until
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.asyncio

RULES: list[dict[str, Any]] = [
    {"name": "an hour", "users": ["bob"], "images": ["*"], "lifetime": 3600},
    {"name": "as they like", "images": ["*"], "limits": {"user": {"servers": 2}}},
]
IMAGE = ("--image", "image:1")


@pytest_asyncio.fixture
async def service(hub: FakeHub) -> AsyncIterator[Service]:
    for name in ("ada", "bob"):
        hub.users[name] = {"groups": ["course-1"]}
    settings: dict[str, Any] = {"Starter": {"progress_delay": 0.05}, "Hub": {"retry_timeout": 1}}
    async with running_service(hub, Policy={"rules": RULES}, **settings) as service:
        yield service


async def test_a_class_in_a_terminal_has_one_bar(service: Service, hub: FakeHub):
    hub.auto_finish = False
    async with terminal(service, "batch", "start", "--group", "course-1", "--user", "eve", *IMAGE) as screen:
        await until(lambda: len(hub.servers) == 3, timeout=120)
        hub.servers["ada", ""].finish()
        await screen.shows("1/3")
        await screen.shows("2 starting, 1 ready")
        assert sum("━" in line for line in screen.text.splitlines()) == 1
        hub.servers["bob", ""].finish()
        hub.servers["eve", ""].fail("Spawn failed: no such image")
        assert await screen.status() == 1
        text = await screen.shows("start_failed")
        assert "━" not in text, "the bar goes when it is done"
        assert "2 ready, 1 failed" in text
        assert "eve" in text
    assert b"secret-" not in screen.received, "what tokens of this Hub begin with"


async def test_a_class_that_is_piped_says_its_id_and_nothing_else(service: Service, hub: FakeHub):
    answer = await piped(service, "batch", "start", "--group", "course-1", *IMAGE, "--stagger", "1s")
    assert answer.status == 0, answer.err
    listed = json.loads((await piped(service, "batch", "list", "--json")).out)
    assert answer.out == f"{listed[0]['id']}\n"
    assert "1 ready" in answer.err
    assert "\x1b" not in answer.out + answer.err
    assert (await piped(service, "batch", "list", "--quiet")).out == answer.out
    header, row = (await piped(service, "batch", "list")).out.splitlines()
    assert header.split() == ["ID", "GROUP", "ASKED", "SERVERS"]
    assert row.startswith(f"{listed[0]['id']}  course-1  ")
    assert row.endswith("2 ready")
    shown = await piped(service, "batch", "show", listed[0]["id"])
    assert shown.status == 0
    header, ada, bob = shown.out.splitlines()[1:]
    assert header.split() == ["USER", "STATE", "DOING", "LAST", "USED", "ENDS", "IN"]
    assert ada.split()[:2] == ["ada", "ready"]
    assert " d ago" in ada, "since when the Hub has not seen it used"
    assert bob.split()[-2:] == ["1", "h"], "the policy's lifetime"
    as_json = await piped(service, "batch", "show", listed[0]["id"], "--json")
    assert json.loads(as_json.out)["items"][0]["last_activity"]
    assert "secret-" not in as_json.out + shown.out


async def test_names_from_a_file_or_standard_input(service: Service, tmp_path: Path):
    file = tmp_path / "names"
    file.write_text("eve\n# who has left\n\n dan \n")
    answer = await piped(service, "batch", "start", "--users-file", str(file), *IMAGE, "--json")
    assert answer.status == 0, answer.err
    assert [item["username"] for item in json.loads(answer.out)["items"]] == ["eve", "dan"]
    answer = await piped(service, "batch", "start", "--users-file", "-", *IMAGE, "--no-wait", stdin=b"fay\n")
    assert (answer.status, len(answer.out.split())) == (0, 1)


async def test_what_starts_no_class(service: Service):
    for arguments, status, said in (
        ([], 2, "Say for whom"),
        (["--users-file", "/nonexistent"], 2, "can't be read"),
        (["--group", "nobody"], 3, "(group_empty)"),
        (["--user", "ada", "--template", "none"], 3, "template: none is not allowed"),
        (["--user", "ada", "ada "], 3, "users.1"),
        (["--user", "ada", "--stagger", "soon"], 2, "is not a time"),
    ):
        answer = await piped(service, "batch", "start", *arguments, *IMAGE)
        assert (answer.status, answer.out) == (status, ""), answer
        assert said in answer.err


async def test_more_time(service: Service):
    batch = (await piped(service, "batch", "start", "--group", "course-1", *IMAGE)).out.strip()
    answer = await piped(service, "batch", "extend", batch, "--lifetime", "2h")
    assert answer.status == 3
    ada, bob = answer.out.splitlines()
    assert ada == "ada: is stopped in 2 h"
    assert bob.startswith("bob: The policy (rule 'an hour') does not allow this.")
    answer = await piped(service, "batch", "extend", batch, "--lifetime", "30m", "--json")
    assert (answer.status, [item["error"] for item in json.loads(answer.out)]) == (0, [None, None])
    assert "secret-" not in answer.out
    ids = (await piped(service, "list", "--quiet")).out.split()
    answer = await piped(service, "extend", *ids, "--lifetime", "none")
    assert answer.status == 3
    assert answer.out.splitlines() == [f"{ids[1]} runs until somebody stops it"]
    assert "(policy_denied)" in answer.err


async def test_a_class_is_stopped(service: Service, hub: FakeHub):
    batch = (await piped(service, "batch", "start", "--group", "course-1", *IMAGE)).out.strip()
    answer = await piped(service, "batch", "stop", batch)
    assert (answer.status, answer.out) == (0, f"{batch} has ended\n")
    assert not any(server.active for server in hub.servers.values())
    answer = await piped(service, "batch", "stop", batch, "--json", "--no-wait")
    assert json.loads(answer.out) == {"id": batch, "ended": True}
    assert (await piped(service, "batch", "extend", batch, "--lifetime", "1h")).err == (
        "Nothing of this class runs any more.\n"
    )
    answer = await piped(service, "batch", "show", "0123456789abcdef")
    assert (answer.status, "(batch_not_found)" in answer.err) == (3, True)


async def test_ctrl_c_leaves_the_class_as_it_is(service: Service, hub: FakeHub):
    hub.auto_finish = False
    async with terminal(service, "batch", "start", "--user", "ada", *IMAGE) as screen:
        await screen.shows("1 starting")
        screen.interrupt()
        assert await screen.status() == 130
        await screen.shows("The class goes on: jhlauncher batch show")
    assert hub.servers["ada", ""].active


async def test_options_tell_what_is_in_use(service: Service):
    await piped(service, "launch", "--user", "ada", *IMAGE)
    said = (await piped(service, "options", "--user", "ada")).out.splitlines()
    assert "lifetime: no limit" in said
    assert "ada: 1 of 2 servers in use" in said
    assert "lifetime: 1 h" in (await piped(service, "options", "--user", "bob")).out


async def test_every_nested_command_is_listed_and_helps():
    for name, commands in NESTED.items():
        listed = (await piped(None, name, "--help")).out
        for word, summary in commands.items():
            assert f"{word} " in listed
            answer = await piped(None, name, word, "--help")
            assert (answer.status, summary in answer.out, "exit status:" in answer.out) == (0, True, True)
    assert (await piped(None, "batch")).status == 2
