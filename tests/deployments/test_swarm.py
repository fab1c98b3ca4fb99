"""etc/swarm/stack.yaml on a real swarm, as docs/howto-swarm.md says; images come from a private registry by prefix."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import pytest_asyncio

from jhlauncher.ports import SERVICES, free_port
from tests.deployments.support import ETC, Visitor, follow, needs, run, wait_until
from tests.engines.hubs import hub_image
from tests.engines.registry import Registry

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(needs("swarm", "docker", "openssl")), reason=needs("swarm", "docker", "openssl")),
]


@dataclass
class Stack:
    """A deployed stack."""

    name: str
    folder: Path
    environment: dict[str, str]
    image: str
    """Of users' servers, in the private registry."""
    client: Any

    def follow(self, begins: str, *changes: tuple[str, str]) -> str:
        """A command of the docs, with another name for the stack."""
        return follow("howto-swarm.md", begins, *changes, cwd=self.folder, env=self.environment)

    def deploy(self) -> None:
        self.follow("docker stack deploy", (" jupyterhub", f" {self.name}"))

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text().strip()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.environment['JUPYTERHUB_PORT']}"

    def visitor(self, token: str = "") -> Visitor:
        return Visitor(self.url, token, trusting=self.folder / "secrets/tls_cert")

    def services(self) -> list[str]:
        """Of the stack, and of its users' servers."""
        network = self.client.inspect_network(f"{self.name}_servers")["Id"]
        return sorted(
            service["Spec"]["Name"]
            for service in self.client.services()
            if network in {each["Target"] for each in service["Spec"]["TaskTemplate"].get("Networks") or ()}
        )

    def leftovers(self) -> dict[str, list[str]]:
        """What bears the stack's name: services, networks, secrets, configs, and volumes."""
        client = self.client
        things = {
            "services": [each["Spec"]["Name"] for each in client.services()],
            "networks": [each["Name"] for each in client.networks()],
            "secrets": [each["Spec"]["Name"] for each in client.secrets()],
            "configs": [each["Spec"]["Name"] for each in client.configs()],
            "containers": [name for each in client.containers(all=True) for name in each["Names"]],
            "volumes": [each["Name"] for each in client.volumes()["Volumes"] or ()],
        }
        return {kind: found for kind, names in things.items() if (found := [n for n in names if self.name in n])}

    def orphans(self, *changes: tuple[str, str]) -> str:
        """`jhlauncher orphans` in a container of the Hub's image, as there is no Hub any more."""
        names = (("jupyterhub_hub", f"{self.name}_hub"), ("jupyterhub_servers", f"{self.name}_servers"))
        return self.follow("docker run --rm", *names, *changes)

    def remove(self) -> None:
        """As docs/howto-swarm.md says: the Hub, what it leaves, and the rest."""
        self.follow("docker service scale", ("jupyterhub", self.name))
        self.orphans()
        self.follow("docker stack rm", ("jupyterhub", self.name))
        wait_until(lambda: self.leftovers().keys() <= {"volumes"}, f"{self.name} goes away")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    client = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    folder = tmp_path_factory.mktemp("swarm") / "etc"
    shutil.copytree(ETC, folder)
    registry = Registry(client, os.environ["JHLAUNCHER_TEST_IMAGE"], tmp_path_factory.mktemp("registry"))
    with registry.running():
        prefix = f"{registry.address}/dlcc/"
        image = f"{prefix}jupyter-singleuser:latest"
        # the Hub's own image is on the manager already, and not in the tests' registry
        client.tag(hub_image(client), f"{prefix}jupyterhub-launcher", "latest")
        (folder / "swarm/compose_local.env").write_text(
            f"SINGLE_USER_IMAGE={image}\nAUTHENTICATOR_ADMIN_USERS=testuser\n"
        )
        environment = {
            "IMAGE_PREFIX": prefix,
            "DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
            "JUPYTERHUB_PORT": str(free_port(SERVICES)),
            # Swarm's mesh needs IPVS of the kernel, which not every test machine has
            "JUPYTERHUB_PORT_MODE": "host",
            "DOCKER_JUPYTERHUB_LOCAL_ENV": "_local",
        }
        name = f"t{secrets.token_hex(3)}"
        stack = Stack(name, folder / "swarm", {**environment, "STACK": name}, image, client)
        stack.follow("./make-secrets", ("hub.example.org", "localhost"))
        try:
            stack.deploy()
            yield stack
        finally:
            if stack.leftovers().keys() - {"volumes"}:
                stack.remove()
            for volume in stack.leftovers().get("volumes", []):
                wait_until(lambda volume=volume: _removed(client, volume), f"{volume} is in use")
            for tag in (f"{prefix}jupyterhub-launcher:latest", image):
                with suppress(docker.errors.ImageNotFound):
                    client.remove_image(tag, force=True)


def _removed(client: Any, volume: str) -> bool:
    try:
        client.remove_volume(volume)
    except docker.errors.APIError:
        return False
    return True


@pytest_asyncio.fixture
async def platform(stack: Stack) -> AsyncIterator[Visitor]:
    async with stack.visitor(stack.secret("platform_token")) as platform:
        await platform.ready()
        yield platform


async def test_secrets_are_made_once_and_for_their_owner(stack: Stack):
    before = {path.name: path.read_text() for path in (stack.folder / "secrets").iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (stack.folder / "secrets").iterdir())
    run("./make-secrets", cwd=stack.folder)
    assert {path.name: path.read_text() for path in (stack.folder / "secrets").iterdir()} == before
    ignored = (stack.folder / ".gitignore").read_text().split()
    assert {"secrets/", "compose_local.env"} <= set(ignored)


async def test_a_local_user_logs_in_and_has_a_service_and_a_volume(stack: Stack, platform: Visitor):
    name, _, password = stack.secret("user_list").partition(":")
    async with stack.visitor() as stranger:
        assert "/hub/login" in await stranger.log_in(name, "wrong")
        assert "/hub/login" in await stranger.log_in("nobody", "")
    async with stack.visitor() as user:
        assert (await user.log_in(name, password)).endswith("/hub/home")
        # as the button at the Hub's own page does
        status, page = await user.request("GET", f"hub/spawn/{name}")
        assert status == 200, page
    await _ready(platform, name)
    assert stack.services() == [f"jupyter-{name}", f"{stack.name}_hub"]
    assert f"{stack.name}-user-{name}" in stack.leftovers()["volumes"]
    await platform.stop(name)


async def _ready(platform: Visitor, name: str) -> None:
    """Return when somebody's plain start has come to its end, well."""
    async with asyncio.timeout(120):
        while True:
            _, model = await platform.request("GET", f"hub/api/users/{name}")
            server = model["servers"].get("", {})
            if server.get("ready"):
                return
            await asyncio.sleep(0.3)


async def test_what_is_written_outlives_the_server(stack: Stack, platform: Visitor):
    for content in ("first", "second"):
        launched = await platform.launch(username="ada", image=stack.image, memory={"limit": "512M"})
        headers = {"Authorization": f"token {launched['token']}"}
        path = "user/ada/api/contents/note.txt"
        if content == "second":
            status, model = await platform.request("GET", path, headers=headers)
            assert (status, model["content"]) == (200, "first")
        body = {"type": "file", "format": "text", "content": content}
        status, answer = await platform.request("PUT", path, headers=headers, json=body)
        assert status in (200, 201), answer
        await platform.stop("ada")
    assert stack.services() == [f"{stack.name}_hub"]


async def test_the_hub_runs_unprivileged_and_check_finds_nothing_wrong(stack: Stack, platform: Visitor):
    (container,) = stack.client.containers(filters={"label": f"com.docker.swarm.service.name={stack.name}_hub"})
    assert run("docker", "exec", container["Id"], "id", "-u").strip() == "1000"
    told = stack.follow("docker exec", ("jupyterhub_hub", f"{stack.name}_hub"))
    assert "0 problems, 0 warnings." in told, told


async def test_removed_while_servers_run_only_volumes_are_left(stack: Stack, platform: Visitor):
    await platform.launch(username="bob", image=stack.image)
    told = stack.orphans((" --remove", " 2>&1 || test $? = 4"))
    assert "a JupyterHub answers" in told
    stack.follow("docker service scale", ("jupyterhub", stack.name))
    told = stack.orphans((" --remove", " || test $? = 1"))  # something is left
    assert "jupyter-bob" in told
    assert "its Hub is gone" in told
    stack.remove()
    assert f"{stack.name}_data" in stack.leftovers()["volumes"]
    assert f"{stack.name}-user-ada" in stack.leftovers()["volumes"]
