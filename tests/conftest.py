"""Fixtures of the fast tests: the whole service on a real socket, in front of a scriptable Hub on another."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from traitlets.config import Config
from xdist.scheduler.loadscope import LoadScopeScheduling

from jhlauncher import sse
from jhlauncher.app import LauncherApp
from jhlauncher.ports import SERVICES, free_port
from tests.engines.report import Table
from tests.fake_hub import PLATFORM_TOKEN, SERVICE_TOKEN, FakeHub
from tests.postgres import Postgres

ENVIRONMENT = (
    "JHLAUNCHER_DB_URL",
    "JHLAUNCHER_IMAGES",
    "JHLAUNCHER_MANAGED",
    "JHLAUNCHER_SIGNING_KEY",
    "JUPYTERHUB_API_PREFIX",
    "JUPYTERHUB_API_TOKEN",
    "JUPYTERHUB_API_URL",
    "JUPYTERHUB_SERVICE_NAME",
    "JUPYTERHUB_SERVICE_PREFIX",
    "JUPYTERHUB_SERVICE_URL",
    "JUPYTERHUB_SSL_CERTFILE",
    "JUPYTERHUB_SSL_CLIENT_CA",
    "JUPYTERHUB_SSL_KEYFILE",
    "JUPYTERHUB_URL",
    "LOG_LEVEL",
    "STATUS_CHECK_COUNT",
    "STATUS_CHECK_INTERVAL",
    "USER_TOKEN_LIFETIME",
)


LONGEST = [
    "test_slurm.py", "test_faults.py", "test_kubernetes.py", "test_swarm.py", "test_disks.py",
    "test_class_of_thirty.py", "test_kubernetes_rights.py", "test_real_hub.py", "test_compose.py", "test_own.py",
    "test_killed.py", "test_running.py", "test_orphans.py", "test_one_host.py", "test_check.py", "test_class.py",
    "test_looks.py", "test_examples.py",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-engine-table", action="store_true", help="write what was seen into docs/engines.md")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(write=config.getoption("write_engine_table")))


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of the time goes in waiting for engines."""
    return (os.cpu_count() or 1) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """A module's tests run one after the other, in one worker; and so do all that share the one Slurm there is."""

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            on_slurm = "userjobs" in module or module.endswith("/test_jobs.py")
            on_slurm &= not module.endswith(("/test_requests.py", "/test_races.py"))  # which need none
            return "slurm" if on_slurm else str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take longest begin, so that none is left over at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the machine's reaches a test, and none is found in the working directory."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    postgres = Postgres(tmp_path_factory.mktemp("postgres"))
    postgres.start()
    yield postgres
    postgres.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind: what a test says of one holds for the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/launches.sqlite"
    return request.getfixturevalue("postgres").database()


@dataclass
class Service:
    """The running service, and a client for it."""

    url: str
    app: LauncherApp
    hub: FakeHub
    client: aiohttp.ClientSession

    async def request(
        self, method: str, path: str = "containers", token: str | None = PLATFORM_TOKEN, **kwargs: Any
    ) -> tuple[int, Any]:
        """Status and JSON body of an answer."""
        headers = {**({"Authorization": f"token {token}"} if token else {}), **kwargs.pop("headers", {})}
        async with self.client.request(method, f"{self.url}{path}", headers=headers, **kwargs) as response:
            body = await response.json() if response.content_type == "application/json" else await response.text()
            return response.status, body

    async def launch(self, token: str = PLATFORM_TOKEN, **body: Any) -> tuple[int, Any]:
        """Launch a server, alice's unless said otherwise."""
        return await self.request("POST", token=token, json={"username": "alice", "image": "image:1", **body})

    async def events(self, **body: Any) -> AsyncIterator[tuple[str, Any]]:
        """The names and data of a launch's event stream."""
        headers = {"Authorization": f"token {PLATFORM_TOKEN}", "Accept": "text/event-stream"}
        body = {"username": "alice", "image": "image:1", **body}
        async with self.client.post(f"{self.url}containers", json=body, headers=headers) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            async for event in sse.decode(response.content.iter_any()):
                yield event.name, json.loads(event.data)


@asynccontextmanager
async def running_service(hub: FakeHub, **sections: dict[str, Any]) -> AsyncIterator[Service]:
    """The service in front of a Hub, configured by sections of traits."""
    config = Config({name: Config(values) for name, values in sections.items()})
    config.Hub.setdefault("api_url", hub.api_url)
    config.Hub.setdefault("api_token", SERVICE_TOKEN)
    config.LauncherApp.setdefault("bind_url", f"http://127.0.0.1:{free_port(SERVICES)}")
    app = LauncherApp(config=config)
    app.initialize([])
    connector = aiohttp.TCPConnector(limit=0)
    async with app.running(), aiohttp.ClientSession(connector=connector) as client:
        yield Service(f"{app.bind_url}{app.prefix}", app, hub, client)


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[FakeHub]:
    """A Hub that does what it is told."""
    hub = FakeHub()
    await hub.start()
    yield hub
    await hub.stop()


@pytest_asyncio.fixture
async def service(hub: FakeHub) -> AsyncIterator[Service]:
    """The service with its defaults, but impatient."""
    async with running_service(hub, Starter={"progress_delay": 0.05}, Hub={"retry_timeout": 1}) as service:
        yield service


async def until(condition: Any, timeout: float = 5) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
