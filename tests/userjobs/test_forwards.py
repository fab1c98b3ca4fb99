"""What jobs serve is reached through forwards, whatever restarts in between."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from jhlauncher.ports import SERVICES, free_port
from tests.fake_hub import FakeHub
from tests.userjobs.asking import SLEEP, ask, run, submit, until, until_view
from tests.userjobs.conftest import QUICK, Site, identify
from tests.userjobs.process import ServiceProcess

pytestmark = pytest.mark.asyncio

NODE = os.uname().nodename.partition(".")[0]
IMAGE, BRIDGE = os.environ.get("JHLAUNCHER_TEST_IMAGE", ""), os.environ.get("JHLAUNCHER_TEST_HUB_IP", "127.0.0.1")
needs_docker = pytest.mark.skipif(not IMAGE, reason="there is no Docker: JHLAUNCHER_TEST_IMAGE is not set")
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"


@pytest_asyncio.fixture
async def service(
    site: Site, hub: FakeHub, tmp_path: Path, client: aiohttp.ClientSession
) -> AsyncIterator[ServiceProcess]:
    """A service that listens where containers reach it."""
    identify(hub)
    system = site.system(max_ports=4)
    settings = {
        **QUICK,
        "Forwards": {**QUICK["Forwards"], "ips": [BRIDGE]},
        "Systems": {"systems": {"cluster": system}},
    }
    service = ServiceProcess(tmp_path, hub, client, **settings)
    await service.start()
    yield service
    service.stop()


def server(folder: Path, port: int) -> dict[str, Any]:
    """A job that serves a folder."""
    return {"command": ["python3", "-m", "http.server", str(port)], "memory": "50M", "working_directory": str(folder)}


async def serves(service: ServiceProcess, name: str) -> dict[str, Any]:
    await until(service, name, "RUNNING")
    return await until_view(service, name, lambda view: view["forwarding"])


async def from_container(address: str) -> str:
    """What a container gets from there; tried again while the job's server does not listen yet."""
    command = ["docker", "run", "--rm", IMAGE, "python3", "-c", FETCH, f"http://{address}/said.txt"]
    async with asyncio.timeout(90):
        while True:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            stdout, _ = await process.communicate()
            if process.returncode == 0:
                return stdout.decode().strip()


async def fetched(service: ServiceProcess, address: str) -> str:
    """The same, from here, at the first try."""
    async with service.client.get(f"http://{address}/said.txt", timeout=aiohttp.ClientTimeout(30)) as response:
        return (await response.text()).strip()


@pytest.fixture
def folder(site: Site) -> Path:
    folder = site.home(site.ada)
    (folder / "said.txt").write_text("said by a job")
    return folder


@needs_docker
async def test_from_a_container_after_restarts(service: ServiceProcess, site: Site, folder: Path):
    port = free_port(SERVICES)
    created = await submit(service, "web", server(folder, port), ports={"8888": port})
    address = created["addresses"]["8888"]
    assert address.startswith(f"{BRIDGE}:")
    assert created["forwarding"] is False
    await serves(service, "web")
    assert await from_container(address) == "said by a job"

    service.stop(signal.SIGKILL)
    await service.start()
    again = await serves(service, "web")
    assert again["addresses"]["8888"] == address
    assert await from_container(address) == "said by a job"

    site.sshd.stop()
    broken = await until_view(service, "web", lambda view: not view["forwarding"])
    assert broken["problem"]
    waiting = asyncio.create_task(fetched(service, address))  # while it is away: it is served when it is back
    site.sshd.start()
    assert await waiting == "said by a job"
    await until_view(service, "web", lambda view: view["forwarding"] and not view["problem"])
    assert await from_container(address) == "said by a job"

    assert await ask(service, "DELETE", "web") == (204, "")
    with pytest.raises(aiohttp.ClientConnectorError):
        await fetched(service, address)


async def test_to_a_job_that_runs_already(service: ServiceProcess, site: Site, folder: Path):
    port = free_port(SERVICES)
    body = {"service": "mine", "hostname": "cluster", "target_node": NODE, "ports": {"80": port}}
    status, refused = await ask(service, "POST", json=body)
    assert (status, refused["reason"]) == (403, "not_your_node")
    await submit(service, "plain", server(folder, port))
    await until(service, "plain", "RUNNING")
    status, refused = await ask(service, "POST", json=body, who="bob")
    assert (status, refused["reason"]) == (403, "not_your_node"), "it is ada's"
    status, created = await ask(service, "POST", json=body)
    assert status == 201, created
    assert {name: created[name] for name in ("service", "hostname", "target_node")} == {
        "service": "mine", "hostname": "cluster", "target_node": NODE,
    }  # fmt: skip
    await until_view(service, "mine", lambda view: view["forwarding"])
    assert await reached(service, created["addresses"]["80"]) == "said by a job"
    assert (await ask(service, "POST", json=body))[0] == 200, "the same again"
    status, other = await ask(service, "POST", json={**body, "ports": {"81": port}})
    assert (status, other["reason"]) == (409, "userjob_exists")
    status, answer = await ask(service, "GET")
    assert [job["service"] for job in answer] == ["mine", "plain"]
    assert await ask(service, "GET", who="bob") == (200, [])
    assert (await ask(service, "GET", "mine", who="bob"))[0] == 404
    assert (await ask(service, "DELETE", "mine", who="bob"))[0] == 404
    assert (await ask(service, "PATCH", "mine", json={}))[0] == 405
    for name in ("mine", "plain"):
        assert await ask(service, "DELETE", name) == (204, "")


async def reached(service: ServiceProcess, address: str) -> str:
    """What is there, once the job's server listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await fetched(service, address)
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)


async def test_the_forward_goes_with_the_job(service: ServiceProcess, site: Site, folder: Path):
    port = free_port(SERVICES)
    created = await submit(service, "brief", server(folder, port), ports={"80": port})
    await serves(service, "brief")
    address = created["addresses"]["80"]
    assert await reached(service, address) == "said by a job"
    run("scancel", str(created["job"]["id"]))
    ended = await until(service, "brief", "CANCELLED")
    assert ended["addresses"] == {}
    with pytest.raises(aiohttp.ClientConnectorError):
        await fetched(service, address)
    # its name and ports are free again, of which there are four
    await submit(service, "brief", SLEEP, ports={str(80 + number): port for number in range(4)})
    body = {"service": "more", "hostname": "cluster", "target_node": "localhost", "ports": {"80": port}}
    status, refused = await ask(service, "POST", json=body)
    assert (status, refused["reason"]) == (429, "limit_reached")
