"""``jhlauncher jobs``, in a terminal and piped, on a real Slurm."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from jhlauncher.cli.jobs import _named_after, _port, _time, parted
from jhlauncher.client import LauncherClient
from jhlauncher.ports import SERVICES, free_port
from tests.cli.terminal import Answer, environment, piped, terminal
from tests.client.test_userjobs import SERVE_ONCE, read
from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.test_docs import DOCS
from tests.test_examples import FENCE
from tests.userjobs.conftest import Site, service_for, shared_site, site  # noqa: F401  (fixtures)

pytestmark = pytest.mark.asyncio

ADA = "token-of-ada"
SLEEP = "#!/bin/sh\necho it begins\nexec sleep 600\n"


@pytest_asyncio.fixture
async def cluster(site: Site, hub: FakeHub) -> AsyncIterator[Service]:  # noqa: F811
    nodes = {**site.system(), "allowed": {}, "query_account": None}
    async with service_for(site, hub, Systems={"systems": {"cluster": site.system(), "nodes": nodes}}) as service:
        yield service


async def jobs(cluster: Service, *arguments: str, stdin: str = "") -> Answer:
    return await piped(cluster, "jobs", *arguments, stdin=stdin.encode(), token=ADA)


async def until_submitted(cluster: Service, name: str) -> None:
    async with LauncherClient(cluster.url, ADA) as client, aclosing(client.follow_userjob(name)) as following:
        async for job in following:
            if job.state in ("PENDING", "RUNNING"):
                return


async def test_from_a_script_to_its_cancellation(cluster: Service, tmp_path: Path):
    script = tmp_path / "01 Train_Model.sh"
    script.write_text(SLEEP)
    answer = await jobs(
        cluster, "submit", str(script), "--port", "8888:80", "--time", "5m", "--cpus", "1", "--memory", "10M",
        "--partition", "batch", "--chdir", "/tmp", "--output", "out-%j",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert re.fullmatch(r"train-model-[0-9a-f]{4}\n", answer.out)
    name = answer.out.strip()
    [listed] = json.loads((await jobs(cluster, "list", "--json")).out)
    assert (listed["service"], listed["ports"], listed["job"]["time"]) == (name, {"8888": 80}, 300)
    header, row = (await jobs(cluster, "list")).out.splitlines()
    assert header.split() == ["NAME", "SYSTEM", "STATE", "REASON", "NODE", "ADDRESSES", "AGE"]
    assert row.startswith(f"{name}  cluster  ")
    assert f"  {listed['addresses']['8888']}  " in row
    shown = await jobs(cluster, "show", name)
    assert shown.status == 0
    lines = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in shown.out.splitlines() if "  " in line.strip())
    assert (lines["system"], lines["memory"], lines["time"]) == ("cluster", "10M", "0:05:00")
    assert lines["port 8888"] == listed["addresses"]["8888"]
    assert lines["output"] == f"/tmp/out-{lines['id']}"
    assert (await jobs(cluster, "cancel", name, "--keep")).out == f"{name} is cancelled\n"
    answer = await jobs(cluster, "cancel", name, "nobody")
    assert (answer.status, answer.out) == (3, f"{name} is gone\n")
    assert "You have no user job nobody." in answer.err


async def test_a_command_is_waited_for(cluster: Service, site: Site):  # noqa: F811
    command = ("sh", "-c", "echo $GREETING; pwd; printf '1%%\\r2%%\\n\\033[2J'", "--wait")
    answer = await jobs(cluster, "submit", "--wait", "--memory", "10M", "--env", "GREETING=good day", "--", *command)
    assert answer.status == 0, answer.err
    assert answer.out == f"good day\n/home/{site.ada}\n2%\n�[2J\n"
    assert re.search(r"^sh-[0-9a-f]{4} is COMPLETED$", answer.err, re.MULTILINE)


async def test_a_job_that_fails(cluster: Service):
    script = "#!/bin/sh\nhead -c 5000 /dev/zero | tr '\\0' x; echo; echo it went wrong\nexit 3\n"
    answer = await jobs(cluster, "submit", "--wait", "--name", "failing", "-", stdin=script)
    assert answer.status == 1
    assert answer.out.endswith("x\nit went wrong\n")
    assert "This is the end; all of it is in /home/" in answer.err
    assert "failing is FAILED, exit code 3 (NonZeroExitCode)" in answer.err
    shown = json.loads((await jobs(cluster, "show", "failing", "--json", "--tail", "6")).out)
    assert (shown["job"]["exit_code"], shown["tail"]) == (3, "wrong\n")
    answer = await jobs(cluster, "submit", "--wait", "--json", "--name", "failing", "--", "false")
    assert (answer.status, answer.err) == (1, "")
    ended = json.loads(answer.out)
    assert (ended["job"]["state"], ended["job"]["exit_code"], ended["tail"]) == ("FAILED", 1, "")


async def test_what_a_job_serves_is_reached_while_it_is_waited_for(cluster: Service, tmp_path: Path):
    port = free_port(SERVICES)
    script = tmp_path / "serve.sh"
    script.write_text(SERVE_ONCE.replace("PORT", str(port)))
    arguments = ("--wait", "--name", "serving", "--port", f"8888:{port}", "--memory", "50M")
    async with terminal(cluster, "jobs", "submit", *arguments, str(script), token=ADA) as screen:
        text = await screen.shows("8888 is reached at ")
        await screen.shows("serving is RUNNING on ")
        address = text.partition("8888 is reached at ")[2].split()[0]
        assert await read(address) == "served by the job"
        assert await screen.status() == 0
        text = await screen.shows("serving is COMPLETED")
        assert "it listens" in text
        assert "RUNNING" not in text, "the line goes when it is done"


async def test_ctrl_c_leaves_the_job_as_it_is(cluster: Service):
    async with terminal(
        cluster, "jobs", "submit", "--wait", "--name", "long", "--", "sleep", "600", token=ADA
    ) as screen:
        await screen.shows("long is ")
        screen.interrupt()
        assert await screen.status() == 130
        await screen.shows("The job goes on: jhlauncher jobs show long, or jobs cancel long")
        assert "Traceback" not in screen.text
    assert (await jobs(cluster, "cancel", "long")).status == 0


async def test_a_job_that_is_cancelled_while_it_is_waited_for(cluster: Service):
    waiting = asyncio.create_task(jobs(cluster, "submit", "--wait", "--name", "gone", "-", stdin=SLEEP))
    async with LauncherClient(cluster.url, ADA) as client:
        async with asyncio.timeout(60):
            while not await client.userjobs():
                await asyncio.sleep(0.05)
        await until_submitted(cluster, "gone")
        await client.remove_userjob("gone")
    answer = await waiting
    assert answer.status == 1
    assert "gone was cancelled and forgotten." in answer.err


async def test_forwards_and_systems(cluster: Service, site: Site):  # noqa: F811
    arguments = ("notebook", "--node", "localhost", "--port", "8000:1", "--port", "80")
    assert "Say where: --system cluster or --system nodes" in (await jobs(cluster, "forward", *arguments)).err
    answer = await jobs(cluster, "forward", *arguments, "--system", "nodes")
    assert answer.status == 0, answer.err
    [listed] = json.loads((await jobs(cluster, "list", "--json")).out)
    assert answer.out.splitlines() == [listed["addresses"]["8000"], listed["addresses"]["80"]]
    shown = (await jobs(cluster, "show", "notebook")).out
    assert re.search(r"^state +forward(ing)? *\nnode +localhost *$", shown, re.MULTILINE)
    assert f"port 8000  {listed['addresses']['8000']}" in shown
    header, first, second = (await jobs(cluster, "systems")).out.splitlines()
    assert header.split() == [
        "NAME", "ACCOUNT", "PARTITIONS", "PROJECTS", "TIME", "NODES", "CPUS", "GPUS", "MEMORY", "PROBLEM",
    ]  # fmt: skip
    assert first.split() == ["cluster", site.ada, "batch", "0:10:00", "1", "2", "0", "500M"]
    assert second.split() == ["nodes", site.ada], "which has no jobs"
    answer = await jobs(cluster, "cancel", "notebook", "--json")
    assert (answer.status, json.loads(answer.out)) == (0, [{"service": "notebook", "cancelled": True}])


async def test_what_is_refused(cluster: Service):
    script = "#!/bin/sh\n#SBATCH --time=1:00\n#SBATCH --mem 4G\nhostname\n"
    for arguments, said in (
        (("-",), ("has an option of Slurm's in line 2", "Take these lines out", "  #SBATCH --mem 4G")),
        (("--name", "Not a name", "--", "hostname"), ("service: ", "(invalid_request)")),
    ):
        answer = await jobs(cluster, "submit", *arguments, stdin=script)
        assert (answer.status, answer.out) == (3, ""), answer
        assert all(words in answer.err for words in said), answer.err
    answer = await piped(cluster, "jobs", "submit", "--", "hostname", token="token-of-eve")
    assert (answer.status, "no system with jobs" in answer.err) == (2, True)


async def test_what_is_wrong_on_the_command_line():
    wrong = [
        (["submit"], "Say what runs"),
        (["submit", "/nonexistent"], "The script can't be read"),
        (["submit", "--system", "x", "--port", "80", "--port", "80:8080", "--", "hostname"], "wanted once"),
        (["forward", "name", "--node", "a"], "Say which port"),
    ]
    where = {"JHLAUNCHER_URL": "http://127.0.0.1:1/", "JHLAUNCHER_TOKEN": "x"}
    answers = await asyncio.gather(*(piped(None, "jobs", *arguments, **where) for arguments, _ in wrong))
    for answer, (_, said) in zip(answers, wrong, strict=True):
        assert (answer.status, answer.out) == (2, "")
        assert said in answer.err
        assert "Traceback" not in answer.err


async def test_ports_and_times():
    assert [_port("80"), _port("80:8080")] == [(80, 80), (80, 8080)]
    assert [_time("90m"), _time("1.5h"), _time("30"), _time("2-12:00")] == [5400, 5400, "30", "2-12:00"]
    for kind, texts in ((_port, ("http", "80:", ":80", "-1", "\uff18")), (_time, ("soon", "1:30h", "", "2 h"))):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
                kind(text)


async def test_what_stands_behind_two_dashes_is_the_command():
    assert parted(["jobs", "submit", "--wait", "--", "a", "--", "--wait"]) == (
        ["jobs", "submit", "--wait"], ["a", "--", "--wait"],
    )  # fmt: skip
    for other in (["jobs", "submit", "a"], ["jobs", "cancel", "--", "a"], ["--"]):
        assert parted(other) == (other, [])


@pytest.mark.parametrize(
    "program", ["train.sh", "/opt/1.2/RUN ME", "-", "42", "größe.py", "x" * 200, "--", ".profile", "a-.-b"]
)
async def test_a_name_is_made_that_a_service_may_have(program: str):
    for args in (Namespace(script=program), Namespace(script=None, program=[program, "argument"])):
        name = _named_after(args)
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name), name
        assert _named_after(args) != name


async def test_the_examples_in_the_docs(site: Site, hub: FakeHub, tmp_path: Path):  # noqa: F811
    """In the environment of a server of JupyterHub's, with its own token."""
    allowed = {"partitions": ["batch"], "time": 3600}
    section = DOCS["userjobs.md"].partition("## From a notebook\n")[2].partition("\n## ")[0]
    blocks = FENCE.findall(section)
    assert [language for _, language, _ in blocks] == ["bash", "python"]
    async with service_for(site, hub, Systems={"systems": {"cluster": site.system(allowed=allowed)}}) as service:
        for _, language, text in blocks:
            text = text.replace("8888", str(free_port(SERVICES)))
            command = ("bash", "-euo", "pipefail") if language == "bash" else (sys.executable, "-W", "error")
            process = await asyncio.create_subprocess_exec(
                *command, "-c", text, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=environment(
                    None, JHLAUNCHER_URL=service.url, JUPYTERHUB_API_TOKEN=ADA,
                    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                ),
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), 150)
            assert process.returncode == 0, err.decode()
            assert re.search(r"127\.0\.0\.1:\d+", out.decode())
    assert os.uname().nodename in (tmp_path / "hostname").read_text()
