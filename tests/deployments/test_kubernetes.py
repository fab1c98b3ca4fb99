"""etc/kubernetes on a real cluster, as docs/howto-kubernetes.md says: the launcher in two replicas, and a Hub.

What the cluster of the tests lacks is made up for in overlays, and nothing else: names (it has no DNS, so pods know
their Services by their host aliases), policy/v1 (it serves v1beta1 of the same budget), and volumes that others than
root may write to. Network policies are accepted there, and enforced by nobody.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
import pytest_asyncio
import yaml

from tests.deployments.support import ETC, Visitor, follow, needs, postgres_image, run, wait_until
from tests.engines.hubs import build, hub_image, launcher_image, one_at_a_time
from tests.faults import Client

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(needs("kubernetes", "kubectl")), reason=needs("kubernetes", "kubectl")),
]

LAUNCHES = 50
LIGHT = """
import os, signal, socket, urllib.parse
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = socket.create_server(("", urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port))
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
    connection.close()
"""


class Cluster:
    """A namespace with the Hub and the launcher in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
        self.namespace = f"t{secrets.token_hex(3)}"
        self.platform_token, self.password = secrets.token_hex(32), secrets.token_hex(16)
        self.addresses: dict[str, str] = {}
        self.postgres = ""

    def kubectl(self, *arguments: str, status: int = 0) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments, cwd=self.folder, status=status)

    def follow(self, begins: str, *changes: tuple[str, str]) -> str:
        """A command of the docs, in this namespace."""
        return follow("howto-kubernetes.md", begins, ("jupyterhub", self.namespace), *changes, cwd=self.folder)

    def pods(self, labels: str) -> list[Any]:
        """Those that are not about to go."""
        found = json.loads(self.kubectl("get", "pods", "--selector", labels, "--output", "json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def proxy_url(self) -> str:
        """Where the proxy's Service leads to.

        An address of a Service which the node does not know of yet is somebody's outside of it, or nobody's; if one
        answers, the connection to them is kept.
        """

        def found() -> str:
            addresses = [pod["status"].get("podIP") for pod in self.pods("app.kubernetes.io/component=hub")]
            endpoints = json.loads(self.kubectl("get", "endpoints", "proxy-public", "--output", "json"))
            for subset in endpoints.get("subsets") or ():
                if [each["ip"] for each in subset.get("addresses") or ()] == addresses:
                    return f"http://{addresses[0]}:{subset['ports'][0]['port']}/"
            return ""

        return str(wait_until(found, "the proxy's Service leads to its pod"))

    def launchers(self) -> list[str]:
        """Replicas that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods("app.kubernetes.io/name=jhlauncher") if _is_ready(pod)]

    def make_services(self) -> None:
        """The Services alone, to know their addresses."""
        for base in ("kubernetes", "kubernetes/hub"):
            rendered = yaml.safe_load_all(run("kubectl", "kustomize", str(self.folder / base)))
            services = [document for document in rendered if document["kind"] == "Service"]
            (self.folder / "services.yaml").write_text(yaml.safe_dump_all(services))
            self.kubectl("apply", "--filename", "services.yaml")
            for name in (service["metadata"]["name"] for service in services):
                found = json.loads(self.kubectl("get", "service", name, "--output", "json"))
                self.addresses[name] = found["spec"]["clusterIP"]

    def overlay(self, name: str, base: str, image: str, patches: list[Any], config: tuple[str, str, str]) -> None:
        """A kustomization of an operator's own on top of one of ours."""
        folder = self.folder / name
        folder.mkdir()
        ours, file, more = config
        (folder / file).write_text((self.folder / base / file).read_text() + more)
        wanted = yaml.safe_load((self.folder / base / "kustomization.yaml").read_text())["images"][0]["newName"]
        new, _, tag = image.partition(":")
        kustomization = {
            "resources": [f"../{base}"],
            "images": [{"name": wanted, "newName": new, "newTag": tag}],
            "configMapGenerator": [{"name": ours, "behavior": "merge", "files": [file]}],
            "patches": [{"target": target, "patch": yaml.safe_dump(patch)} for target, patch in patches],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    def start_postgres(self) -> str:
        """The URL of a database for the launcher, where pods reach it."""
        password = secrets.token_hex(16)
        variables = {"POSTGRES_USER": "launcher", "POSTGRES_PASSWORD": password}
        container = self.client.create_container(postgres_image(self.client), environment=variables)
        self.postgres = container["Id"]
        self.client.start(self.postgres)
        address = self.client.inspect_container(self.postgres)["NetworkSettings"]["IPAddress"]
        ready = ["pg_isready", "--host", "127.0.0.1", "--username", "launcher"]
        wait_until(lambda: self._succeeds(ready), "PostgreSQL is ready")
        return f"postgresql://launcher:{password}@{address}/launcher"

    def _succeeds(self, command: list[str]) -> bool:
        done = self.client.exec_create(self.postgres, command)
        self.client.exec_start(done)
        return bool(self.client.exec_inspect(done)["ExitCode"] == 0)

    def remove(self) -> None:
        run("kubectl", "delete", "namespace", self.namespace, "--wait=false")
        if self.postgres:
            self.client.remove_container(self.postgres, v=True, force=True)


def _is_ready(pod: Any) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _aliases(**addresses: str) -> list[dict[str, Any]]:
    return [{"ip": address, "hostnames": [name]} for name, address in addresses.items()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("kubernetes"))
    shutil.copytree(ETC / "kubernetes", cluster.folder / "kubernetes")
    hub, launcher = hub_image(cluster.client), launcher_image(cluster.client)
    with one_at_a_time():
        light = f"FROM debian-python:test\nCMD {json.dumps(['python3', '-S', '-c', LIGHT])}\n"
        (cluster.folder / "light").mkdir()
        (cluster.folder / "light/Dockerfile").write_text(light)
        build(cluster.client, "jhlauncher-test:light", path=str(cluster.folder / "light"))
    cluster.follow("kubectl create namespace")
    try:
        url = cluster.start_postgres()
        known = (("$(openssl rand -hex 32)", cluster.platform_token), ("$(openssl rand -hex 16)", cluster.password))
        cluster.follow("kubectl create secret generic hub", *known)
        documented_url = "postgresql://launcher:PASSWORD@postgres.example.org/launcher"
        cluster.follow("kubectl create secret generic launcher", (documented_url, url))
        cluster.make_services()
        where = cluster.addresses
        spawner = f"""
c.KubeSpawner.extra_pod_config = {{"hostAliases": {_aliases(hub=where["hub"])}}}
c.KubeSpawner.image = {os.environ["JHLAUNCHER_TEST_IMAGE"]!r}
"""
        of_hub = {"hostAliases": _aliases(hub="127.0.0.1", launcher=where["launcher"])}
        no_pvc = [{"op": "replace", "path": "/spec/template/spec/volumes/1", "value": {"name": "data", "emptyDir": {}}}]
        patches = [({"kind": "Deployment"}, _pods(of_hub)), ({"kind": "Deployment"}, no_pvc)]
        cluster.overlay("the-hub", "kubernetes/hub", hub, patches, ("hub", "jupyterhub_config.py", spawner))
        older = [{"op": "replace", "path": "/apiVersion", "value": "policy/v1beta1"}]
        patches = [
            ({"kind": "Deployment"}, _pods({"hostAliases": _aliases(hub=where["hub"])})),
            ({"kind": "PodDisruptionBudget"}, older),
        ]
        images = '\nc.Policy.images = ["singleuser:*", "jhlauncher-test:*"]\n'
        cluster.overlay("the-launcher", "kubernetes", launcher, patches, ("launcher", "jhlauncher_config.py", images))
        cluster.follow("kubectl apply -k etc/kubernetes -n", ("etc/kubernetes", "the-launcher"))
        cluster.follow("kubectl apply -k etc/kubernetes/hub", ("etc/kubernetes/hub", "the-hub"))
        for deployment in ("launcher", "hub"):
            cluster.follow("kubectl rollout status", ("deployment/hub", f"deployment/{deployment} --timeout=180s"))
        yield cluster
    finally:
        cluster.remove()


def _pods(more: dict[str, Any]) -> Any:
    """A patch of a Deployment's pods."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "any"},
        "spec": {"template": {"spec": more}},
    }


@pytest_asyncio.fixture
async def platform(cluster: Cluster) -> AsyncIterator[Visitor]:
    async with Visitor(await asyncio.to_thread(cluster.proxy_url), cluster.platform_token) as platform:
        await platform.ready()
        yield platform


async def test_a_launch_and_a_login(cluster: Cluster, platform: Visitor):
    assert len(cluster.launchers()) == 2
    image = os.environ["JHLAUNCHER_TEST_IMAGE"]
    launched = await platform.launch(username="ada", image=image, memory={"limit": "512M"})
    assert await platform.opens(launched) == 200
    (pod,) = cluster.pods("component=singleuser-server")
    assert pod["spec"]["containers"][0]["image"] == image
    async with Visitor(platform.url) as ada:
        assert (await ada.log_in("ada", cluster.password)).endswith("/hub/home")
    await platform.stop("ada")


async def test_neither_is_root_nor_writes_to_its_root_and_the_launcher_has_no_rights(cluster: Cluster):
    for deployment in ("hub", "launcher"):
        where = f"deployment/{deployment}"
        assert cluster.kubectl("exec", where, "--", "id", "-u").strip() == "1000"
        assert "Read-only file system" in cluster.kubectl("exec", where, "--", "sh", "-c", "touch /x 2>&1 || true")
    token = "ls /var/run/secrets/kubernetes.io 2>&1 || true"
    assert "No such file" in cluster.kubectl("exec", "deployment/launcher", "--", "sh", "-c", token)


async def test_check_finds_nothing_wrong_on_either_side(cluster: Cluster, platform: Visitor):
    # here, names are known by aliases only
    told = cluster.follow("kubectl exec -n jupyterhub deployment/launcher", ("http://proxy-public", platform.url))
    assert "0 problems, 0 warnings." in told
    told = follow(
        "howto-kubernetes.md", "kubectl exec -n jupyterhub deployment/hub", ("-n jupyterhub", f"-n {cluster.namespace}")
    )
    assert "0 problems, 0 warnings." in told, told


async def test_one_replica_is_killed(cluster: Cluster, platform: Visitor):
    """Whichever of the two works on a launch, and whichever is asked: the other goes on."""
    ids = []
    for number in range(4):
        body = {"username": f"kill{number}", "image": "jhlauncher-test:light"}
        status, launch = await platform.request("POST", "services/launcher/launches", json=body)
        assert status == 202, launch
        ids.append(launch["id"])
    victim = cluster.launchers()[0]
    cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
    client = _client(cluster, platform)
    try:
        launches = [await client.settled(each) for each in ids]
    finally:
        await client.close()
    assert [launch["state"] for launch in launches] == ["ready"] * 4, launches
    await asyncio.gather(*(platform.stop(f"kill{number}") for number in range(4)))
    wait_until(lambda: len(cluster.launchers()) == 2, "two replicas again")
    assert victim not in cluster.launchers()


def _client(cluster: Cluster, platform: Visitor) -> Client:
    hub: Any = SimpleNamespace(platform_token=cluster.platform_token)
    return Client(hub, f"{platform.url}services/launcher/")


async def test_a_pod_that_the_hub_has_forgotten(cluster: Cluster, platform: Visitor):
    """The Hub's database is lost with its pod here; the pod of a server stays, as cleanup_servers is off."""
    await platform.launch(username="eve", image="jhlauncher-test:light")
    cluster.kubectl("delete", "pod", "--selector", "app.kubernetes.io/component=hub")
    cluster.kubectl("rollout", "status", "deployment/hub", "--timeout=120s")
    platform.url = cluster.proxy_url()
    await platform.ready()
    token = ("sh", "-c", "JUPYTERHUB_API_TOKEN=$LAUNCHER_TOKEN jhlauncher orphans --hub-config $0 $1")
    config = "/etc/jupyterhub/jupyterhub_config.py"
    told = cluster.kubectl("exec", "deployment/hub", "--", *token, config, status=1)
    assert "jupyter-eve" in told
    told = cluster.kubectl("exec", "deployment/hub", "--", *token, config, "--remove")
    assert "removed" in told
    assert not cluster.pods("component=singleuser-server")


async def test_a_new_schema_is_made_while_nobody_runs(cluster: Cluster, platform: Visitor):
    """It is the same here as before: the Job is what is tried."""
    job = cluster.folder / "upgrade-db.yaml"
    text = (cluster.folder / "kubernetes/upgrade-db.yaml").read_text()
    job.write_text(text.replace("registry.example.org/jhlauncher:latest", launcher_image(cluster.client)))
    cluster.follow("kubectl scale -n jupyterhub deployment/launcher --replicas=0")
    wait_until(lambda: not cluster.launchers(), "no replica runs")
    cluster.follow("kubectl apply -n jupyterhub -f", ("etc/kubernetes/", ""))
    cluster.follow("kubectl wait")
    assert "has version 0005 now (before: 0005)" in cluster.kubectl("logs", "job/launcher-upgrade-db")
    cluster.follow("kubectl scale -n jupyterhub deployment/launcher --replicas=2")
    wait_until(lambda: len(cluster.launchers()) == 2, "both replicas run")
    await platform.ready()


async def test_rolling_restart_under_fifty_launches(cluster: Cluster, platform: Visitor):
    """None is lost, and each is started once. The pods go with their namespace."""
    before = set(cluster.launchers())
    client = _client(cluster, platform)

    async def launched(number: int) -> Any:
        user = f"roll{number}"
        body = {"username": user, "image": "jhlauncher-test:light"}
        status, launch = await client.request("POST", "launches", key=f"key-of-{user}", json=body)
        assert status in (200, 202), launch
        return await client.settled(launch["id"])

    try:
        tasks = [asyncio.create_task(launched(number)) for number in range(LAUNCHES)]
        await asyncio.to_thread(wait_until, lambda: cluster.pods("component=singleuser-server"), "some pod is there")
        cluster.kubectl("rollout", "restart", "deployment/launcher")
        status = ("rollout", "status", "deployment/launcher", "--timeout=180s")
        _, launches = await asyncio.gather(asyncio.to_thread(cluster.kubectl, *status), asyncio.gather(*tasks))
        assert not before & set(cluster.launchers())
        lost = [json.dumps(launch) for launch in launches if launch["state"] != "ready"]
        assert not lost, "\n".join(lost)
        names = [
            pod["metadata"]["annotations"]["hub.jupyter.org/username"]
            for pod in cluster.pods("component=singleuser-server")
        ]
        assert sorted(names) == sorted(f"roll{number}" for number in range(LAUNCHES))
    finally:
        await client.close()
