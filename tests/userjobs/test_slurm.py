"""Jobs and forwards on a real Slurm, over a real sshd: from their request to their end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.userjobs.asking import SLEEP, ask, run, submit, until
from tests.userjobs.conftest import Site, service_for

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def service(site: Site, hub: FakeHub) -> AsyncIterator[Service]:
    async with service_for(site, hub) as service:
        yield service


async def test_from_the_queue_to_its_end(service: Service, site: Site):
    # the first holds all processors, so the second waits
    await submit(service, "first", {**SLEEP, "cpus": 2})
    await until(service, "first", "RUNNING")
    script = "#!/bin/bash\necho hello from $(whoami); echo $GREETING >&2; pwd; exit 3\n"
    created = await submit(
        service, "second", {"script": script, "memory": "10M", "cpus": 2, "environment": {"GREETING": "good day"}}
    )
    assert created["job"]["state"] in ("PENDING", "SUBMITTING")
    waiting = await until(service, "second", "PENDING")
    assert waiting["job"]["id"]
    assert await ask(service, "DELETE", "first") == (204, "")
    failed = await until(service, "second", "FAILED")
    assert failed["job"]["exit_code"] == 3
    assert failed["job"]["signal"] is None
    assert failed["job"]["reason"] == "NonZeroExitCode"
    assert failed["target_node"] == failed["job"]["node"] == os.uname().nodename.partition(".")[0]
    status, view = await ask(service, "GET", "second?tail=1000")
    assert status == 200
    assert view["tail"] == f"hello from {site.ada}\ngood day\n/home/{site.ada}\n"
    status, view = await ask(service, "GET", "second?tail=5")
    assert view["tail"] == f"{site.ada}\n"[-5:]


async def test_systems_are_told(service: Service, site: Site):
    status, systems = await service.request("GET", "api/systems/", token="token-of-ada")
    assert status == 200
    [system] = systems
    assert system["name"] == "cluster"
    assert system["account"] == site.ada
    assert system["allowed"]["partitions"] == ["batch"]
    assert system["jobs"]
    assert system["forwards"]
    assert await service.request("GET", "api/systems/", token="token-of-eve") == (200, [])


async def test_cancelled_by_its_owner(service: Service, site: Site):
    number = (await submit(service, "long", SLEEP))["job"]["id"]
    await until(service, "long", "RUNNING")
    assert await ask(service, "DELETE", "long") == (204, "")
    assert (await ask(service, "GET", "long"))[0] == 404
    assert (await ask(service, "DELETE", "long"))[0] == 404
    assert state_of(number) in ("CANCELLED", "COMPLETING")


async def test_cancelled_and_looked_at(service: Service):
    await submit(service, "kept", {"command": ["sh", "-c", "echo said; exec sleep 600"], "memory": "10M"})
    await until(service, "kept", "RUNNING")
    assert await ask(service, "DELETE", "kept?keep=true") == (204, "")
    view = await until(service, "kept", "CANCELLED")
    assert view["job"]["ended"]
    assert (await ask(service, "GET", "kept?tail=5"))[1]["tail"].endswith("\n")
    assert await ask(service, "DELETE", "kept?keep=true") == (204, "")
    assert (await ask(service, "GET", "kept"))[0] == 200
    assert await ask(service, "DELETE", "kept") == (204, "")
    assert (await ask(service, "GET", "kept"))[0] == 404


async def test_cancelled_on_the_system(service: Service, site: Site):
    number = (await submit(service, "theirs", SLEEP))["job"]["id"]
    await until(service, "theirs", "RUNNING")
    run("scancel", str(number))
    view = await until(service, "theirs", "CANCELLED")
    assert view["job"]["ended"]
    assert await ask(service, "DELETE", "theirs") == (204, "")


async def test_ended_by_its_time_limit(service: Service):
    """Slurm's shortest limit is a minute, and it looks twice a minute."""
    await submit(service, "slow", {**SLEEP, "time": 60})
    view = await until(service, "slow", "TIMEOUT", timeout=200)
    assert view["job"]["reason"] == "TimeLimit"


async def test_ended_by_a_signal(service: Service):
    await submit(service, "killed", {"command": ["sh", "-c", "kill -9 $$"], "memory": "10M"})
    view = await until(service, "killed", "FAILED")
    assert (view["job"]["exit_code"], view["job"]["signal"]) == (None, 9)


async def test_two_hundred_jobs_cost_as_many_queries_as_two(service: Service, site: Site):
    """And so it is whoever asks: in the time that is measured, each of them is asked for."""
    holds = {**SLEEP, "cpus": 2}

    async def queries(names: list[str]) -> int:
        for at in range(0, len(names), 20):
            await asyncio.gather(*(submit(service, name, SLEEP) for name in names[at : at + 20]))
        before = site.calls("squeue")
        measured = asyncio.get_running_loop().time() + 5
        while asyncio.get_running_loop().time() < measured:
            await asyncio.gather(*(ask(service, "GET", name) for name in names[:50]))
        return site.calls("squeue") - before

    await submit(service, "holds", holds)
    await until(service, "holds", "RUNNING")
    few = await queries(["few-1", "few-2"])
    many = await queries([f"many-{number}" for number in range(198)])
    _, jobs = await ask(service, "GET")
    assert len(jobs) == 201
    assert {job["job"]["state"] for job in jobs} <= {"RUNNING", "PENDING"}
    most = 6 / 0.5 + 1  # one in each interval; the last requests may take a while
    assert 1 <= few <= most
    assert 1 <= many <= most
    site.cancel_all()
    await until(service, "many-197", "CANCELLED")


def state_of(job: int) -> str:
    """What Slurm itself says."""
    return run("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={job}").strip()
