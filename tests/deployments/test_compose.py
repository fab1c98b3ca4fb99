"""etc/docker/compose.yaml, started as docs/howto-docker.md says."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import pytest_asyncio

from jhlauncher.ports import SERVICES, free_port
from tests.deployments.support import ETC, Visitor, follow, needs, postgres_image, run, wait_until
from tests.engines.hubs import hub_image, launcher_image

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(needs("docker", "docker-compose")), reason=needs("docker", "docker-compose")),
]


@dataclass
class Compose:
    folder: Path
    settings: dict[str, str]

    def follow(self, begins: str, *changes: tuple[str, str]) -> str:
        """A command of the docs, with Debian's Compose."""
        return follow("howto-docker.md", begins, ("docker compose", "docker-compose"), *changes, cwd=self.folder)

    def __call__(self, *arguments: str, status: int = 0) -> str:
        return run("docker-compose", *arguments, cwd=self.folder, status=status)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['JUPYTERHUB_PORT']}"


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """A copy of etc/, with the secrets that make-env writes, and images from here in place of a registry's."""
    client = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    folder = tmp_path_factory.mktemp("compose") / "etc"
    shutil.copytree(ETC, folder)
    follow("howto-docker.md", "./make-env", cwd=folder / "docker")
    written = dict(
        line.split("=", 1) for line in (folder / "docker/.env").read_text().splitlines() if line[:1].isalpha()
    )
    settings = {
        **written,
        "COMPOSE_PROJECT_NAME": f"t{secrets.token_hex(3)}",
        "JUPYTERHUB_PORT": str(free_port(SERVICES)),
        "SINGLE_USER_IMAGE": os.environ["JHLAUNCHER_TEST_IMAGE"],
        "HUB_IMAGE": hub_image(client),
        "LAUNCHER_IMAGE": launcher_image(client),
        "POSTGRES_IMAGE": postgres_image(client),
    }
    (folder / "docker/.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    compose = Compose(folder / "docker", settings)
    try:
        # images are there already, and this Compose waits for nobody
        compose.follow("docker compose up", (" --build --wait", " --no-build"))
        yield compose
    finally:
        try:
            compose.follow("docker compose stop hub")
            compose.follow("docker compose run")
        finally:
            compose.follow("docker compose down", ("down", "down --volumes --timeout 10"))
        names = [each["Name"] for each in client.networks()]
        assert not [name for name in names if name.startswith(settings["COMPOSE_PROJECT_NAME"])]


@pytest_asyncio.fixture
async def platform(compose: Compose) -> AsyncIterator[Visitor]:
    async with Visitor(compose.url, compose.settings["PLATFORM_TOKEN"]) as platform:
        await platform.ready()
        yield platform


async def test_secrets_are_written_once_and_for_their_owner(compose: Compose):
    assert (compose.folder / ".env").stat().st_mode & 0o077 == 0
    assert "There is a .env already" in run("sh", "-c", "./make-env 2>&1", cwd=compose.folder, status=1)


async def test_a_launch_and_a_login(compose: Compose, platform: Visitor):
    image = compose.settings["SINGLE_USER_IMAGE"]
    launched = await platform.launch(username="ada", image=image, memory={"limit": "512M"})
    assert await platform.opens(launched) == 200
    async with Visitor(compose.url) as ada:
        assert (await ada.log_in("ada", compose.settings["LOGIN_PASSWORD"])).endswith("/hub/home")
        status, page = await ada.request("GET", "services/launcher/", headers={"Accept": "text/html"})
        assert status == 200
        assert "Looking for your servers" in page
    await platform.stop("ada")


async def test_servers_and_launches_outlive_a_new_hub_and_a_new_launcher(compose: Compose, platform: Visitor):
    launched = await platform.launch(username="bob", image=compose.settings["SINGLE_USER_IMAGE"])
    compose("up", "--detach", "--no-build", "--force-recreate", "--no-deps", "hub", "launcher")
    await platform.ready()
    assert await platform.opens(launched) == 200
    status, launches = await platform.request("GET", "services/launcher/launches?username=bob")
    assert (status, [launch["state"] for launch in launches["items"]]) == (200, ["ready"])
    await platform.stop("bob")


async def test_nothing_runs_as_root_and_all_is_healthy(compose: Compose, platform: Visitor):
    for service in ("hub", "launcher", "proxy"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "1000"
    name = compose.settings["COMPOSE_PROJECT_NAME"]
    healthy = ("docker", "ps", "--filter", f"name={name}", "--filter", "health=healthy", "--format", "{{.Names}}")
    wait_until(lambda: len(run(*healthy).split()) == 4, "all four are healthy")


async def test_check_finds_nothing_wrong_on_either_side(compose: Compose, platform: Visitor):
    for side in ("hub", "launcher"):
        told = compose.follow(f"docker compose exec -e JUPYTERHUB_URL=http://proxy:8000 {side}", ("exec", "exec -T"))
        assert "0 problems, 0 warnings." in told, told


async def test_what_a_lost_hub_leaves_is_found_and_removed(compose: Compose, platform: Visitor):
    await platform.launch(username="eve", image=compose.settings["SINGLE_USER_IMAGE"])
    await platform.launch(username="fred", image=compose.settings["SINGLE_USER_IMAGE"])
    # the Hub forgets eve, as one does that has lost its database
    hers = "where user_id = (select id from users where name = 'eve')"
    forget = f"delete from api_tokens {hers}; delete from spawners {hers}"
    compose("stop", "--timeout", "10", "hub")
    compose("exec", "-T", "postgres", "psql", "--username", "jupyterhub", "--quiet", "--command", forget)
    compose("start", "hub")
    await platform.ready()
    orphans = ("exec", "-T", "hub", "jhlauncher", "orphans", "--hub-config", "/etc/jupyterhub/compose_config.py")
    told = compose(*orphans, status=1)
    assert "jupyter-eve" in told
    assert "the Hub has no such server running" in told
    assert "jupyter-fred" not in told
    told = compose(*orphans, "--remove")
    assert "removed" in told
    assert "Nothing is left over." in compose(*orphans)
    await platform.stop("fred")
