"""A real Slurm, reached through a real sshd on loopback, by users who have accounts there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.conftest import Service, running_service
from tests.fake_hub import FakeHub
from tests.userjobs import sshd
from tests.userjobs.sshd import SSHD, Sshd

USER_SCOPES = ("access:services", "servers!user={name}")


@dataclass
class Site:
    """A system with accounts, and a folder of Slurm's commands that are counted."""

    sshd: Sshd
    ada: str
    bob: str
    view: str
    folder: Path

    def system(self, **more: Any) -> dict[str, Any]:
        """As a configuration names it."""
        return {
            "ssh": self.sshd.settings,
            "bin": str(self.folder / "bin"),
            "query_account": self.view,
            "accounts": {"ada": self.ada, "bob": self.bob},
            "credential_accounts": {"hub": {"ada": self.ada, "": self.view}},
            "allowed": {"partitions": ["batch"], "time": 600, "memory": "500M", "nodes": 1, "cpus": 2},
            "target_nodes": ["localhost"],
            "max_jobs": 250,
            **more,
        }

    def calls(self, command: str) -> int:
        """How often one of Slurm's commands was run."""
        log = self.folder / "calls" / command
        return len(log.read_text().splitlines()) if log.exists() else 0

    def cancel_all(self) -> None:
        """Leave no job for the next test."""
        for account in (self.ada, self.bob, self.view):
            subprocess.run(["scancel", f"--user={account}"], check=False)

    def home(self, account: str) -> Path:
        return Path("/home") / account


COUNTED = """#!/bin/sh
echo >> "{folder}/calls/{command}"
exec {real} "$@"
"""


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """A system on which no jobs of ours are."""
    yield shared_site
    shared_site.cancel_all()


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    if os.environ.get("JHLAUNCHER_TEST_SLURM") != "1":
        pytest.skip("there is no Slurm: JHLAUNCHER_TEST_SLURM is not set")
    if os.geteuid() != 0 or not Path(SSHD).exists():
        pytest.skip("a real sshd with accounts needs root, and sshd")
    folder = Path(tempfile.mkdtemp(prefix="jhlauncher-site-"))  # which the accounts can look into, unlike pytest's
    folder.chmod(0o755)
    for name in ("bin", "calls", "sshd"):
        (folder / name).mkdir()
    (folder / "calls").chmod(0o777)
    for command in ("sbatch", "squeue", "scancel"):
        path = folder / "bin" / command
        path.write_text(COUNTED.format(folder=folder, command=command, real=shutil.which(command)))
        path.chmod(0o755)
    server = Sshd(folder / "sshd")
    accounts = [sshd.account(name) for name in ("ada", "bob", "view")]
    for account in accounts:
        server.key(account)
    server.start()
    yield Site(server, *accounts, folder)
    server.stop()
    for account in accounts:
        sshd.remove(account)
    shutil.rmtree(folder)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


QUICK: dict[str, dict[str, Any]] = {
    "JobWatch": {"interval": 0.5, "lost_grace": 3},
    "Forwards": {"retry_delay": 0.1, "max_retry_delay": 0.5},
    "Hub": {"retry_timeout": 1},
}


def identify(hub: FakeHub) -> None:
    """Make tokens of users known, of whom one has no account."""
    for name in ("ada", "bob", "eve"):
        hub.identify(f"token-of-{name}", name, "user", *(scope.format(name=name) for scope in USER_SCOPES))


@asynccontextmanager
async def service_for(site: Site, hub: FakeHub, **sections: dict[str, Any]) -> AsyncIterator[Service]:
    """The service, with a system called `cluster`."""
    identify(hub)
    settings = {**QUICK, "Systems": {"systems": {"cluster": site.system()}}}
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    async with running_service(hub, **settings) as service:
        yield service
