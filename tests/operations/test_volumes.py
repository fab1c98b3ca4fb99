"""``jhlauncher volumes`` on processes and on Kubernetes; tests/engines/test_disks.py has it on Docker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client as kube

from tests.cli.terminal import piped
from tests.engines.hubs import KubernetesHub, missing
from tests.faults import LIGHT_SERVERS
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


def volumes(folder: Path, *arguments: str, **environment: str) -> tuple[int, Any]:
    """The exit status, and what is told."""
    done = subprocess.run(
        [sys.executable, "-m", "jhlauncher", "volumes", "--hub-config", "jupyterhub_config.py", "--json", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


async def test_folders(tmp_path: Path):
    (tmp_path / "starts.log").touch()
    hub = RealHub(tmp_path, after=LIGHT_SERVERS.format(seconds=0))
    with hub.running():
        assert volumes(tmp_path) == (0, [])
        vols = [{"pvc": "data", "mount": "/home/jovyan/data", "subpath": "part"}]
        status, launched = await hub.launcher("POST", username="ada", image="light", vols=vols)
        assert status == 200, launched
        (tmp_path / "servers/volumes/data/file").write_bytes(bytes(100_000))
        status, [entry] = volumes(tmp_path, "list")
        assert (status, entry["name"], entry["size"], entry["used_by"]) == (0, "data", None, ["ada/default"])
        assert 100_000 <= entry["used"] < 200_000
        status, [told] = volumes(tmp_path, "remove", "--yes", "data")
        assert (status, told["done"]) == (1, "not removed: data: it is in use by ada/default")
        await hub.launcher("DELETE", "?username=ada")
        status, told = volumes(tmp_path, "remove", "data")
        assert (status, "--yes" in told) == (4, True)
        assert volumes(tmp_path, "grow", "data", "1G")[0] == 1
        status, told = volumes(tmp_path, "remove", "data", "--yes", "other")
        assert (status, [each["done"].partition(":")[0] for each in told]) == (1, ["removed", "not removed"])
        assert volumes(tmp_path) == (0, [])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesHub]:
    if missing("kubernetes"):
        pytest.skip(missing("kubernetes"))
    hub = KubernetesHub(tmp_path_factory.mktemp("hub"))
    with hub.prepared():
        yield hub


async def test_claims(cluster: Any):
    """Of two storage classes, only one of which lets them grow, one that a pod has, and one that is somebody else's."""
    labels = {"app.kubernetes.io/managed-by": "jhlauncher"}
    growing = f"{cluster.id}-growing"
    specs = {"fixed": None, "grows": growing, "others": None}

    async def prepare(api: Any) -> None:
        storage = kube.StorageV1Api(api.api_client)
        grows = {"metadata": {"name": growing}, "provisioner": "none", "allowVolumeExpansion": True}
        await storage.create_storage_class(grows)
        for name, storage_class in specs.items():
            metadata = {"name": name, "labels": labels if name != "others" else {}}
            metadata["annotations"] = {"hub.jupyter.org/username": "ada"}
            amount = {"requests": {"storage": "16Mi"}}
            spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "resources": amount}
            claim = {"metadata": metadata, "spec": {key: value for key, value in spec.items() if value}}
            await api.create_namespaced_persistent_volume_claim(cluster.id, claim)
        volume = {
            "metadata": {"name": growing},
            "spec": {
                "capacity": {"storage": "16Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": growing,
                "hostPath": {"path": "/tmp/unused"}, "claimRef": {"namespace": cluster.id, "name": "grows"},
            },
        }  # fmt: skip
        await api.create_persistent_volume(volume)
        mounted = [{"name": "data", "persistentVolumeClaim": {"claimName": "fixed"}}]
        container = {"name": "user", "image": "no-such-image:1", "imagePullPolicy": "Never"}
        pod = {"metadata": {"name": "user"}, "spec": {"containers": [container], "volumes": mounted}}
        await api.create_namespaced_pod(cluster.id, pod)

    async def bound(api: Any) -> bool:
        claims = await api.list_namespaced_persistent_volume_claim(cluster.id)
        return all(claim.status.phase == "Bound" for claim in claims.items)

    async def clear(api: Any) -> None:
        await kube.StorageV1Api(api.api_client).delete_storage_class(growing)
        await api.delete_persistent_volume(growing)

    run, administrator = cluster._as_administrator, {"KUBECONFIG": os.environ["KUBECONFIG"]}
    await run(prepare)
    try:
        async with asyncio.timeout(60):
            while not await run(bound):
                await asyncio.sleep(0.2)
        status, told = volumes(cluster.folder, **cluster.environment)
        assert (status, "persistentvolumeclaims is forbidden" in told) == (4, True), told
        status, listed = volumes(cluster.folder, **administrator)
        assert (status, listed) == (0, [
            {"name": "fixed", "user": "ada", "size": 16 * 1024**2, "used": None, "used_by": ["user"]},
            {"name": "grows", "user": "ada", "size": 16 * 1024**2, "used": None, "used_by": []},
        ])  # fmt: skip
        assert volumes(cluster.folder, "grow", "grows", "32M", **administrator)[0] == 0
        claims = await run(lambda api: api.read_namespaced_persistent_volume_claim("grows", cluster.id))
        assert claims.spec.resources.requests["storage"] == str(32 * 1024**2)
        for arguments, why in {
            ("grow", "grows", "1M"): "it can grow, not shrink",
            ("grow", "fixed", "32M"): "does not allow it (allowVolumeExpansion)",
            ("grow", "others", "32M"): "there is no such volume of the launcher's",
            ("remove", "--yes", "others"): "there is no such volume of the launcher's",
            ("remove", "--yes", "nobodys"): "there is no such volume of the launcher's",
            ("remove", "--yes", "fixed"): "it is in use by user",
        }.items():
            status, told = volumes(cluster.folder, *arguments, **administrator)
            assert (status, why in told[0]["done"]) == (1, True), told
        assert volumes(cluster.folder, "remove", "--yes", "grows", **administrator)[0] == 0
        _, listed = volumes(cluster.folder, **administrator)
        assert [each["name"] for each in listed] == ["fixed"]
    finally:
        await run(clear)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["list", "data", "--hub-config=x"],
        ["grow", "data", "--hub-config=x"],
        ["grow", "data", "much", "--hub-config=x"],
        ["remove", "--hub-config=x"],
        ["forget", "data", "--hub-config=x"],
    ],
)
async def test_wrong_arguments(arguments: list[str]):
    done = await piped(None, "volumes", *arguments)
    assert done.status == 2, done
    assert "Traceback" not in done.err
