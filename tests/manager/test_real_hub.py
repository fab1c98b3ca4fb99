"""A real JupyterHub with the real jupyterhub-backendspawner starts, polls and stops a JupyterLab through the manager.

The description is the one in ``etc/manager``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kubernetes_asyncio import client as kube

from jhlauncher import sse
from tests.manager.support import ETC, IMAGE, PASSWORDS, Manager, Namespace, basic
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

CLIENT = """
import base64, json, subprocess
from kubernetes_asyncio import client as kube, config as kube_config
from backendspawner import EventBackendSpawner

def name_of(spawner):
    return spawner.user.name + ("-" + spawner.name if spawner.name else "")

def headers(spawner):
    return {{"Authorization": {authorization!r}, "uuidcode": name_of(spawner), "Content-Type": "application/json"}}

def body(spawner):
    env = {{**spawner.get_env(), "JUPYTERHUB_USER_ID": spawner.user.id}}
    return {{"env": env, "user_options": spawner.user_options, "start_id": spawner.start_id}}

class Spawner(EventBackendSpawner):
    async def start(self):
        await super().start()
        # no cluster DNS here: the address that svc-<id> stands for
        async with await kube_config.new_client_from_config({kubeconfig!r}) as api:
            name = "svc-" + name_of(self) + "-" + self.start_id
            service = await kube.CoreV1Api(api).read_namespaced_service(name, {namespace!r})
        return (service.spec.cluster_ip, 8080)

    # what is shown last: the object that has it may be gone before anybody can ask
    def kept(self, event):
        with open(FOLDER + "/shown-" + self.user.name, "a") as file:
            file.write(event["html_message"] + chr(10))
        return event

    async def get_stop_event(self):
        return self.kept(await super().get_stop_event())

    async def stop(self, now=False, cancel=False, event=None):
        if event and not self.already_stopped:
            self.kept(event)
        await super().stop(now, cancel, event)

c.JupyterHub.spawner_class = Spawner
c.BackendSpawner.request_url_start = {url!r} + "services/"
c.BackendSpawner.request_headers_start = c.BackendSpawner.request_headers_poll = headers
c.BackendSpawner.request_headers_stop = headers
c.BackendSpawner.request_body_start = body
c.BackendSpawner.request_url_poll = lambda spawner: {url!r} + "services/" + name_of(spawner) + "/"
c.BackendSpawner.request_url_stop = lambda spawner: {url!r} + "services/" + name_of(spawner)
c.BackendSpawner.request_kwargs = {{"request_timeout": 60}}
c.BackendSpawner.service_address = "unused"
c.BackendSpawner.poll_interval = 500
c.Spawner.ip = "0.0.0.0"
c.Spawner.pre_spawn_hook = None
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = {hub_ip!r}
"""


@pytest.fixture(scope="module")
def lab_manager(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager with the descriptions in ``etc/manager``."""
    values = {"image": IMAGE, "web_image": IMAGE}
    services = {"credential_mapping": {"hub": "jupyterhub"}, "replace": {"credential": {"hub": values}}}
    manager = Manager(tmp_path_factory.mktemp("manager"), namespace, services=services)
    for path in (ETC / "descriptions").rglob("*"):
        target = manager.folder / "descriptions" / path.relative_to(ETC / "descriptions")
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    crashing = (manager.folder / "descriptions/hub/Type/crashing/service.yaml").read_text()
    manager.describe("Type/crashing", crashing, "jupyterhub")
    manager.arguments = ["--Reaper.interval=0.5", "--Reaper.ended_grace=2", "--Watching.start_grace=5"]
    with manager.running():
        yield manager


@pytest.fixture(scope="module")
def hub(lab_manager: Manager, namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    client = CLIENT.format(
        authorization=basic("hub", PASSWORDS["hub"]),
        url=lab_manager.url,
        kubeconfig=os.environ["KUBECONFIG"].split(os.pathsep)[0],
        namespace=namespace.name,
        hub_ip=os.environ["JHLAUNCHER_TEST_HUB_IP"],
    )
    with RealHub(tmp_path_factory.mktemp("hub"), after=client).running() as hub:
        yield hub


async def start(hub: RealHub, user: str, service: str) -> list[dict[str, Any]]:
    """Start a server; what the Hub's stream says meanwhile."""
    await hub.api("POST", f"/users/{user}")
    # JupyterHub 5 takes the whole body as options, and JupyterHub 6 still does
    request = asyncio.create_task(hub.api("POST", f"/users/{user}/server", json={"service": service}))
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(180):
        while not events:
            events = [event async for event in progress(hub, user)]
    # to a start that the client has cancelled, JupyterHub 5 with the oldest Tornado never answers
    await asyncio.wait([request], timeout=15)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    return events


async def progress(hub: RealHub, user: str) -> AsyncIterator[dict[str, Any]]:
    headers = {"Authorization": f"token {hub.admin_token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(180)) as client:
        async with client.get(f"{hub.url}hub/api/users/{user}/server/progress") as response:
            if response.status != 200:  # the start has not begun yet
                await asyncio.sleep(0.05)
                return
            async for event in sse.decode(response.content.iter_any()):
                yield json.loads(event.data)


async def shown(hub: RealHub, user: str) -> str:
    """What the client has shown in the Hub, of the latest start and at its end."""
    _, model = await hub.api("GET", f"/users/{user}?include_stopped_servers")
    state = (model["servers"].get("") or {}).get("state") or {}
    events = (state.get("events") or {}).get("latest") or []
    last = hub.folder / f"shown-{user}"
    return " ".join(str(event.get("html_message")) for event in events) + (last.read_text() if last.exists() else "")


async def server(hub: RealHub, user: str) -> dict[str, Any]:
    _, model = await hub.api("GET", f"/users/{user}")
    return model["servers"].get("", {})


async def eventually(condition: Any, timeout: float = 90) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.2)


async def test_a_lab_is_started_polled_and_stopped(hub: RealHub, lab_manager: Manager, namespace: Namespace):
    told = await start(hub, "ada", "JupyterLab/default")
    assert told[-1]["ready"], told
    await eventually(lambda: _shown(hub, "ada", "Backend communication successful"))
    await eventually(lambda: _shown(hub, "ada", "Started container main"))

    async def ready() -> bool:
        return bool((await server(hub, "ada")).get("ready"))

    await eventually(ready)
    token = await hub.user_token("ada")
    # a cluster IP without its rules yet may be answered by whatever is on the way: the Hub is then too early
    await eventually(lambda: _opens(hub, "ada", token, "api/status", "kernels"))
    await eventually(lambda: _opens(hub, "ada", token, "lab", "JupyterLab"))
    polls = lab_manager.log().count("GET /api/services/ada/")
    await eventually(lambda: _more(lab_manager, polls + 2))
    assert (await server(hub, "ada"))["ready"], "polled, and found running"
    assert lab_manager.status("ada")["running"] is True

    assert (await hub.api("DELETE", "/users/ada/server"))[0] in (202, 204)
    await eventually(lambda: _gone(namespace, "ada"))
    assert lab_manager.request("GET", "services/ada/")[0] == 404


async def _opens(hub: RealHub, user: str, token: str, path: str, text: str) -> bool:
    headers = {"Authorization": f"token {token}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        async with client.get(f"{hub.url}user/{user}/{path}") as response:
            return response.status == 200 and text in await response.text()


async def _shown(hub: RealHub, user: str, text: str) -> bool:
    return text in await shown(hub, user)


async def _more(manager: Manager, number: int) -> bool:
    return manager.log().count("GET /api/services/ada/") >= number


async def _gone(namespace: Namespace, name: str) -> bool:
    return not await asyncio.to_thread(namespace.objects, name)


async def test_a_crash_shows_its_log_and_events_in_the_hub(hub: RealHub, lab_manager: Manager, namespace: Namespace):
    await start(hub, "charles", "Type/crashing")  # the Hub's stream may end with "ready": it does at any cancel
    await eventually(lambda: _shown(hub, "charles", "Container Logs"))
    html = await shown(hub, "charles")
    assert "&lt;b&gt;it can not go on&lt;/b&gt;<br>because" in html
    await eventually(lambda: _gone(namespace, "charles"))

    async def over() -> bool:
        return not await server(hub, "charles")

    await eventually(over)


async def test_a_service_that_is_unknown_is_said_in_the_hub(hub: RealHub):
    told = await start(hub, "grace", "Type/missing")
    assert not told[-1].get("ready"), told
    await eventually(lambda: _shown(hub, "grace", "Could not start service"))
    html = await shown(hub, "grace")
    assert "Could not start service" in html
    assert "there is no description of Type/missing for hub" in html


async def test_a_server_that_is_gone_is_noticed_and_cleaned_up(
    hub: RealHub, lab_manager: Manager, namespace: Namespace
):
    """The Hub drops it, and never says so."""
    await start(hub, "alan", "JupyterLab/default")

    async def ready() -> bool:
        return bool((await server(hub, "alan")).get("ready"))

    await eventually(ready)
    await asyncio.to_thread(
        namespace.do,
        lambda api: kube.AppsV1Api(api).delete_collection_namespaced_deployment(namespace.name),
    )

    async def dropped() -> bool:
        return not await server(hub, "alan")

    await eventually(dropped)
    await eventually(lambda: _gone(namespace, "alan"))


async def test_the_plain_web_service(lab_manager: Manager, namespace: Namespace):
    status, model = lab_manager.start("web", "WebService/static", start_id="1")
    assert status == 201, model
    address = (await asyncio.to_thread(namespace.get, "Service", "svc-web-1"))["spec"]["clusterIP"]

    async def answers() -> bool:
        try:
            async with aiohttp.ClientSession() as client, client.get(f"http://{address}:8080/") as response:
                return "It works" in await response.text()
        except aiohttp.ClientError:
            return False

    await eventually(answers)
    assert lab_manager.request("DELETE", "services/web/")[0] == 204


async def test_the_labs_update(lab_manager: Manager, namespace: Namespace, tmp_path: Path):
    assert lab_manager.start("lab", "JupyterLab/default", start_id="1")[0] == 201
    assert lab_manager.request("PATCH", "services/lab/", body={})[0] == 200
    assert "Service svc-lab-1-extra" in await asyncio.to_thread(namespace.objects, "lab")
    assert lab_manager.request("DELETE", "services/lab/")[0] == 204
    assert await _gone(namespace, "lab")
