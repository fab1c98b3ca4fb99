"""Whatever is in a field: it is refused, or it arrives as it was sent; it is never run, and never an option."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.userjobs.asking import ask, until
from tests.userjobs.conftest import Site, service_for

pytestmark = pytest.mark.asyncio

ATTEMPTS = [
    "$(touch {pwned})",
    "`touch {pwned}`",
    "'; touch {pwned}; '",
    '"; touch {pwned}; "',
    "x\ntouch {pwned}",
    "x\n#SBATCH --output={pwned}",
    "x; touch {pwned}",
    "x && touch {pwned} #",
    "--output={pwned}",
    "-o{pwned}",
    "--wrap=touch {pwned}",
    "--uid=0",
    "{pwned}",
    "../../../..{pwned}",
    "x,PWNED={pwned}",
    "x\0touch {pwned}",
    "\u202ehctuot",
    "%u%A{pwned}",
    "x\\\ny",
]
FIELDS = [
    "service", "hostname", "target_node", "username", "ports", "job.name", "job.partition", "job.project", "job.time",
    "job.nodes", "job.cpus", "job.memory", "job.gpus", "job.working_directory", "job.output", "job.script",
    "job.environment", "job.environment.name", "job.command", "path",
]  # fmt: skip


@pytest_asyncio.fixture
async def service(site: Site, hub: FakeHub) -> AsyncIterator[Service]:
    async with service_for(site, hub) as service:
        yield service


def body_with(field: str, value: Any) -> dict[str, Any]:
    job: dict[str, Any] = {"script": "#!/bin/sh\ntrue\n", "memory": "10M"}
    body: dict[str, Any] = {"service": "attempt", "hostname": "cluster", "job": job}
    if field == "target_node":
        return {"service": "attempt", "hostname": "cluster", "target_node": value, "ports": {"80": 80}}
    if field == "job.environment":
        job["environment"] = {"SAID": value}
    elif field == "job.environment.name":
        job["environment"] = {value: "said"}
    elif field == "job.command":
        job.pop("script")
        job["command"] = ["printf", "%s", value]
    elif field == "job.script":
        job["script"] = value
    elif field == "ports":
        body["ports"] = {value: value}
    elif field.startswith("job."):
        job[field.removeprefix("job.")] = value
    else:
        body[field] = value
    return body


@pytest.mark.parametrize("field", FIELDS)
async def test_attempts(service: Service, site: Site, field: str):
    """Those that are taken run to their end, and leave what they said and nothing else."""
    home = site.home(site.ada)
    pwned = home / "pwned"
    taken = []
    rightly_written = ("{pwned}", "../../../..{pwned}") if field == "job.output" else ()
    attempts = [attempt for attempt in ATTEMPTS if attempt not in rightly_written]
    for number, attempt in enumerate(attempts):
        value = attempt.format(pwned=pwned)
        if field == "path":
            for method in ("GET", "DELETE"):
                assert (await ask(service, method, quote(value, safe="")))[0] in (400, 404)
            continue
        body = body_with(field, value)
        if field != "service":
            body["service"] = f"attempt-{number}"
        status, answer = await ask(service, "POST", json=body)
        assert status in (201, 400, 403), answer
        if status == 201:
            taken.append((body["service"], value))
    for name, value in taken:
        view = await until(service, name, "COMPLETED", "FAILED", "CANCELLED")
        if field == "job.command":
            status, shown = await ask(service, "GET", f"{name}?tail=10000")
            assert (status, shown["tail"]) == (200, value)
        if field == "job.output" and "/" not in value:
            assert (home / value).is_file()
        if field == "job.name":
            assert name_of(view["job"]["id"]) == value
        assert (await ask(service, "DELETE", name))[0] == 204
    assert not pwned.exists()
    assert not Path("/pwned").exists()
    wanted = {"job.command", "job.name", "job.environment", "job.output", "job.working_directory"}
    assert bool(taken) == (field in wanted), [value for _, value in taken]


def name_of(job: int) -> str:
    done = subprocess.run(["squeue", "--json"], capture_output=True, text=True, check=True)
    return next(str(found["name"]) for found in json.loads(done.stdout)["jobs"] if found["job_id"] == job)


async def test_an_environment_arrives_as_it_was_sent(service: Service, site: Site):
    values = {
        f"SAID_{number}": attempt.format(pwned="/pwned")
        for number, attempt in enumerate(ATTEMPTS)
        if "\0" not in attempt
    }
    program = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('SAID_')}))"
    job = {"command": ["python3", "-c", program], "environment": values, "memory": "50M"}
    status, answer = await ask(service, "POST", json={"service": "said", "hostname": "cluster", "job": job})
    assert status == 201, answer
    await until(service, "said", "COMPLETED")
    _, shown = await ask(service, "GET", "said?tail=65536")
    assert json.loads(shown["tail"]) == values


@pytest.mark.parametrize(
    "name", ["SLURM_CONF", "SBATCH_RESERVATION", "LD_PRELOAD", "PATH", "BASH_ENV", "ENV", "BASH_FUNC_ls%%", "a-b", ""]
)
async def test_variables_that_change_what_runs_are_refused(service: Service, name: str):
    status, answer = await ask(service, "POST", json=body_with("job.environment.name", name))
    assert status == 400, answer


async def test_a_script_can_not_go_round_what_is_allowed(service: Service, site: Site):
    """Options of Slurm's are refused, and those of PBS, which Slurm would understand, do not count."""
    body = body_with("job.script", "#!/bin/sh\n# x\n\n#SBATCH --time=9-0\ntrue\n")
    status, answer = await ask(service, "POST", json=body)
    assert status == 400
    assert "line 4" in answer["error"]
    body = body_with("job.script", f"#!/bin/sh\n#PBS -o {site.home(site.ada)}/by-pbs\n#BSUB -n 2\necho said\n")
    assert (await ask(service, "POST", json=body))[0] == 201
    view = await until(service, "attempt", "COMPLETED")
    assert not (site.home(site.ada) / "by-pbs").exists()
    assert view["job"]["output"].endswith(f"/slurm-{view['job']['id']}.out")
    # behind its first command, a script may say what it likes
    body = body_with("job.script", "#!/bin/sh\ncat > /dev/null <<'END'\n#SBATCH --time=9-0\nEND\n")
    assert (await ask(service, "POST", json={**body, "service": "other"}))[0] == 201


@pytest.mark.parametrize("field", ["account", "user", "uid", "system_account", "owner", "credential"])
async def test_nobody_names_an_account(service: Service, site: Site, field: str):
    body = body_with("job.name", "x")
    assert (await ask(service, "POST", json={**body, field: site.bob}))[0] == 400
    assert (await ask(service, "POST", json={**body, "job": {**body["job"], field: site.bob}}))[0] == 400


async def test_nobody_acts_for_another(service: Service, site: Site):
    body = body_with("job.name", "x")
    status, answer = await ask(service, "POST", json={**body, "username": "ada"}, who="bob")
    assert (status, answer["reason"]) == (403, "not_yours")
    status, answer = await ask(service, "GET", "?username=ada", who="bob")
    assert (status, answer["reason"]) == (403, "not_yours")
    status, answer = await ask(service, "POST", json=body, who="eve")
    assert (status, answer["reason"]) == (403, "no_account")
    # not even who may do everything with servers
    service.hub.identify("token-of-admin", "admin", "user", "access:services", "servers", "admin:servers")
    status, answer = await ask(service, "POST", json={**body, "username": "ada"}, who="admin")
    assert (status, answer["reason"]) == (403, "not_yours")
    status, answer = await service.request("POST", "api/userjobs/", json=body)
    assert (status, answer["reason"]) == (403, "not_yours"), "a service's token is no user's"
