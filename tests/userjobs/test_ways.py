"""The other ways to a Slurm: its commands on this machine, and its REST API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from jhlauncher.ports import SERVICES, free_port
from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.userjobs.asking import SLEEP, ask, run, submit, until, until_view
from tests.userjobs.conftest import Site, service_for

pytestmark = pytest.mark.asyncio

VALUE = "a, b\n$(id) 'c' \"d\" \\ é"


def ways(site: Site, sockets: Path, front: str) -> dict[str, Any]:
    """A system for each way."""
    rest = {"url": f"unix:{sockets}/{{account}}"}
    jwt = {"url": front, "token_file": f"{sockets}/{{account}}.jwt"}
    return {
        "local": site.system(ssh=None, local=True),
        "slurmrestd": site.system(ssh=None, slurmrestd=rest),
        "slurmrestd with a token, and ssh": site.system(slurmrestd=jwt),
    }


@pytest.fixture(scope="module")
def sockets(shared_site: Site) -> Iterator[Path]:
    """slurmrestd for each account, at a socket; Debian's Slurm has no JWT, and so the socket says who asks."""
    slurmrestd = shutil.which("slurmrestd") or "/usr/sbin/slurmrestd"
    if not Path(slurmrestd).exists():
        pytest.skip("there is no slurmrestd")
    folder = Path(tempfile.mkdtemp(prefix="jhlauncher-rest-"))
    folder.chmod(0o777)
    running = []
    with (folder / "log").open("ab") as log:
        for account in (shared_site.ada, shared_site.bob, shared_site.view):
            (folder / f"{account}.jwt").write_text(f"token-of-{account}\n")
            command = [slurmrestd, "-s", "openapi/v0.0.38", "-a", "rest_auth/local", f"unix:{folder}/{account}"]
            running.append(subprocess.Popen(command, user=account, group=account, stdout=log, stderr=log))
    deadline = time.monotonic() + 20
    while not all((folder / account).exists() for account in (shared_site.ada, shared_site.bob, shared_site.view)):
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    yield folder
    for process in running:
        process.terminate()
        process.wait(20)
    shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def front_of(sockets: Path) -> AsyncIterator[str]:
    """What slurmrestd with JWT is to its clients; a fake, which checks the two headers, before the real ones."""

    async def forward(request: web.Request) -> web.Response:
        account = request.headers.get("X-SLURM-USER-NAME", "")
        if request.headers.get("X-SLURM-USER-TOKEN") != f"token-of-{account}":
            return web.json_response({"errors": [{"error": "Authentication failure"}]}, status=401)
        connector = aiohttp.UnixConnector(str(sockets / account))
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers) as session,
            session.request(request.method, f"http://localhost{request.path}", data=await request.read()) as answer,
        ):
            return web.Response(status=answer.status, text=await answer.text(), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port(SERVICES)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


@pytest_asyncio.fixture(params=["local", "slurmrestd", "slurmrestd with a token, and ssh"])
async def way(request: pytest.FixtureRequest, site: Site, sockets: Path, hub: FakeHub) -> AsyncIterator[Service]:
    async with front_of(sockets) as front:
        systems = {"cluster": ways(site, sockets, front)[request.param]}
        async with service_for(site, hub, Systems={"systems": systems}) as service:
            service.has_output = request.param != "slurmrestd"  # type: ignore[attr-defined]
            yield service


async def test_a_job_by_each_way(way: Service, site: Site):
    job = {
        "script": "#!/bin/bash\nid -un; printf '%s\\n' \"$SAID\"; pwd; exit 4\n", "environment": {"SAID": VALUE},
        "memory": "10M", "time": "5", "name": "a 'name' $(id)", "output": "said 'by' %j.txt",
    }  # fmt: skip
    created = await submit(way, "job", job)
    assert created["job"]["id"]
    ended = await until(way, "job", "FAILED")
    assert (ended["job"]["exit_code"], ended["job"]["reason"]) == (4, "NonZeroExitCode")
    output = site.home(site.ada) / f"said 'by' {ended['job']['id']}.txt"
    expected = f"{site.ada}\n{VALUE}\n/home/{site.ada}\n"
    assert output.read_text() == expected
    assert output.owner() == site.ada
    status, view = await ask(way, "GET", "job?tail=1000")
    assert status == 200
    assert view["tail"] == (expected if way.has_output else None)  # type: ignore[attr-defined]


async def test_cancelled_by_each_way(way: Service, site: Site):
    created = await submit(way, "long", SLEEP)
    await until(way, "long", "RUNNING")
    # while somebody else ends it, too
    run("scancel", str(created["job"]["id"]))
    assert await ask(way, "DELETE", "long") == (204, "")
    assert await ask(way, "GET") == (200, [])


async def test_refused_by_slurm(way: Service, site: Site):
    """A partition that is allowed here, and not there."""
    way.app.userjobs.jobs.systems["cluster"].allowed.partitions.append("nowhere")
    body = {"service": "nowhere", "hostname": "cluster", "job": {**SLEEP, "partition": "nowhere"}}
    status, answer = await ask(way, "POST", json=body)
    assert (status, answer["reason"]) == (400, "job_refused")
    assert "partition" in answer["error"].lower()
    assert (await ask(way, "GET", "nowhere"))[0] == 404, "nothing is left of it"


async def test_forwards_without_ssh(site: Site, hub: FakeHub):
    """Of this machine, nodes are reached from here."""
    port = free_port(SERVICES)
    systems = {"cluster": site.system(ssh=None, local=True)}
    async with service_for(site, hub, Systems={"systems": systems}) as service:
        home = site.home(site.ada)
        (home / "said.txt").write_text("said by a job")
        job = {"command": ["python3", "-m", "http.server", str(port)], "memory": "50M"}
        await submit(service, "web", job, ports={"80": port})
        view = await until_view(service, "web", lambda view: view["forwarding"])
        async with asyncio.timeout(60):
            while True:
                try:
                    async with service.client.get(f"http://{view['addresses']['80']}/said.txt") as response:
                        assert await response.text() == "said by a job"
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)  # it does not listen yet


async def test_nothing_is_forwarded_by_slurmrestd_alone(site: Site, sockets: Path, hub: FakeHub):
    systems = {"cluster": ways(site, sockets, "http://127.0.0.1:1")["slurmrestd"]}
    async with service_for(site, hub, Systems={"systems": systems}) as service:
        body = {"service": "web", "hostname": "cluster", "job": SLEEP, "ports": {"80": 80}}
        status, answer = await ask(service, "POST", json=body)
        assert (status, answer["reason"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "broken",
    [{"url": "http://127.0.0.1:1"}, {"url": "unix:/nowhere"}, {"url": "http://127.0.0.1:1", "token_file": "/no"}],
)
async def test_a_slurmrestd_that_is_not_there(site: Site, hub: FakeHub, broken: dict[str, Any]):
    systems = {"cluster": site.system(slurmrestd=broken)}
    async with service_for(site, hub, Systems={"systems": systems}) as service:
        status, answer = await ask(service, "POST", json={"service": "x", "hostname": "cluster", "job": SLEEP})
        assert (status, answer["reason"]) == (503, "system_unavailable")
        assert await ask(service, "GET") == (200, []), "nothing was submitted, and nothing is kept"


async def test_a_wrong_host_key(site: Site, hub: FakeHub, tmp_path: Path):
    """Somebody else's machine is at the address."""
    other = tmp_path / "known_hosts"
    _, kind, key, *_ = (site.sshd.folder / f"{site.bob}.pub").read_text().split()
    other.write_text(f"[127.0.0.1]:{site.sshd.port} {kind} {key}\n")
    systems = {"cluster": site.system(ssh={**site.sshd.settings, "known_hosts": str(other)})}
    async with service_for(site, hub, Systems={"systems": systems}) as service:
        status, answer = await ask(service, "POST", json={"service": "x", "hostname": "cluster", "job": SLEEP})
        assert (status, answer["reason"]) == (503, "system_unavailable")
        assert "host key" in answer["error"]
        assert str(tmp_path) not in answer["error"]


async def test_a_key_that_is_not_accepted(site: Site, hub: FakeHub, tmp_path: Path):
    key = tmp_path / "key"
    shutil.copy(site.sshd.folder / site.bob, key)
    key.chmod(0o600)
    systems = {"cluster": site.system(ssh={**site.sshd.settings, "key": str(key)})}
    async with service_for(site, hub, Systems={"systems": systems}) as service:
        status, answer = await ask(service, "POST", json={"service": "x", "hostname": "cluster", "job": SLEEP})
        assert (status, answer["reason"]) == (503, "system_unavailable")
        assert "key for your account" in answer["error"]


async def test_login_scripts_that_talk(site: Site, hub: FakeHub):
    """bash reads .bashrc for commands over SSH, too; what it prints is none of Slurm's."""
    bashrc = site.home(site.ada) / ".bashrc"
    before = bashrc.read_text()
    bashrc.write_text("echo 4711; echo Welcome to the cluster >&2\n" + before)
    try:
        async with service_for(site, hub) as service:
            created = await submit(service, "quiet", {"command": ["echo", "said"], "memory": "10M"})
            assert created["job"]["id"] != 4711
            await until(service, "quiet", "COMPLETED")
            _, view = await ask(service, "GET", "quiet?tail=100")
            assert view["tail"] == "said\n"
    finally:
        bashrc.write_text(before)


async def test_only_root_runs_jobs_as_others_here(site: Site):
    """Checked where the service starts, as another than root."""
    program = (
        "import os; from jhlauncher.userjobs.systems import Systems; os.setuid(65534);"
        f"Systems(systems={{'here': {{'local': True, 'accounts': {{'ada': '{site.ada}'}}}}}})"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = await asyncio.create_subprocess_exec(
        shutil.which("python") or "python3", "-c", program, stderr=asyncio.subprocess.PIPE, env=environment
    )
    _, stderr = await process.communicate()
    assert f"only a service of root's can run jobs as {site.ada}" in stderr.decode()
