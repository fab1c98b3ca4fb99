"""The rights in etc/kubernetes/hub/rbac.yaml are enough, and none of them is superfluous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupyterhub
import pytest
import yaml

from tests.engines.hubs import REPOSITORY, KubernetesHub, missing

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(missing("kubernetes")), reason=missing("kubernetes")),
    pytest.mark.skipif(jupyterhub.version_info[0] < 6, reason="rights do not depend on the Hub's version"),
]

ROLE = next(
    document
    for document in yaml.safe_load_all((REPOSITORY / "etc/kubernetes/hub/rbac.yaml").read_text())
    if document["kind"] == "Role"
)
RIGHTS = [(rule["resources"][0], verb) for rule in ROLE["rules"] for verb in rule["verbs"]]


# those who miss a right shall notice soon; test_enough shows that it is enough time
IMPATIENT = "c.Spawner.start_timeout = 20\nc.KubeSpawner.k8s_api_request_retry_timeout = 4\n"


async def broken(hub: KubernetesHub) -> list[str]:
    """What does not work of a server's life."""
    found = []

    def check(what: str, works: bool) -> None:
        if not works:
            found.append(what)

    async def launch(user: str, **body: Any) -> tuple[int, Any]:
        return await hub.launcher("POST", **{"username": user, "image": hub.images["image"], **body})

    volume = [{"pvc": "made", "mount": "/home/jovyan/made"}]
    status, _ = await launch("maker", vols=volume)
    check("launch with a volume on demand", status == 200)
    _, error = await launch("loser", vols=[{"pvc": "missing", "mount": "/home/jovyan/x"}])
    check("missing volume", error["reason"] == "volume_not_found")
    _, error = await launch("crasher", image=hub.images["crashing"])
    check("why it crashed", error["reason"] == "crashed")
    check("log of the crash", any("ZeroDivisionError" in line for line in error.get("details", {}).get("log", [])))
    check("events of the crash", any("Started" in line for line in error.get("details", {}).get("events", [])))
    check("stop", status == 200 and (await hub.launcher("DELETE", "?username=maker"))[0] == 200)
    check("nothing left", not await hub.remains())
    check("nothing forbidden", "forbidden" not in (hub.folder / "hub.log").read_text().lower())
    return found


async def test_enough(tmp_path: Path):
    hub = KubernetesHub(tmp_path, after=IMPATIENT)
    with hub.running():
        assert await broken(hub) == []


@pytest.mark.parametrize(("resource", "verb"), RIGHTS)
async def test_none_is_superfluous(tmp_path: Path, resource: str, verb: str):
    hub = KubernetesHub(tmp_path, after=IMPATIENT, without=(resource, verb))
    with hub.running():
        assert await broken(hub)
