"""Images from a registry: per cent while they are pulled, and why one can't be had."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.conformance import EngineTests
from tests.engines.hubs import DockerHub, EngineHub, KubernetesHub, missing
from tests.engines.registry import PASSWORD, USER, Registry

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

SECRETS = f"c.LauncherDockerSpawner.pull_secrets = {{'registry': {{'username': {USER!r}, 'password': {PASSWORD!r}}}}}\n"


class Pulling(EngineTests):
    @pytest.fixture(scope="class")
    @classmethod
    def hub(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHub]:
        if missing(cls.engine):
            pytest.skip(missing(cls.engine))
        folder = tmp_path_factory.mktemp("hub")
        hub = DockerHub(folder, after=SECRETS) if cls.engine == "docker" else KubernetesHub(folder)
        hub.registry = Registry(hub.docker, hub.images["image"], tmp_path_factory.mktemp("image"))
        with hub.registry.running(), hub.running():
            cls.prepare(hub)
            yield hub
            asyncio.run(cls._end(hub))
            for image in hub.docker.images():
                for tag in image["RepoTags"] or ():
                    if tag.startswith((hub.registry.address, hub.registry.private_address)):
                        hub.docker.remove_image(tag)

    @classmethod
    def prepare(cls, hub: Any) -> None:
        pass

    async def test_no_such_image(self, hub: Any):
        image = f"{hub.registry.address}/missing/image:1"
        error = await self.refusal(hub, "nobody", image=image)
        assert error["reason"] == "image_not_found", error
        assert image in error["error"]
        assert not await hub.remains_of("nobody")

    async def test_image_that_others_may_pull(self, hub: Any):
        error = await self.refusal(hub, "nobody", image=f"{hub.registry.private_address}/image:1")
        assert error["reason"] == "image_pull_denied", error
        assert PASSWORD not in str(error)

    async def test_credentials_of_the_policy(self, hub: Any, saw: Any):
        """All who wait for the image see it come."""
        image = f"{hub.registry.private_address}/image:2"
        users = ("pull-secrets-1", "pull-secrets-2")
        for events in await asyncio.gather(*(self.events(hub, username=user, image=image) for user in users)):
            assert events[-1][0] == "ready", events
            self.check_pulling([step for _, step in events[:-1] if step["phase"] == "pulling"])
        saw("pull_secrets (of the policy)", "works")

    def check_pulling(self, steps: list[dict[str, Any]]) -> None:
        assert steps


class TestDocker(Pulling):
    engine = "docker"

    def check_pulling(self, steps: list[dict[str, Any]]) -> None:
        """With per cent that rise."""
        cents = [int(re.search(r": (\d+)%", step["message"])[1]) for step in steps]  # type: ignore[index]
        assert len(set(cents)) > 2, cents  # how many there are depends on how fast the pull is
        assert cents == sorted(cents)
        assert [step["progress"] for step in steps] == sorted(step["progress"] for step in steps)


class TestKubernetes(Pulling):
    engine = "kubernetes"

    @classmethod
    def prepare(cls, hub: Any) -> None:
        """The secret that the policy names."""
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        content = json.dumps({"auths": {hub.registry.private_address: {"auth": auth}}})
        secret = {
            "metadata": {"name": "registry"},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": content},
        }
        asyncio.run(hub._as_administrator(lambda api: api.create_namespaced_secret(hub.id, secret)))

    async def test_no_second_try_where_it_is_of_no_use(self, hub: Any):
        """Kubernetes itself goes on trying."""
        began = asyncio.get_running_loop().time()
        error = await self.refusal(hub, "hopeful", image=f"{hub.registry.address}/missing/image:2")
        assert error["reason"] == "image_not_found", error
        assert asyncio.get_running_loop().time() - began < 25
