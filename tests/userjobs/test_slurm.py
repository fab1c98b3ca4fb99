"""Jobs and forwards on a real Slurm, over a real sshd: from their request to their end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.userjobs.conftest import Site, service_for

pytestmark = pytest.mark.asyncio

SLEEP = {"script": "#!/bin/sh\nexec sleep 600\n", "memory": "10M"}


@pytest_asyncio.fixture
async def service(site: Site, hub: FakeHub) -> AsyncIterator[Service]:
    async with service_for(site, hub) as service:
        yield service


async def ask(service: Service, method: str, name: str = "", who: str = "ada", **kwargs: Any) -> tuple[int, Any]:
    return await service.request(method, f"api/userjobs/{name}", token=f"token-of-{who}", **kwargs)


async def submit(service: Service, name: str, job: dict[str, Any], who: str = "ada", **more: Any) -> dict[str, Any]:
    body = {"service": name, "hostname": "cluster", "job": job, **more}
    status, answer = await ask(service, "POST", who=who, json=body)
    assert status == 201, answer
    return answer


async def until(service: Service, name: str, *states: str, who: str = "ada", **query: Any) -> dict[str, Any]:
    """A user job once its job is in one of these states, as the stream of its changes tells."""
    headers = {"Authorization": f"token token-of-{who}", "Accept": "text/event-stream"}
    url = f"{service.url}api/userjobs/{name}"
    async with asyncio.timeout(60), service.client.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data:"):
                view = json.loads(line[5:])
                if view["job"]["state"] in states:
                    return view
    raise AssertionError(f"it ended as {view}")


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
