"""The service does what its own description says, whatever is sent to it."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import sys
from pathlib import Path

import pytest

from jhlauncher.handlers import ROUTES
from jhlauncher.handlers.openapi import document
from tests.conftest import running_service
from tests.fake_hub import PLATFORM_TOKEN, FakeHub

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def test_every_route_is_described():
    described = {path.replace("{id}", "([\\w-]{1,64})").lstrip("/") for path in document("/")["paths"]}
    routes = {pattern.replace("/?", "").replace("\\.", ".") for pattern, _ in ROUTES}
    page = {"", "launch", "oauth_callback", "static/(.*)"}
    assert routes - described == {"ended", *page}, "what only the Hub's spawner uses, and the page for people"
    assert described <= routes


@pytest.mark.asyncio
async def test_schemathesis(hub: FakeHub, tmp_path: Path):
    """No 500, no status that is not documented, no answer that breaks its schema."""
    hub.identities[PLATFORM_TOKEN]["scopes"] += ["read:metrics", "groups", "admin:groups", "delete:users"]
    async with running_service(hub, Launcher={"start_timeout": 5}) as service:
        await attack(service.url, PLATFORM_TOKEN, tmp_path)


@pytest.mark.asyncio
async def test_schemathesis_of_user_jobs(hub: FakeHub, tmp_path: Path):
    """Forwards are made, to wherever; the system's Slurm is not there."""
    hub.identify("token-of-ada", "ada", "user", "access:services", "servers!user=ada")
    system = {
        "local": True, "accounts": {"ada": getpass.getuser().replace("root", "nobody")}, "target_nodes": ["*"],
        "query_account": getpass.getuser().replace("root", "nobody"), "slurmrestd": {"url": "http://127.0.0.1:1"},
        "allowed": {"partitions": ["batch"]}, "max_ports": 100,
    }  # fmt: skip
    async with running_service(hub, Systems={"systems": {"cluster": system}}) as service:
        await attack(service.url, "token-of-ada", tmp_path, "--include-path-regex", "^/api/")


async def attack(url: str, token: str, folder: Path, *options: str) -> None:
    """Run schemathesis."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}openapi.json"),
        *("--url", url.rstrip("/")),
        *("--header", f"Authorization: token {token}"),
        *("--checks", ",".join(CHECKS)),
        *("--max-examples", "40", "--seed", "1", "--workers", "1", "--request-timeout", "30"),
        *("--exclude-path-regex", "events$"),
        *options,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**os.environ, "NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 300)
    report = output.decode()
    assert process.returncode == 0, report[-6000:]
    assert re.search(r"Operations: +\d+ selected", report), report
