"""An administrator's own configuration keeps its meaning, and can't undo what was launched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.conformance import EngineTests
from tests.engines.hubs import DockerHub, EngineHub, KubernetesHub, missing
from tests.engines.inside import probe, run

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


class Configured(EngineTests):
    hub_class: Any
    configuration: str

    @pytest.fixture(scope="class")
    @classmethod
    def hub(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHub]:
        if missing(cls.engine):
            pytest.skip(missing(cls.engine))
        hub = cls.hub_class(tmp_path_factory.mktemp("hub"), after=cls.configuration)
        with hub.running():
            yield hub
            asyncio.run(hub.clean())

    async def plain(self, hub: EngineHub, user: str) -> dict[str, Any]:
        """Start as from the Hub's own page, with no options."""
        await hub.api("POST", f"/users/{user}")
        assert (await hub.api("POST", f"/users/{user}/server", json={"user_options": {}}))[0] in (201, 202)
        async with asyncio.timeout(60):
            while not ((await hub.api("GET", f"/users/{user}"))[1]["servers"].get("") or {}).get("ready"):
                await asyncio.sleep(0.2)
        body = {"scopes": [f"access:servers!server={user}/"]}
        _, token = await hub.api("POST", f"/users/{user}/tokens", json=body)
        return {"url": f"{hub.url}user/{user}/", "token": token["token"]}


class TestDocker(Configured):
    engine = "docker"
    hub_class = DockerHub
    configuration = """
c.DockerSpawner.remove = False
c.DockerSpawner.allowed_images = ["singleuser:only-this"]
c.DockerSpawner.environment = {"OF_THE_CONFIGURATION": "{username}", "MINE": "of the configuration"}
c.DockerSpawner.extra_host_config = lambda spawner: {
    "mem_limit": "700m", "cpu_quota": 90000, "cpu_period": 100000,
    "mounts": [{"Type": "tmpfs", "Target": "/mnt/configured"}, {"Type": "tmpfs", "Target": "/home/jovyan/data"}],
}
c.DockerSpawner.extra_create_kwargs = {"environment": {"MINE": "of extra_create_kwargs", "EXTRA": "1"}}
"""

    async def test_launch_is_as_it_was_launched(self, hub: Any):
        name = hub.volume("data")
        await hub.create_volume(name)
        launched = await self.launch(
            hub,
            "launched",
            image=hub.images["other"],
            env={"MINE": "of the launch"},
            memory={"limit": "512M"},
            vols=[{"pvc": name, "mount": f"{hub.home}/data"}],
        )
        seen = await probe(launched)
        assert seen["memory"] == [str(512 * 1024**2)]
        assert (seen["env"]["WHICH_IMAGE"], seen["env"]["MINE"], seen["env"]["EXTRA"]) == (
            "other",
            "of the launch",
            "1",
        )
        assert seen["env"]["OF_THE_CONFIGURATION"] == "{username}"
        # what it says nothing of is the configuration's
        assert seen["cpu"] == ["90000", "100000"]
        mounts = await run(launched, "print(open('/proc/mounts').read())")
        assert "tmpfs /mnt/configured" in mounts
        assert f"tmpfs {hub.home}/data" not in mounts

    async def test_kept_container_is_kept_and_is_not_the_launchs(self, hub: Any):
        code = "import pathlib; note = pathlib.Path('/home/jovyan/note')\n"
        server = await self.plain(hub, "keeper")
        await run(server, code + "note.write_text('kept')")
        await hub.stop("keeper")
        (kept,) = await hub.remains_of("keeper")

        launched = await self.launch(hub, "keeper", image=hub.images["other"])
        assert await run(launched, code + "print(note.exists())") == "False\n"
        assert (await probe(launched))["env"]["WHICH_IMAGE"] == "other"
        await hub.stop("keeper")
        assert await hub.remains_of("keeper") == [kept]

        server = await self.plain(hub, "keeper")
        assert await run(server, code + "print(note.read_text())") == "kept\n"
        assert "WHICH_IMAGE" not in (await probe(server))["env"]


class TestKubernetes(Configured):
    engine = "kubernetes"
    hub_class = KubernetesHub
    configuration = """
c.KubeSpawner.profile_list = [
    {"display_name": "Big", "default": True,
     "kubespawner_override": {"image": "no-such-image:1", "environment": {"PROFILE": "1"}}},
]
c.KubeSpawner.environment = {"OF_THE_CONFIGURATION": "{username}", "MINE": "of the configuration"}
c.KubeSpawner.volumes = {"own": {"name": "own", "emptyDir": {}}, "other": {"name": "launch-0", "emptyDir": {}}}
c.KubeSpawner.volume_mounts = {"own": {"name": "own", "mountPath": "/mnt/{username}"},
                               "data": {"name": "own", "mountPath": "/home/jovyan/data"}}
c.KubeSpawner.extra_container_config = {"resources": {"limits": {"memory": "700Mi", "ephemeral-storage": "1Gi"}}}
def modify(spawner, pod):
    notebook = pod.spec.containers[0]
    notebook.image = "no-such-image:2"
    notebook.env = [*notebook.env, {"name": "OF_THE_HOOK", "value": "1"}, {"name": "MINE", "value": "of the hook"}]
    return pod

c.KubeSpawner.modify_pod_hook = modify
"""

    async def test_launch_is_as_it_was_launched(self, hub: Any):
        await hub.create_volume("data")
        launched = await self.launch(
            hub,
            "launched",
            image=hub.images["root"],
            env={"MINE": "of the launch"},
            memory={"limit": "512M"},
            vols=[{"pvc": "data", "mount": f"{hub.home}/data"}],
        )
        seen = await probe(launched)
        assert seen["memory"] == [str(512 * 1024**2)]
        assert "PROFILE" not in seen["env"]
        names = ("MINE", "OF_THE_HOOK", "OF_THE_CONFIGURATION")
        assert [seen["env"][name] for name in names] == ["of the launch", "1", "launched"]
        code = "import os; print(os.path.ismount('/mnt/launched'), os.path.ismount('/home/jovyan/data'))"
        assert await run(launched, code) == "True True\n"
        (pod,) = await hub.pods()
        (claim,) = [volume for volume in pod.spec.volumes if volume.persistent_volume_claim]
        assert claim.persistent_volume_claim.claim_name == "data"
        assert pod.spec.containers[0].resources.limits["ephemeral-storage"] == "1Gi"

    async def test_quota(self, hub: Any):
        await hub.set_quota(0)
        error = await self.refusal(hub, "surplus", env={"SECRET_WORD": "swordfish"})
        assert error["reason"] == "quota_exceeded", error
        assert "exceeded quota" in error["error"]
        assert "swordfish" not in (hub.folder / "hub.log").read_text()
