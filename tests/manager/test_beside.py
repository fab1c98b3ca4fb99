"""The manager beside the launcher, in the same process: callers with tokens of the Hub's, whose scopes decide."""

from __future__ import annotations

from collections.abc import Iterator

import aiohttp
import pytest

from tests.manager.support import Manager, Namespace, new_name, start_body
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

ROLES = """
c.JupyterHub.custom_scopes = {"custom:jhlauncher:logging": {"description": "Change where the launcher logs to"}}
c.JupyterHub.load_roles.append(
    {"name": "loggers", "services": ["platform"], "scopes": ["custom:jhlauncher:logging"]}
)
"""


@pytest.fixture(scope="module")
def hub(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    config = Manager(tmp_path_factory.mktemp("descriptions"), namespace).config
    service = f"""
c.LauncherApp.manager = True
c.Cluster.kubeconfig = {str(namespace.kubeconfig)!r}
c.Cluster.namespace = {namespace.name!r}
c.ConfigFile.path = {str(config)!r}
c.Credentials.hub_credential = "hub"
"""
    with RealHub(tmp_path_factory.mktemp("hub"), service=service, after=ROLES).running() as hub:
        yield hub


async def request(hub: RealHub, method: str, path: str, token: str, **kwargs: object) -> tuple[int, object]:
    headers = {"Authorization": f"Token {token}", **kwargs.pop("headers", {})}  # type: ignore[dict-item]
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.request(method, f"{hub.launcher_url}api/{path}", **kwargs) as response,  # type: ignore[arg-type]
    ):
        return response.status, await response.json(content_type=None) if response.status != 204 else None


async def test_a_services_life(hub: RealHub, namespace: Namespace):
    name, token = new_name(), hub.platform_token
    headers = {"uuidcode": name}
    status, model = await request(hub, "POST", "services/", token, json=start_body(), headers=headers)
    assert status == 201, model
    assert model["jhub_credential"] == "hub"  # type: ignore[index]
    assert (await request(hub, "GET", f"services/{name}/", token))[1]["running"] is True  # type: ignore[index]
    assert (await request(hub, "DELETE", f"services/{name}/", token))[0] == 204
    assert namespace.objects(name) == []


async def test_scopes_decide(hub: RealHub):
    user = await hub.user_token("student")
    for method, path in (
        ("GET", "services/"),
        ("POST", "services/"),
        ("DELETE", "services/x/"),
        ("GET", "logs/handler/"),
    ):
        body = {"json": start_body()} if method == "POST" else {}
        assert (await request(hub, method, path, user, **body))[0] == 403
    reader = await hub.user_token("reader", "access:services!service=launcher")
    assert (await request(hub, "GET", "services/", reader))[0] == 403
    assert (await request(hub, "GET", "services/", hub.admin_token))[0] == 200
    assert await request(hub, "GET", "services/", "no-such-token") == (401, {"detail": "Invalid token."})


async def test_logs_need_a_scope_of_their_own(hub: RealHub):
    assert await request(hub, "GET", "logs/handler/", hub.platform_token) == (200, [])
    assert (await request(hub, "GET", "logs/handler/", hub.admin_token))[0] == 403


async def test_the_launcher_answers_as_before(hub: RealHub):
    status, error = await hub.launcher("POST", username="ada")
    assert (status, error["reason"]) == (400, "invalid_request")
    assert await request(hub, "GET", "nothing", hub.platform_token) == (404, {"detail": "Not found."})
