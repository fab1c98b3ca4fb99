"""A real Hub for each engine, what the tests need of the engine, and whether it is there at all."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import jupyterhub
import yaml
from kubernetes_asyncio import client as kube
from kubernetes_asyncio import config as kube_config
from kubernetes_asyncio import utils as kube_utils

from tests.real_hub import RealHub

REPOSITORY = Path(__file__).parent.parent.parent

POLICY = """
everything = {"callers": ["service:*"], "images": ["*"], "volumes": ["*"], "env": ["*"],
              "cpu": None, "memory": None, "gpu": None}
c.Policy.rules = [
    {"name": "makers", "users": ["maker*"], "create_volumes": {"size": "16M"}, **everything},
    {"name": "never-pull", "users": ["never-pull*"], "pull_policy": "Never", **everything},
    {"name": "pull-secrets", "users": ["pull-secrets*"], "pull_secrets": ["registry"], **everything},
    {"name": "others", **everything},
]
"""
HOOK = """
engine_hook = c.Spawner.pre_spawn_hook
def impatient(spawner):
    engine_hook(spawner)
    if spawner.user.name.startswith("silent"):
        spawner.http_timeout = 3

c.Spawner.pre_spawn_hook = impatient
c.Spawner.start_timeout = c.Spawner.http_timeout = 240
"""

CRASHING = """
import os
print("the token is", os.environ["JUPYTERHUB_API_TOKEN"], "and the secret", os.environ.get("SECRET_WORD"))
1 / 0
"""
MUTE = """
import os, socket, time, urllib.parse
server = socket.create_server(("", urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port))
time.sleep(300)
"""
WITHOUT_GRAMMAR = "python3 -m pip uninstall --quiet --yes rfc3987-syntax"
"""jsonschema does without it; it reads its grammar at each import, for a third of the time in which a server starts."""
DOCKERFILES = {
    "other": 'ENV WHICH_IMAGE="other"',
    "crashing": f"CMD {json.dumps(['python3', '-c', CRASHING])}",
    "silent": 'CMD ["sleep", "300"]',
    "mute": f"CMD {json.dumps(['python3', '-c', MUTE])}",
    "root": 'USER root\nCMD ["jupyterhub-singleuser", "--allow-root"]',
}


class EngineHub(RealHub):
    """A Hub on an engine.

    ``images`` has the names of: an image that works, ``other`` that works too, one whose server crashes, one that never
    listens, and one that listens and never answers.
    """

    engine: str
    images: dict[str, str]
    home = "/home/jovyan"
    writer_image = "image"
    """The one whose user may write in this engine's volumes."""
    parts = 1
    """How many things a running server is, as `remains` counts them."""

    def __init__(self, folder: Path, after: str = "", **snippets: str) -> None:
        self.id = f"t{secrets.token_hex(3)}"
        install = f'engine="{self.engine}"'
        super().__init__(folder, install=install, service=POLICY, after=HOOK + after, **snippets)

    def volume(self, name: str) -> str:
        """The name of a volume of this Hub's own."""
        return f"{self.id}-{name}"

    async def create_volume(self, name: str) -> None:
        """Have a volume, as an administrator makes one."""
        raise NotImplementedError

    async def has_volume(self, name: str) -> bool:
        raise NotImplementedError

    async def remains(self) -> list[str]:
        """What is there of this Hub's servers: containers, services, pods, processes."""
        raise NotImplementedError

    async def remains_of(self, user: str) -> list[str]:
        return [name for name in await self.remains() if user in name]

    async def clean(self) -> None:
        """Stop all servers, and remove what the tests have made."""
        _, users = await self.api("GET", "/users")
        await asyncio.gather(
            *(self.stop(user["name"], server) for user in users for server in user.get("servers") or {})
        )

    async def stop(self, user: str, server: str = "") -> None:
        query = f"?username={user}&server_name={server}"
        status, error = await self.launcher("DELETE", query)
        assert status in (200, 400), error


class LocalHub(EngineHub):
    engine = "local"
    images = {"image": "plain", "other": "other", "crashing": "crashing", "silent": "silent", "mute": "mute"}

    async def create_volume(self, name: str) -> None:
        (self.folder / "servers/volumes" / name).mkdir(parents=True)

    async def has_volume(self, name: str) -> bool:
        return (self.folder / "servers/volumes" / name).is_dir()

    async def remains(self) -> list[str]:
        """Servers of which a process still has this Hub's folder as its home; each server is a session of its own."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (process / "environ").read_text(errors="replace").split("\0")
                session = (process / "stat").read_text().rpartition(")")[2].split()[3]
                found |= {f"{line} {session}" for line in variables if line.startswith(f"HOME={self.folder}/servers")}
        return sorted(found)


class DockerHub(EngineHub):
    engine = "docker"

    def __init__(self, folder: Path, after: str = "") -> None:
        self.docker = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
        self.images = test_images(self.docker)
        super().__init__(folder)
        ip = os.environ["JHLAUNCHER_TEST_HUB_IP"]
        with (folder / "jupyterhub_config.py").open("a") as config:
            config.write(f"""
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = {ip!r}
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.prefix = {self.id!r}
c.DockerSpawner.image = {self.images["image"]!r}
{after}
""")

    async def create_volume(self, name: str) -> None:
        self.docker.create_volume(name)

    async def has_volume(self, name: str) -> bool:
        return any(volume["Name"] == name for volume in self.docker.volumes()["Volumes"] or ())

    async def remains(self) -> list[str]:
        containers = self.docker.containers(all=True, filters={"name": f"^/{self.id}-"})
        return [name for container in containers for name in container["Names"]]

    async def clean(self) -> None:
        await super().clean()
        for container in self.docker.containers(all=True, filters={"name": f"^/{self.id}-", "status": "exited"}):
            self.docker.remove_container(container["Id"], v=True)  # that an administrator has kept
        for volume in self.docker.volumes()["Volumes"] or ():
            if volume["Name"].startswith(self.id):
                self.docker.remove_volume(volume["Name"])


class SwarmHub(DockerHub):
    """The Hub is in a container on the overlay network: servers are reached by their services' names only."""

    engine = "swarm"
    parts = 2  # a service and its container

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hub_image = hub_image(self.docker)
        self._network = f"{self.id}-net"
        with (folder / "jupyterhub_config.py").open("a") as config:
            config.write(f"""
c.JupyterHub.bind_url = c.JupyterHub.bind_url.replace("127.0.0.1", "0.0.0.0")
c.JupyterHub.hub_connect_ip = "{self.id}-hub"
c.SwarmSpawner.network_name = {self._network!r}
c.LauncherSwarmSpawner.scheduling_timeout = 3
""")

    def command(self) -> list[str]:
        port = self.origin.rpartition(":")[2]
        where = ["--network", self._network, "--publish", f"127.0.0.1:{port}:{port}", "--workdir", str(self.folder)]
        mounts = ["-v", f"{self.folder}:{self.folder}", "-v", "/var/run/docker.sock:/var/run/docker.sock"]
        hub = ["jupyterhub", "--config", "jupyterhub_config.py"]
        where += ["--user", "root"]  # whose the folder is
        return ["docker", "run", "--rm", "--init", "--name", f"{self.id}-hub", *where, *mounts, self.hub_image, *hub]

    @contextmanager
    def running(self) -> Iterator[RealHub]:
        self.docker.create_network(self._network, driver="overlay", attachable=True)
        try:
            with super().running() as hub:
                yield hub
        finally:
            self.docker.remove_network(self._network)

    async def remains(self) -> list[str]:
        services = [service["Spec"]["Name"] for service in self.docker.services(filters={"name": f"{self.id}-"})]
        return services + [name for name in await super().remains() if not name.endswith("-hub")]


class KubernetesHub(EngineHub):
    """The Hub has a namespace of its own, and the rights in it that ``etc/kubernetes/hub/rbac.yaml`` gives."""

    engine = "kubernetes"
    writer_image = "root"  # volumes of a hostPath provisioner are root's, and know no fsGroup

    def __init__(self, folder: Path, after: str = "", without: tuple[str, str] | None = None) -> None:
        """``without``: a resource and a verb that the Hub may not."""
        self.docker = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
        self.images = test_images(self.docker)
        self._without = without
        super().__init__(folder)
        self.environment = {"KUBECONFIG": str(folder / "kubeconfig")}
        with (folder / "jupyterhub_config.py").open("a") as config:
            config.write(f"""
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = {os.environ["JHLAUNCHER_TEST_HUB_IP"]!r}
c.KubeSpawner.namespace = {self.id!r}
c.KubeSpawner.image = {self.images["image"]!r}
c.LauncherKubeSpawner.scheduling_timeout = 3
{after}
""")

    @contextmanager
    def running(self) -> Iterator[RealHub]:
        with self.prepared(), super().running() as hub:
            yield hub

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The namespace, and the Hub's rights in it."""
        _run(self._as_administrator(self._prepare))
        try:
            yield
        finally:
            _run(self._as_administrator(lambda api: api.delete_namespace(self.id)))

    async def _as_administrator(self, action: Callable[[Any], Awaitable[Any]]) -> Any:
        configuration = type.__call__(kube.Configuration)
        await kube_config.load_kube_config(client_configuration=configuration)
        async with kube.ApiClient(configuration) as api:
            result = await action(kube.CoreV1Api(api))
        await asyncio.sleep(0.1)  # older aiohttp leaves it to the loop to end connections (its "Graceful shutdown")
        return result

    async def _prepare(self, api: Any) -> None:
        await api.create_namespace({"metadata": {"name": self.id}})
        documents = list(yaml.safe_load_all((REPOSITORY / "etc/kubernetes/hub/rbac.yaml").read_text()))
        for document in documents:
            if document["kind"] == "Role" and self._without:
                resource, verb = self._without
                rule = next(rule for rule in document["rules"] if rule["resources"] == [resource])
                rule["verbs"].remove(verb)
                document["rules"] = [rule for rule in document["rules"] if rule["verbs"]]
            await kube_utils.create_from_dict(api.api_client, document, namespace=self.id)
        token = await api.create_namespaced_service_account_token("hub", self.id, {"spec": {"expirationSeconds": 7200}})
        write_kubeconfig(self.folder / "kubeconfig", token.status.token)

    async def create_volume(self, name: str) -> None:
        claim = {
            "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16M"}}},
        }
        await self._as_administrator(lambda api: api.create_namespaced_persistent_volume_claim(self.id, claim))

    async def has_volume(self, name: str) -> bool:
        claims = await self._as_administrator(lambda api: api.list_namespaced_persistent_volume_claim(self.id))
        return any(claim.metadata.name == name for claim in claims.items)

    async def pods(self) -> list[Any]:
        return list((await self._as_administrator(lambda api: api.list_namespaced_pod(self.id))).items)

    async def remains(self) -> list[str]:
        return [pod.metadata.name for pod in await self.pods()]

    async def set_quota(self, pods: int) -> None:
        quota = {"metadata": {"name": "quota"}, "spec": {"hard": {"pods": str(pods)}}}
        await self._as_administrator(lambda api: api.create_namespaced_resource_quota(self.id, quota))


def _run(work: Any) -> None:
    """Run in a thread of its own: a test's event loop may be running in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, work).result()


def write_kubeconfig(path: Path, token: str) -> None:
    """The administrator's, with another user's token."""
    content = yaml.safe_load(Path(os.environ["KUBECONFIG"].split(os.pathsep)[0]).read_text())
    context = next(c["context"] for c in content["contexts"] if c["name"] == content["current-context"])
    content["users"] = [{"name": context["user"], "user": {"token": token}}]
    path.write_text(yaml.safe_dump(content))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Test processes build no image twice at the same time."""
    with Path("/tmp/jhlauncher-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_images(client: Any) -> dict[str, str]:
    """Images on the base of JHLAUNCHER_TEST_IMAGE."""
    base = os.environ["JHLAUNCHER_TEST_IMAGE"]
    user = client.inspect_image(base)["Config"]["User"] or "root"
    images = {name: f"jhlauncher-test:{name}" for name in ("image", *DOCKERFILES)}
    quick = f"FROM {base}\nUSER root\nRUN {WITHOUT_GRAMMAR}\nUSER {user}\n"
    with one_at_a_time():
        build(client, images["image"], fileobj=io.BytesIO(quick.encode()))
        for name, line in DOCKERFILES.items():
            build(client, images[name], fileobj=io.BytesIO(f"FROM {images['image']}\n{line}\n".encode()))
    return images


test_images.__test__ = False  # type: ignore[attr-defined]


def hub_image(client: Any) -> str:
    """The image of a Hub that etc/docker/Dockerfile describes, with the versions that are tested here."""
    return _image(client, "hub", **({"EXTRAS": "swarm"} if _OLD else {}))


def launcher_image(client: Any) -> str:
    """The image of the launcher that etc/docker/Dockerfile describes."""
    return _image(client, "launcher")


def disks_image(client: Any) -> str:
    """The image of what makes disks that etc/docker/Dockerfile describes."""
    return _image(client, "disks")


_OLD = jupyterhub.version_info[0] < 6


def _image(client: Any, target: str, **arguments: str) -> str:
    name = f"jhlauncher-{target}:{'oldest' if _OLD else 'newest'}"
    base = {
        **dict.fromkeys(
            ("BASE_IMAGE", "DISKS_BASE_IMAGE"), os.environ.get("JHLAUNCHER_TEST_BASE_IMAGE", "debian-python:test")
        ),
        "LOCK": f"requirements/{'oldest' if _OLD else 'lock'}.txt",
        "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
    }
    with one_at_a_time():
        build(
            client,
            name,
            path=str(REPOSITORY),
            dockerfile="etc/docker/Dockerfile",
            target=target,
            buildargs={**base, **arguments},
            network_mode="host",
        )
    return name


def build(client: Any, tag: str, **source: Any) -> None:
    log = list(client.build(tag=tag, rm=True, decode=True, **source))
    errors = [event["error"] for event in log if "error" in event]
    assert not errors, "".join(event.get("stream", "") for event in log[-30:]) + errors[0]


HUBS: dict[str, type[EngineHub]] = {hub.engine: hub for hub in (LocalHub, DockerHub, SwarmHub, KubernetesHub)}


def missing(engine: str) -> str:
    """Why an engine can't be tested here; empty if it can."""
    needs = {
        "local": [],
        "docker": ["DOCKER_HOST", "JHLAUNCHER_TEST_IMAGE", "JHLAUNCHER_TEST_HUB_IP"],
        "swarm": ["DOCKER_HOST", "JHLAUNCHER_TEST_IMAGE", "JHLAUNCHER_TEST_HUB_IP", "JHLAUNCHER_TEST_SWARM"],
        "kubernetes": ["KUBECONFIG", "DOCKER_HOST", "JHLAUNCHER_TEST_IMAGE", "JHLAUNCHER_TEST_HUB_IP"],
    }[engine]
    unset = [name for name in needs if not os.environ.get(name)]
    if engine == "local" and sys.platform != "linux":
        return "the local engine's remains are looked for in /proc"
    return f"the environment names no {engine} engine: {', '.join(unset)} not set" if unset else ""
