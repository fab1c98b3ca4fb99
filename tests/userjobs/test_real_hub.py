"""From a running server of a real Hub: its own token has user jobs, and nothing else of the launcher's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_hub import RealHub
from tests.userjobs.conftest import QUICK, Site

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

DOCS = (Path(__file__).parents[2] / "docs/userjobs.md").read_text()
[ROLES] = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "custom_scopes" in block]


@pytest.fixture(scope="module")
def hub(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    """Configured as the docs say."""
    systems = {"cluster": shared_site.system()}
    service = f"c.Systems.systems = {systems!r}\nc.JobWatch.interval = {QUICK['JobWatch']['interval']}\n"
    with RealHub(tmp_path_factory.mktemp("hub"), service=service, after=ROLES).running() as hub:
        yield hub


async def ask(hub: RealHub, method: str, path: str, token: str, **kwargs: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"token {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.request(method, f"{hub.launcher_url}{path}", **kwargs) as response,
    ):
        return response.status, await response.json() if response.status != 204 else None


def token_of(hub: RealHub, user: str) -> str:
    """What the server of a user has in its environment."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(line.split("=", 1) for line in environ.read_text().split("\0") if "=" in line)
        except OSError:
            continue
        if (variables.get("JUPYTERHUB_API_URL"), variables.get("JUPYTERHUB_USER")) == (hub.api_url, user):
            return variables["JUPYTERHUB_API_TOKEN"]
    raise AssertionError


async def test_a_servers_own_token(hub: RealHub, site: Site):
    status, launched = await hub.launcher("POST", username="ada", image="plain")
    assert status == 200, launched
    token = token_of(hub, "ada")
    body = {"service": "mine", "hostname": "cluster", "job": {"command": ["echo", "said"], "memory": "10M"}}
    status, created = await ask(hub, "POST", "api/userjobs/", token, json=body)
    assert status == 201, created
    headers = {"Authorization": f"token {token}", "Accept": "text/event-stream"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.get(f"{hub.launcher_url}api/userjobs/mine/") as response,
    ):
        assert b'"state":"COMPLETED"' in await response.read(), "the stream ends with the job"
    status, view = await ask(hub, "GET", "api/userjobs/mine?tail=100", token)
    assert (status, view["tail"]) == (200, "said\n")
    # it starts, sees and stops no server
    assert (await ask(hub, "POST", "launches", token, json={"username": "ada", "image": "plain"}))[0] == 403
    status, _ = await ask(hub, "DELETE", "containers?username=ada", token)
    assert status in (400, 403)
    assert await ask(hub, "DELETE", "api/userjobs/mine", token) == (204, None)


async def test_the_token_of_a_launch_opens_its_server_and_nothing_else(hub: RealHub, site: Site):
    status, launched = await hub.launcher("POST", username="bob", image="plain")
    assert status == 200, launched
    assert (await ask(hub, "GET", "api/userjobs/", launched["token"]))[0] == 403
    assert (await ask(hub, "GET", "api/systems/", launched["token"]))[0] == 403


async def test_who_may(hub: RealHub, site: Site):
    assert (await ask(hub, "GET", "api/userjobs/", hub.platform_token))[0] == 403, "a service is no user"
    only_reach = await hub.user_token("ada", "access:services!service=launcher")
    assert (await ask(hub, "GET", "api/userjobs/", only_reach))[0] == 403
    reader = await hub.user_token("ada", "access:services!service=launcher", "read:servers!user=ada")
    status, systems = await ask(hub, "GET", "api/systems/", reader)
    assert (status, [system["account"] for system in systems]) == (200, [site.ada])
    body = {"service": "no", "hostname": "cluster", "job": {"command": ["true"]}}
    assert (await ask(hub, "POST", "api/userjobs/", reader, json=body))[0] == 403
