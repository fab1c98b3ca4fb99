"""User jobs of a Hub's credential: the requests and answers of the K8s Manager, and Services of a real cluster."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client as kube

from jhlauncher.manager.forwarded import ClusterServices
from jhlauncher.ports import SERVICES, free_port
from jhlauncher.userjobs.rows import Forwarded, UserJob
from tests.engines.hubs import missing
from tests.manager.support import Manager, Namespace
from tests.userjobs.conftest import Site

NODE = os.uname().nodename.partition(".")[0]
BRIDGE = os.environ.get("JHLAUNCHER_TEST_HUB_IP", "127.0.0.1")
IMAGE = os.environ.get("JHLAUNCHER_TEST_IMAGE", "")
FETCH = """
import sys, time, urllib.request
for _ in range(100):
    try:
        print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode(), flush=True)
        break
    except OSError as error:
        print(error, flush=True)
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    if missing("kubernetes"):
        pytest.skip(missing("kubernetes"))
    with Namespace(tmp_path_factory.mktemp("namespace")).there() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def manager(shared_site: Site, namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    systems = {"cluster": shared_site.system()}
    userjobs = {"systems": systems, "ips": [BRIDGE], "interval": 0.5}
    with Manager(tmp_path_factory.mktemp("manager"), namespace, userjobs=userjobs).running() as manager:
        yield manager


@pytest.fixture
def name(site: Site) -> str:
    return f"j{secrets.token_hex(4)}"


def forward(name: str, **more: Any) -> dict[str, Any]:
    """As a client of the K8s Manager sends it; its ports have no other form in JSON."""
    return {"service": name, "hostname": "cluster", "target_node": "localhost", "ports": {"80": 8080}, **more}


def until(manager: Manager, name: str, condition: Callable[[Any], bool], query: str = "") -> Any:
    deadline = time.monotonic() + 60
    while True:
        status, view = manager.request("GET", f"userjobs/{name}/{query}")
        assert status == 200, view
        if condition(view):
            return view
        assert time.monotonic() < deadline, (view, manager.log())
        time.sleep(0.2)


def from_pod(namespace: Namespace, url: str) -> str:
    """The last that a pod says of what it gets from there."""
    name = f"fetch-{secrets.token_hex(4)}"
    container = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["python3", "-c", FETCH, url]}
    pod = {"metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    namespace.do(lambda api: kube.CoreV1Api(api).create_namespaced_pod(namespace.name, pod))
    deadline = time.monotonic() + 90
    while True:
        found = namespace.do(lambda api: kube.CoreV1Api(api).read_namespaced_pod(name, namespace.name))
        if found.status.phase in ("Succeeded", "Failed"):
            log = namespace.do(lambda api: kube.CoreV1Api(api).read_namespaced_pod_log(name, namespace.name))
            return str(log.strip().splitlines()[-1])
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("key", ["service", "ports", "hostname", "target_node"])
def test_a_missing_key_is_named_as_before(manager: Manager, key: str):
    body = {field: value for field, value in forward("x").items() if field != key}
    assert manager.request("POST", "userjobs/", body) == (400, [f"Missing key: {key}"])


def test_the_life_of_a_forward(manager: Manager, namespace: Namespace, name: str):
    status, created = manager.request("POST", "userjobs/", forward(name))
    assert status == 201, created
    assert created.items() >= {"service": name, "hostname": "cluster", "target_node": "localhost"}.items()
    assert created["addresses"] == {"80": f"{name}.{namespace.name}.svc:80"}
    service = namespace.get("Service", name)
    assert [(port["port"], port["targetPort"] != 80) for port in service["spec"]["ports"]] == [(80, True)]
    status, again = manager.request("POST", "userjobs/", forward(name))
    assert status == 200
    assert again["created"] == created["created"]
    status, listed = manager.request("GET", "userjobs/")
    assert [job["service"] for job in listed] == [name]
    assert manager.request("PATCH", f"userjobs/{name}/", {})[0] == 405
    # another credential sees nothing of it, and can't take its name in the cluster
    assert manager.request("GET", "userjobs/", user="other") == (200, [])
    assert manager.request("GET", f"userjobs/{name}/", user="other")[0] == 404
    status, refused = manager.request("POST", "userjobs/", forward(name), user="other")
    assert (status, refused["reason"]) == (403, "no_account")
    status, refused = manager.request("POST", "userjobs/", forward(name, username="ada"))
    assert (status, refused["reason"]) == (409, "userjob_exists")
    assert manager.request("GET", f"userjobs/{name}/?username=ada")[0] == 404, "nothing is left of what was refused"
    assert manager.request("DELETE", f"userjobs/{name}/") == (204, None)
    assert namespace.objects(name) == []
    status, gone = manager.request("DELETE", f"userjobs/{name}/")
    assert status == 404
    assert gone["detail"] == "Not found."


def test_a_service_of_somebody_elses_is_left_alone(manager: Manager, namespace: Namespace, name: str):
    theirs = {"metadata": {"name": name}, "spec": {"ports": [{"port": 1}]}}
    namespace.do(lambda api: kube.CoreV1Api(api).create_namespaced_service(namespace.name, theirs))
    status, refused = manager.request("POST", "userjobs/", forward(name))
    assert (status, refused["reason"]) == (409, "userjob_exists")
    assert namespace.get("Service", name)["spec"]["ports"][0]["port"] == 1


def test_a_job_is_reached_from_a_pod(manager: Manager, namespace: Namespace, site: Site, name: str):
    """Through its Service; and again after the manager was killed."""
    (site.home(site.ada) / "said.txt").write_text("said by a job")
    port = free_port(SERVICES)
    job = {"command": ["python3", "-m", "http.server", str(port)], "memory": "50M"}
    body = {"service": name, "hostname": "cluster", "ports": {"80": port}, "job": job, "username": "ada"}
    status, created = manager.request("POST", "userjobs/", body)
    assert status == 201, created
    view = until(manager, name, lambda view: view["forwarding"], "?username=ada")
    assert view["job"]["node"] == NODE
    address = namespace.get("Service", name)["spec"]["clusterIP"]
    assert from_pod(namespace, f"http://{address}/said.txt") == "said by a job"
    manager.end(signal.SIGKILL)
    manager.begin()
    until(manager, name, lambda view: view["forwarding"], "?username=ada")
    assert from_pod(namespace, f"http://{address}/said.txt") == "said by a job"
    assert manager.request("DELETE", f"userjobs/{name}/?username=ada") == (204, None)
    assert namespace.objects(name) == []


def test_systems_of_a_hubs_users(manager: Manager, site: Site):
    assert [system["account"] for system in manager.request("GET", "systems/?username=ada")[1]] == [site.ada]
    assert [system["account"] for system in manager.request("GET", "systems/")[1]] == [site.view]
    assert manager.request("GET", "systems/?username=bob") == (200, [])
    assert manager.request("GET", "systems/", user="none")[0] == 403
    assert manager.request("GET", "userjobs/", user=None)[0] == 401


def test_in_a_pod_the_service_selects_the_managers_own():
    """As the K8s Manager made it; the tests' own manager is in no pod, and so its Services have Endpoints."""

    class Cluster:
        kubeconfig, deployment_name, namespace = "", "k8smgr", "services"

    job = UserJob("hub", "ada", "web", "cluster", "ada01", (Forwarded(80, 8080, 18001),), "n1")
    [service] = ClusterServices(Cluster(), None)._objects(job)  # type: ignore[arg-type]
    assert service["spec"] == {
        "selector": {"name": "k8smgr"},
        "ports": [{"name": "p80", "port": 80, "targetPort": 18001, "protocol": "TCP"}],
    }


def test_the_example_rights_suffice(manager: Manager, name: str):
    assert manager.request("POST", "userjobs/", forward(name))[0] == 201
    assert manager.request("DELETE", f"userjobs/{name}/")[0] == 204
    assert "forbidden" not in Path(manager.folder / "log").read_text().lower()
