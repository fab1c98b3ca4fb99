"""The commands for people and scripts, against the whole service: in a terminal, and piped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from jhlauncher.cli.names import COMMANDS, NESTED
from jhlauncher.cli.output import plain
from tests.cli.terminal import COMMAND, environment, piped, terminal
from tests.conftest import Service
from tests.fake_hub import PLATFORM_TOKEN, FakeHub, Misbehaviour

pytestmark = pytest.mark.asyncio

ADA = ("--user", "ada", "--image", "image:1")


async def test_a_launch_in_a_terminal_has_a_bar(service: Service, hub: FakeHub):
    hub.auto_finish = False
    async with terminal(service, "launch", *ADA) as screen:
        await hub.starting.wait()
        hub.servers["ada", ""].emit(35, "Pulling the image: 50%", phase="pulling")
        await screen.shows("Pulling the image: 50%")
        await screen.shows("35%")
        assert "ada" in screen.text
        assert "━" in screen.text
        hub.servers["ada", ""].emit(80, "Nearly there")
        await screen.shows("80%")
        hub.servers["ada", ""].finish()
        assert await screen.status() == 0
        await screen.shows("/user/ada/")
        assert "━" not in screen.text, "the bar goes when it is done"
    assert b"secret-" not in screen.received, "what tokens of this Hub begin with"


async def test_a_launch_that_is_piped_says_the_url_and_nothing_else(service: Service, hub: FakeHub):
    answer = await piped(service, "launch", *ADA)
    assert (answer.status, answer.out) == (0, f"{service.url.partition('/services')[0]}/user/ada/\n")
    assert "The server is ready" in answer.err
    assert "\x1b" not in answer.out + answer.err


async def test_a_token_is_printed_only_when_asked(service: Service, hub: FakeHub):
    await piped(service, "launch", *ADA)
    launch = json.loads((await piped(service, "list", "--json")).out)[0]
    token = "secret-a1"
    assert ("ada", "a1") in hub.tokens
    for arguments in (
        ("list", "--json"), ("list",), ("show", launch["id"], "--json"), ("show", launch["id"]),
        ("events", launch["id"], "--json", "--no-wait"), ("events", launch["id"], "--no-wait"),
        ("launch", *ADA, "--json"),
    ):  # fmt: skip
        answer = await piped(service, *arguments)
        assert token not in answer.out + answer.err, arguments
    shown = await piped(service, "show", launch["id"], "--json", "--show-token")
    assert json.loads(shown.out)["token"] == token


async def test_launch_and_show_the_token(service: Service, hub: FakeHub):
    answer = await piped(service, "launch", *ADA, "--show-token")
    url, token = answer.out.splitlines()
    assert url.endswith("/user/ada/")
    assert token == "secret-a1"


async def test_all_of_a_request(service: Service, hub: FakeHub):
    answer = await piped(
        service, "launch", *ADA, "--server-name", "analysis", "--cpu", "1.5", "--memory", "2G", "--gpu", "1",
        "--volume", "data/2026:/home/jovyan/data:ro", "--volume", "work:/work", "--env", "GREETING=hello = world",
        "--env", "FROM_HERE", "--lifetime", "90m", "--queue-timeout", "1d", "--json", "--no-wait", FROM_HERE="here",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    launch = json.loads(answer.out)
    assert (launch["lifetime"], launch["server_name"]) == (5400, "analysis")
    plan = await service.app.parts.store.get(launch["id"])
    assert plan is not None
    assert plan.spec.cpu is not None
    assert plan.spec.cpu.limit == 1.5
    assert plan.spec.memory is not None
    assert plan.spec.memory.limit == 2 * 1024**3
    volumes = [(volume.name, volume.mount, volume.subpath, volume.read_only) for volume in plan.spec.volumes]
    assert volumes == [("data", "/home/jovyan/data", "2026", True), ("work", "/work", "", False)]


async def test_a_launch_that_fails(service: Service, hub: FakeHub):
    hub.misbehaviours.add(Misbehaviour.IGNORES_OPTIONS)
    answer = await piped(service, "launch", *ADA)
    assert answer.status == 1
    assert answer.out == "", "nothing that a script would take for a URL"
    assert answer.err.count("(spawner_not_wrapped)") == 1
    answer = await piped(service, "launch", *ADA, "--json")
    assert answer.status == 1
    launch = json.loads(answer.out)
    assert (launch["state"], launch["error"]["reason"]) == ("failed", "spawner_not_wrapped")
    assert answer.err == ""
    listed = json.loads((await piped(service, "list", "--all", "--json")).out)
    assert [launch["state"] for launch in listed] == ["failed", "failed"]
    assert (await piped(service, "list", "--quiet")).out == ""


async def test_the_log_of_a_failed_launch(service: Service, hub: FakeHub):
    hub.auto_finish = False
    process = asyncio.create_task(piped(service, "launch", *ADA))
    await hub.starting.wait()
    hub.servers["ada", ""].fail("It went wrong \x1b]0;evil\x07 in many words")
    answer = await process
    assert answer.status == 1
    assert "\x1b" not in answer.out + answer.err
    [launch] = (await piped(service, "list", "--all", "--quiet")).out.split()
    answer = await piped(service, "logs", launch)
    assert answer.status == 2
    assert "has failed without a log: The server of ada did not start" in answer.err


async def test_only_what_failed_has_a_log(service: Service):
    launch = (await piped(service, "launch", *ADA, "--no-wait")).out.strip()
    answer = await piped(service, "logs", launch)
    assert answer.status == 2
    assert "only one that failed" in answer.err


async def test_stopping(service: Service, hub: FakeHub):
    for user in ("ada", "bob"):
        await piped(service, "launch", "-u", user, "-i", "image:1")
    ids = (await piped(service, "list", "-q")).out.split()
    assert len(ids) == 2
    answer = await piped(service, "stop", *ids, "0123456789abcdef")
    assert answer.status == 3
    assert answer.out.splitlines() == [f"{launch} has ended" for launch in ids]
    assert "(launch_not_found)" in answer.err
    assert (await piped(service, "list", "-q")).out == ""
    answer = await piped(service, "stop", ids[0], "--json", "--no-wait")
    assert (answer.status, json.loads(answer.out)) == (0, [{"id": ids[0], "ended": True}])


async def test_events_are_followed_to_the_end(service: Service, hub: FakeHub):
    launch = (await piped(service, "launch", *ADA, "--no-wait")).out.strip()
    following = asyncio.create_task(piped(service, "events", launch, "--json"))
    await piped(service, "stop", launch)
    answer = await following
    told = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.status == 0
    assert [event["event"] for event in told][-1] in ("stopped", "cancelled")
    async with terminal(service, "events", launch) as screen:
        await screen.shows("Waiting for its turn")
        assert await screen.status() == 0


async def test_ctrl_c_leaves_the_launch_as_it_is(service: Service, hub: FakeHub):
    hub.auto_finish = False
    async with terminal(service, "launch", *ADA) as screen:
        await screen.shows("Server requested")
        screen.interrupt()
        assert await screen.status() == 130
        await screen.shows("The launch goes on: jhlauncher events")
        assert "Traceback" not in screen.text
    assert json.loads((await piped(service, "list", "--json")).out)[0]["state"] == "starting"


async def test_a_table_in_a_terminal(service: Service):
    await piped(service, "launch", *ADA)
    async with terminal(service, "list") as screen:
        assert await screen.status() == 0
        await screen.shows("SERVER")
        await screen.shows("ready")
        assert "image:1" in screen.text
    assert (await piped(service, "list")).out.splitlines()[0].split() == [
        "ID", "SERVER", "WHAT", "STATE", "ASKED", "ENDS", "IN",
    ]  # fmt: skip


async def test_options(service: Service, hub: FakeHub):
    answer = await piped(service, "options", "--user", "ada")
    assert answer.status == 0
    assert answer.out.startswith("For ada, by the rule services\nimages: ")
    assert json.loads((await piped(service, "options", "-u", "ada", "--json")).out)["username"] == "ada"


async def test_a_dry_run(service: Service, hub: FakeHub):
    assert (await piped(service, "launch", *ADA, "--dry-run")).out == "The policy allows it: it would start at once.\n"
    token = hub.identify("token-of-ada", "ada", "user", "access:services", "servers!user=ada")
    answer = await piped(service, "launch", *ADA, "--dry-run", token=token)
    assert answer.status == 3
    assert "(policy_denied)" in answer.out
    assert not hub.servers


async def test_a_service_s_token_needs_a_name(service: Service):
    answer = await piped(service, "launch", "--image", "image:1")
    assert answer.status == 2
    assert "say whose server it will be with --user NAME" in answer.err


async def test_one_s_own_server_needs_no_name(service: Service, hub: FakeHub):
    token = hub.identify("token-of-ada", "ada", "user", "access:services", "servers!user=ada")
    answer = await piped(service, "launch", "--image", "image:1", token=token)
    assert answer.status == 3
    assert "(policy_denied)" in answer.err


async def test_refusals_have_a_status_of_their_own(service: Service):
    answer = await piped(service, "show", "0123456789abcdef", "--json")
    assert (answer.status, answer.out) == (3, "")
    assert json.loads(answer.err)["reason"] == "launch_not_found"
    answer = await piped(service, "launch", "--user", "ada", "--image", "not an image")
    assert answer.status == 3
    assert "image: is not an image reference" in answer.err
    assert (await piped(service, "list", token="no-such-token")).status == 3


async def test_a_launcher_that_does_not_answer():
    answer = await piped(None, "list", "--url", "http://127.0.0.1:1/", "--token", "x", "--patience", "0.2")
    assert answer.status == 4
    assert "can't be reached at http://127.0.0.1:1/" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "--memory", "much"], ["launch", "--lifetime", "soon"], ["launch", "--volume", "data"],
        ["launch", "--env", "NOT_SET_HERE"], ["list", "--state", "gone"], ["show"], ["list", "--url", "example.org"],
        ["list", "--token-file", "/nonexistent"], ["list", "--config", "/nonexistent"], ["list"],
    ],
)  # fmt: skip
async def test_what_is_wrong_on_the_command_line(arguments: list[str]):
    answer = await piped(None, *arguments)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err
    assert "Traceback" not in answer.err


async def test_a_token_from_a_file_or_standard_input(service: Service, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(f"{PLATFORM_TOKEN}\n")
    assert (await piped(None, "list", "--url", service.url, "--token-file", str(file))).status == 0
    answer = await piped(None, "list", "--url", service.url, "--token-file", "-", stdin=PLATFORM_TOKEN.encode())
    assert answer.status == 0
    config = tmp_path / "client.toml"
    config.touch(mode=0o600)
    config.write_text(f'url = "{service.url}"\ntoken = "{PLATFORM_TOKEN}"\n')
    assert (await piped(None, "list", "--config", str(config))).status == 0


async def test_a_reader_that_has_seen_enough(service: Service):
    for number in range(3):
        await piped(service, "launch", "-u", f"user-{number}", "-i", "image:1", "--no-wait")
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "list", env=environment(service), stdout=write, stderr=asyncio.subprocess.PIPE
    )
    os.close(write)
    _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")


async def test_names_that_a_terminal_would_obey_are_made_plain():
    assert plain("a\x1b[31mb\x07c\td\n\u202e") == "a�[31mb�c\td\n�"
    assert plain("naïve ☃") == "naïve ☃"


async def test_every_command_is_listed_and_helps():
    listed = (await piped(None, "--help")).out
    for name, summary in COMMANDS.items():
        assert f"{name}\n    {summary}" in listed
        if name not in NESTED:
            answer = await piped(None, name, "--help")
            assert (answer.status, "exit status:" in answer.out) == (0, True)


async def said_by(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_completion(shell: str, tmp_path: Path):
    script = tmp_path / "completion"
    script.write_text((await piped(None, "completion", shell)).out)
    assert "--show-token" in script.read_text()
    if shell == "bash":
        words = 'COMP_WORDS=(jhlauncher la); COMP_CWORD=1; _shtab_jhlauncher; echo "${COMPREPLY[@]}"'
        assert await said_by("bash", "-c", f"source {script}; {words}") == "launch"


async def test_it_starts_without_the_service_s_imports():
    code = "import sys, jhlauncher.cli.commands; print('sqlalchemy' in sys.modules, 'jhlauncher.app' in sys.modules)"
    assert await said_by(sys.executable, "-c", code) == "False False"
