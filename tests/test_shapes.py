"""What each engine is asked for, where no engine of the tests has it: GPUs, parts of volumes, the policy's pulls."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from docker.types import ContainerSpec, EndpointSpec, Resources, TaskTemplate

from jhlauncher.engines.docker import LauncherDockerSpawner
from jhlauncher.engines.kubernetes import LauncherKubeSpawner
from jhlauncher.engines.swarm import LauncherSwarmSpawner
from tests.test_spawner import hub, spec, user


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are made without one."""
    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **options: None)
    monkeypatch.setattr("kubespawner.spawner.shared_client", lambda *names: None)


async def pod_of(launch: Any, **traits: Any) -> Any:
    """The pod that a launch makes."""
    orm_spawner = SimpleNamespace(name="", server=None)
    spawner = LauncherKubeSpawner(_mock=True, user=user(), orm_spawner=orm_spawner, hub=hub(), **traits)

    async def volumes_exist(volumes: Any) -> None:
        pass

    spawner.check_volumes = volumes_exist
    await spawner.apply_launch(launch)
    return (await spawner.modify_pod_hook(spawner, await spawner.get_pod_manifest())).spec


def test_gpu_on_kubernetes():
    pod = asyncio.run(pod_of(spec(gpu={"limit": 2}), gpu_resource="amd.com/gpu"))
    container = pod.containers[0]
    assert container.resources.limits["amd.com/gpu"] == container.resources.requests["amd.com/gpu"] == "2"
    (mount,) = [mount for mount in container.volume_mounts if mount.mount_path == "/dev/shm"]
    (volume,) = [volume for volume in pod.volumes if volume.name == mount.name]
    assert volume.empty_dir.medium == "Memory"


def test_pulls_of_the_policy_on_kubernetes():
    launch = spec(pull_policy="Always", pull_secrets=["mine"])
    pod = asyncio.run(pod_of(launch, image_pull_policy="Never", image_pull_secrets=["own"]))
    assert pod.containers[0].image_pull_policy == "Always"
    assert [secret.name for secret in pod.image_pull_secrets] == ["own", "mine"]


def test_read_only_claims_on_kubernetes():
    """A claim is read-only where all of its mounts are: some storage admits nothing else."""
    volumes = [
        {"name": "ro", "mount": "/a", "read_only": True},
        {"name": "rw", "mount": "/b", "read_only": True},
        {"name": "rw", "mount": "/c", "subpath": "{x}"},
    ]
    pod = asyncio.run(pod_of(spec(volumes=volumes)))
    claims = [volume.persistent_volume_claim for volume in pod.volumes]
    assert [(claim.claim_name, claim.read_only) for claim in claims] == [("ro", True), ("rw", False)]
    mounts = [(mount.name, mount.mount_path, mount.sub_path) for mount in pod.containers[0].volume_mounts]
    assert mounts == [("launch-0", "/a", None), ("launch-1", "/b", None), ("launch-1", "/c", "{x}")]


def container_of(launch: Any) -> dict[str, Any]:
    """The host's part of the request for a container."""
    spawner = LauncherDockerSpawner(user=user(), hub=hub())
    spawner._spec = launch
    request: dict[str, Any] = {"environment": {}, "host_config": {"NanoCpus": 5, "Binds": ["/x:/data:ro"]}}
    spawner._shape(request)
    return dict(request["host_config"])


def test_gpu_and_requests_on_docker():
    host = container_of(spec(gpu={"limit": 2}, cpu={"request": 0.5}, memory={"request": "1G", "limit": "2G"}))
    assert host["DeviceRequests"] == [{"Driver": "", "Count": 2, "Capabilities": [["gpu"]]}]
    assert host["CpuShares"] == 512
    assert "NanoCpus" not in host
    assert (host["MemoryReservation"], host["Memory"], host["MemorySwap"]) == (1024**3, 2 * 1024**3, 2 * 1024**3)


def test_subpath_on_docker_that_has_it():
    host = container_of(spec(volumes=[{"name": "data", "mount": "/data", "subpath": "a/{b}"}]))
    assert host["Mounts"] == [
        {
            "Target": "/data",
            "Source": "data",
            "Type": "volume",
            "ReadOnly": False,
            "VolumeOptions": {"Subpath": "a/{b}"},
        }
    ]
    assert host["Binds"] == []


def test_gpu_and_reservations_on_swarm():
    spawner = LauncherSwarmSpawner(user=user(), hub=hub(), image="image:1")
    launch = spec(gpu={"limit": 2}, cpu={"request": 0.5, "limit": 1}, memory={"limit": "1G"})
    spawner._spec = launch
    resources = Resources(mem_limit=5, mem_reservation=5)
    task = TaskTemplate(container_spec=ContainerSpec("own:1", env=["A=own"]), resources=resources)
    spawner._shape_task(task, launch)
    assert task["Resources"] == {
        "Limits": {"NanoCPUs": 10**9, "MemoryBytes": 1024**3},
        "Reservations": {
            "NanoCPUs": 5 * 10**8,
            "GenericResources": [{"DiscreteResourceSpec": {"Kind": "NVIDIA-GPU", "Value": 2}}],
        },
    }
    assert task["RestartPolicy"] == {"Condition": "none"}
    assert task["ContainerSpec"]["Image"] == "image:1"


def test_endpoint_of_a_service_is_the_administrators_to_choose():
    endpoint = EndpointSpec()
    LauncherSwarmSpawner(user=user(), hub=hub())._shape_endpoint(endpoint)
    assert endpoint["Mode"] == "dnsrr"
    endpoint = EndpointSpec(mode="vip")
    LauncherSwarmSpawner(user=user(), hub=hub(), extra_endpoint_spec={"mode": "vip"})._shape_endpoint(endpoint)
    assert endpoint["Mode"] == "vip"


@pytest.mark.asyncio
async def test_a_cancelled_start_leaves_no_view_that_is_never_ready(monkeypatch: pytest.MonkeyPatch):
    """All servers share it; every later start would wait for it."""
    go_on, made = asyncio.Event(), asyncio.Event()

    async def make(*arguments: Any, **options: Any) -> None:
        await go_on.wait()
        made.set()

    monkeypatch.setattr("kubespawner.KubeSpawner._start_reflector", make)
    orm_spawner = SimpleNamespace(name="", server=None)
    spawner = LauncherKubeSpawner(_mock=True, user=user(), orm_spawner=orm_spawner, hub=hub())
    start = asyncio.create_task(spawner._start_watching_pods())
    await asyncio.sleep(0)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    assert start.cancelled()
    go_on.set()
    await asyncio.wait_for(made.wait(), 5)
