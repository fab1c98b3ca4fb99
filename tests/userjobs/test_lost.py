"""Answers that are lost: a job is submitted once, or not, and its owner learns which."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.fake_hub import FakeHub
from tests.userjobs.asking import SLEEP, ask, run, submit, until
from tests.userjobs.conftest import QUICK, Site, identify
from tests.userjobs.process import ServiceProcess

pytestmark = pytest.mark.asyncio

SILENT = {
    "after": '#!/bin/sh\n{sbatch} "$@" > /dev/null\ntouch {folder}/done\nexec sleep 600\n',
    "before": "#!/bin/sh\ntouch {folder}/done\nexec sleep 600\n",
}
"""An sbatch that says nothing: after it has submitted the job, or before."""
KEY = {"Idempotency-Key": "one-job"}


@pytest.fixture
def commands(site: Site, request: pytest.FixtureRequest) -> Path:
    """A folder with a silent sbatch."""
    folder = site.folder / f"silent-{os.urandom(4).hex()}"
    folder.mkdir()
    folder.chmod(0o777)
    for command in ("squeue", "scancel"):
        (folder / command).symlink_to(shutil.which(command) or "")
    sbatch = folder / "sbatch"
    sbatch.write_text(SILENT[request.param].format(sbatch=shutil.which("sbatch"), folder=folder))
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return folder


@pytest_asyncio.fixture
async def service_of(
    site: Site, hub: FakeHub, tmp_path: Path, client: aiohttp.ClientSession, commands: Path
) -> AsyncIterator[Callable[..., Awaitable[ServiceProcess]]]:
    """Starts a service that uses these commands; it is ended."""
    started = []

    async def start(**settings: Any) -> ServiceProcess:
        identify(hub)
        systems = {"cluster": site.system(bin=str(commands))}
        sections = {**QUICK, "Systems": {"systems": systems}, "UserJobs": settings}
        service = ServiceProcess(tmp_path, hub, client, **sections)
        await service.start()
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


async def once_done(folder: Path) -> None:
    async with asyncio.timeout(60):
        while not (folder / "done").exists():
            await asyncio.sleep(0.05)  # of a command on the system, nobody tells


@pytest.mark.parametrize("commands", ["after"], indirect=True)
async def test_killed_before_slurm_has_answered(
    site: Site, service_of: Callable[..., Awaitable[ServiceProcess]], commands: Path
):
    """The job is found again by its mark, and is there once."""
    service = await service_of()
    before = jobs_of(site)
    posting = asyncio.create_task(submit(service, "lost", SLEEP))
    await once_done(commands)
    service.stop(signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await posting
    await service.start()
    view = await until(service, "lost", "RUNNING")
    assert jobs_of(site) - before == {view["job"]["id"]}
    assert await ask(service, "DELETE", "lost") == (204, "")


@pytest.mark.parametrize("commands", ["after"], indirect=True)
async def test_slurm_does_not_answer_in_time(
    site: Site, service_of: Callable[..., Awaitable[ServiceProcess]], commands: Path
):
    """It is said that it is not known; the same request again is the same job."""
    service = await service_of(timeout=2.0)
    before = jobs_of(site)
    body = {"service": "late", "hostname": "cluster", "job": SLEEP}
    status, answer = await ask(service, "POST", json=body, headers=KEY)
    assert (status, answer["reason"]) == (503, "system_unavailable")
    view = await until(service, "late", "RUNNING")
    status, again = await ask(service, "POST", json=body, headers=KEY)
    assert (status, again["job"]["id"]) == (200, view["job"]["id"])
    assert jobs_of(site) - before == {view["job"]["id"]}
    assert (await ask(service, "POST", json=body))[0] == 409, "without the key it is another"


@pytest.mark.parametrize("commands", ["before"], indirect=True)
async def test_slurm_never_got_it(site: Site, service_of: Callable[..., Awaitable[ServiceProcess]], commands: Path):
    service = await service_of(timeout=2.0)
    status, answer = await ask(service, "POST", json={"service": "never", "hostname": "cluster", "job": SLEEP})
    assert (status, answer["reason"]) == (503, "system_unavailable")
    status, answer = await ask(service, "DELETE", "never")
    assert (status, answer["reason"]) == (409, "userjob_submitting")
    view = await until(service, "never", "NOT_SUBMITTED")
    assert view["job"]["id"] is None
    assert await ask(service, "DELETE", "never") == (204, "")


def jobs_of(site: Site) -> set[int]:
    """As Slurm has them."""
    return {int(line) for line in run("squeue", "--noheader", "--format=%i", f"--user={site.ada}").split()}
