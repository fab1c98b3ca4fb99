"""The Python client's user jobs: on a real Slurm, through a restart of the service, and where answers are lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from jhlauncher.client import (
    BlockingClient,
    Forbidden,
    InvalidRequest,
    LauncherClient,
    LauncherError,
    NotFound,
    PolicyDenied,
    ServerConflict,
    UserJob,
)
from jhlauncher.ports import SERVICES, free_port
from tests.client.test_client import answering
from tests.conftest import Service
from tests.fake_hub import PLATFORM_TOKEN, FakeHub
from tests.userjobs.asking import SLEEP
from tests.userjobs.conftest import Site, service_for, shared_site, site  # noqa: F401  (fixtures)

pytestmark = pytest.mark.asyncio

# who reads what it serves ends it, so that nobody has to wait for a time
SERVE_ONCE = """\
#!/bin/sh
exec /usr/bin/python3 -u - <<'END'
import http.server, socketserver

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served by the job")

with socketserver.TCPServer(("127.0.0.1", PORT), Handler) as server:
    print("it listens")
    server.handle_request()
END
"""
VIEW = {"service": "training", "hostname": "cluster", "created": "2026-01-01T00:00:00Z"}


@pytest_asyncio.fixture
async def cluster(site: Site, hub: FakeHub) -> AsyncIterator[Service]:  # noqa: F811
    async with service_for(site, hub) as service:
        yield service


@pytest_asyncio.fixture
async def client(cluster: Service) -> AsyncIterator[LauncherClient]:
    async with LauncherClient(cluster.url, "token-of-ada", patience=20) as client:
        yield client


async def read(address: str) -> str:
    """What is served at an address, as soon as somebody listens there: a job runs before what it starts is ready."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://{address}/") as response:
                    return await response.text()
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)


async def test_a_job_that_serves_something_to_its_end(client: LauncherClient, site: Site):  # noqa: F811
    [system] = await client.systems()
    assert (system["name"], system["account"], system["allowed"]["cpus"]) == ("cluster", site.ada, 2)
    port = free_port(SERVICES)
    script = SERVE_ONCE.replace("PORT", str(port))
    job = await client.submit_job("training", "cluster", ports={8888: port}, script=script, memory="50M", time="5")
    assert (job.service, job.ports, job.final) == ("training", {8888: port}, False)
    assert job.job is not None
    assert (job.job.memory, job.job.time) == (50 * 1024**2, 300)
    seen: list[UserJob] = []
    reading = None
    async with asyncio.timeout(120), aclosing(client.follow_userjob("training")) as following:
        async for job in following:
            seen.append(job)
            if job.forwarding:
                reading = reading or asyncio.create_task(read(job.addresses[8888]))
    assert reading is not None
    assert await reading == "served by the job"
    assert all(one != other for one, other in pairwise(seen)), "it is told when it has changed"
    assert [each.final for each in seen] == [False] * (len(seen) - 1) + [True]
    assert job.job is not None
    assert (job.state, job.job.exit_code, job.forwarding) == ("COMPLETED", 0, False)
    told = await client.userjob("training", tail=1000)
    assert (told.tail or "").startswith("it listens\n")
    assert [each.service for each in await client.userjobs()] == ["training"]
    assert f"{told}" == "<UserJob training on cluster: COMPLETED>"
    await client.remove_userjob("training")
    assert await client.userjobs() == []


async def test_the_service_is_restarted_in_the_middle(site: Site, hub: FakeHub, tmp_path: Path):  # noqa: F811
    address = f"http://127.0.0.1:{free_port(SERVICES)}"
    sections: dict[str, dict[str, Any]] = {
        "LauncherApp": {"bind_url": address, "shutdown_timeout": 0.2},
        "Database": {"url": f"sqlite:///{tmp_path}/launches.sqlite"},
    }
    gate = site.home(site.ada) / "go-on"
    script = f"#!/bin/sh\nuntil [ -e {gate} ]; do sleep 0.1; done; exit 3\n"
    seen: list[UserJob] = []
    async with LauncherClient(f"{address}/services/launcher/", "token-of-ada", patience=60) as client:
        following = client.follow_userjob("long")
        async with service_for(site, hub, **sections), asyncio.timeout(120):
            await client.submit_job("long", "cluster", script=script, memory="10M")
            async for job in following:
                seen.append(job)
                if job.state == "RUNNING":
                    break
        rest = asyncio.create_task(anext(following))
        gate.touch()
        async with service_for(site, hub, **sections), asyncio.timeout(120), aclosing(following):
            seen.append(await rest)
            seen += [job async for job in following]
    assert seen[-1].job is not None
    assert (seen[-1].state, seen[-1].job.exit_code) == ("FAILED", 3)
    assert all(one != other for one, other in pairwise(seen)), "what has not changed is not told again"


async def test_the_same_key_is_the_same_job(client: LauncherClient):
    first = await client.submit_job("again", "cluster", idempotency_key="monday", **SLEEP)
    second = await client.submit_job("again", "cluster", idempotency_key="monday", **SLEEP)
    assert first.job
    assert second.job
    assert first.job.id == second.job.id
    with pytest.raises(ServerConflict) as caught:
        await client.submit_job("again", "cluster", **SLEEP)
    assert caught.value.reason == "userjob_exists"
    await client.remove_userjob("again", keep=True)
    states = [job.state async for job in client.follow_userjob("again")]
    assert states[-1] == "CANCELLED"
    await client.remove_userjob("again")


async def test_who_follows_a_job_that_is_removed_is_let_go(client: LauncherClient):
    await client.submit_job("gone", "cluster", **SLEEP)
    async with asyncio.timeout(120):
        async for job in client.follow_userjob("gone"):
            if job.state == "RUNNING":
                await client.remove_userjob("gone")
    assert job.state == "RUNNING"
    for ask in (client.userjob("gone"), anext(client.follow_userjob("gone")), client.remove_userjob("gone")):
        with pytest.raises(NotFound, match="You have no user job gone"):
            await ask


async def test_a_forward_is_made_once(client: LauncherClient):
    first = await client.forward("notebook", "cluster", "localhost", {8000: 1})
    again = await client.forward("notebook", "cluster", "localhost", {8000: 1})
    assert (first.addresses, first.created) == (again.addresses, again.created)
    assert (first.state, first.final, first.job) == ("", False, None)
    assert first.addresses.keys() == {8000}
    assert "forward to localhost" in repr(first)
    with pytest.raises(ServerConflict):
        await client.forward("notebook", "cluster", "localhost", {8000: 2})
    with pytest.raises(Forbidden) as caught:
        await client.forward("other", "cluster", "example.org", {8000: 1})
    assert caught.value.reason == "not_your_node"
    await client.remove_userjob("notebook")


async def test_what_is_refused(client: LauncherClient, cluster: Service):
    with pytest.raises(InvalidRequest, match="an option of Slurm's in line 2") as caught:
        await client.submit_job("job", "cluster", script="#!/bin/sh\n#SBATCH --time=1\nhostname\n")
    assert caught.value.details["fields"][0]["field"] == "job.script"
    with pytest.raises(PolicyDenied, match="cpus must be at most 2"):
        await client.submit_job("job", "cluster", command=["hostname"], cpus=3)
    with pytest.raises(InvalidRequest):
        await client.submit_job("job", "elsewhere", command=["hostname"])
    async with LauncherClient(cluster.url, "token-of-eve") as eve:
        assert await eve.systems() == []
        with pytest.raises(Forbidden) as refused:
            await eve.submit_job("job", "cluster", command=["hostname"])
    assert refused.value.reason == "no_account"
    assert await client.userjobs() == []


async def test_from_a_notebook(cluster: Service):
    def notebook() -> tuple[list[str], str | None]:
        with BlockingClient(cluster.url, "token-of-ada") as client:
            [system] = client.systems()
            client.submit_job("hello", system["name"], command=["echo", "hello, world"], memory="10M")
            states = [job.state for job in client.follow_userjob("hello")]
            tail = client.userjob("hello", tail=100).tail
            client.forward("node", "cluster", "localhost", {80: 1})
            assert [job.service for job in client.userjobs()] == ["node", "hello"]
            for name in ("node", "hello"):
                client.remove_userjob(name)
            assert client.userjobs() == []
            return states, tail

    states, tail = await asyncio.to_thread(notebook)
    assert (states[-1], tail) == ("COMPLETED", "hello, world\n")


async def test_a_launcher_without_systems_says_so(service: Service):
    async with LauncherClient(service.url, PLATFORM_TOKEN) as client:
        for ask in (client.systems(), client.userjobs(), client.submit_job("a", "b", command=["c"])):
            with pytest.raises(NotFound, match="has no systems for user jobs"):
                await ask


async def test_an_answer_that_is_lost_while_one_is_removed():
    methods: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        methods.append(request.method)
        if request.method == "GET":
            return web.json_response(VIEW)
        if methods.count("DELETE") == 1:
            request.transport.close()  # type: ignore[union-attr]  # it is removed, and the answer is lost
            await asyncio.sleep(0)
        error = {"error": "Not found.", "reason": "not_found", "details": {}, "status": 404}
        return web.json_response(error, status=404)

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=5) as client:
        await client.remove_userjob("training")
    assert methods == ["GET", "DELETE", "DELETE"]


async def test_a_stream_ends_where_another_of_the_same_name_begins():
    views = [VIEW, VIEW, {**VIEW, "created": "2026-01-01T00:00:01Z"}]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"event: userjob\ndata: {json.dumps(views.pop(0))}\n\n".encode())
        request.transport.close()  # type: ignore[union-attr]
        return response

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=5) as client:
        assert [job.created.second async for job in client.follow_userjob("training")] == [0]
    assert views == []


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (400, '["Missing key: ports"]', InvalidRequest, "Missing key: ports"),
        (400, "[1]", LauncherError, "is not the launcher"),
        (400, "[]", LauncherError, "is not the launcher"),
        (200, "{}", LauncherError, r"is not about a user job|is no list"),
        (200, "[3]", LauncherError, "is not about a user job"),
    ],
)
async def test_answers_in_other_shapes(status: int, body: str, error: type[LauncherError], words: str):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=0.2) as client:
        for ask in (client.forward("a", "b", "c", {}), client.userjobs(), client.userjob("a")):
            with pytest.raises(error, match=words):
                await ask
