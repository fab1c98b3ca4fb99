"""A cluster that goes away, and a manager that is stopped in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import yaml

from tests.manager.receivers import Receiver, Wire
from tests.manager.support import Manager, Namespace, description, new_name

pytestmark = pytest.mark.real_hub


@pytest.fixture
def wire(stopped: Manager) -> Iterator[Wire]:
    """The manager's only way to the cluster."""
    kubeconfig = stopped.folder / "kubeconfig"
    content = yaml.safe_load(stopped.namespace.kubeconfig.read_text())
    for cluster in content["clusters"]:
        url = urlsplit(cluster["cluster"]["server"])
        wire = Wire(url.hostname or "", url.port or 443)
        cluster["cluster"]["server"] = f"{url.scheme}://127.0.0.1:{wire.port}"
        cluster["cluster"]["tls-server-name"] = url.hostname
    kubeconfig.write_text(yaml.safe_dump(content))
    stopped.environment["KUBECONFIG"] = str(kubeconfig)
    stopped.arguments = ["--Reaper.interval=0.5", "--Cluster.request_timeout=2", "--ManagerApp.shutdown_timeout=1"]
    stopped.begin()
    yield wire
    wire.cut()


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_bug_a_stop_that_failed_was_forgotten(stopped: Manager, namespace: Namespace, wire: Wire, how: str):
    running, leaving, coming = (new_name() for _ in range(3))
    for name in (running, leaving):
        assert stopped.start(name, "Type/sleeping")[0] == 201
    getattr(wire, how)()
    assert stopped.status(running)["running"] is True
    status, answer = stopped.start(coming)
    assert status == 500
    assert "Kubernetes does not answer" in answer["detailed_error"]
    assert stopped.request("DELETE", f"services/{leaving}/") == (204, None)
    model = stopped.status(leaving)
    assert (model["running"], model["stop_pending"]) == (False, True)

    wire.mend()
    for name in (leaving, coming):
        stopped.until(lambda name=name: stopped.request("GET", f"services/{name}/")[0] == 404)
        assert namespace.objects(name) == []
    assert stopped.status(running)["running"] is True
    with Receiver().running() as hub:
        crashing = new_name()
        assert stopped.start(crashing, "Type/crashing", env=hub.env())[0] == 201
        stopped.until(lambda: any(event["failed"] for event in hub.posted()), 120)
    for name in (running, crashing):
        assert stopped.request("DELETE", f"services/{name}/")[0] == 204


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("DEPLOYMENT_NAMESPACE", "kube-system", "can't look after services in the namespace kube-system of https://"),
        ("KUBECONFIG", "/no/such/file", "KUBECONFIG=/no/such/file can't be used"),
        ("KUBECONFIG", "FOLDER/broken", "broken can't be used"),
        ("KUBECONFIG", "", "set KUBECONFIG, or run in a pod"),
        ("CONFIG_PATH", "/no/such/file", "/no/such/file can't be read"),
        ("CONFIG_PATH", "", "nobody may call: "),
    ],
)
def test_what_is_wrong_is_one_line(stopped: Manager, setting: str, value: str, problem: str):
    (stopped.folder / "broken").write_text("a: [")
    stopped.environment[setting] = value.replace("FOLDER", str(stopped.folder))
    stopped.begin(wait=False)
    assert stopped.process.wait(60) != 0
    assert problem in stopped.log().splitlines()[-1]
    assert "Traceback" not in stopped.log()


def test_a_cluster_that_is_not_there_is_one_line(stopped: Manager, wire: Wire):
    stopped.end()
    wire.cut()
    (stopped.folder / "log").write_text("")
    stopped.begin()
    stopped.until(lambda: "can't be used yet: Kubernetes does not answer" in stopped.log())
    assert "Traceback" not in stopped.log()
    assert len(stopped.log().splitlines()) < 12


def test_a_kind_that_the_manager_may_not_make(stopped: Manager, namespace: Namespace):
    """It is not waited for what was never made."""
    stateful = "---\n{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: s-<id>}, spec: {}}\n"
    stopped.describe("Type/stateful", description(replicas=0) + stateful)
    stopped.begin()
    name = new_name()
    status, answer = stopped.start(name, "Type/stateful")
    assert status == 500
    assert "statefulsets.apps is forbidden" in answer["detailed_error"]
    assert stopped.request("GET", f"services/{name}/")[0] == 404
    assert namespace.objects(name) == []


def test_stopped_in_the_middle_of_a_start(stopped: Manager, namespace: Namespace, wire: Wire):
    stopped.arguments.remove("--Cluster.request_timeout=2")
    stopped.end()
    stopped.begin()
    name = new_name()
    assert stopped.start(new_name())[0] == 201
    wire.freeze()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(stopped.start, name, start_id="1")
        stopped.until(lambda: len(stopped.request("GET")[1]) == 2)
        stopped.end()
        status, body = answer.result(60)
    assert status == 503, body
    wire.mend()
    stopped.begin()
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    assert namespace.objects(name) == []


def test_a_start_that_takes_too_long_is_undone(stopped: Manager, namespace: Namespace, wire: Wire):
    stopped.end()
    stopped.arguments = ["--ServiceManager.start_timeout=1", "--Reaper.interval=0.5"]
    stopped.begin()
    wire.delay = 0.4
    name = new_name()
    status, answer = stopped.start(name)
    assert (status, answer["error"]) == (500, "Could not start service")
    assert "Its objects were not made within 1 seconds" in answer["detailed_error"]
    assert namespace.objects(name) == []
    assert stopped.request("GET", f"services/{name}/")[0] == 404


def test_a_stop_cuts_a_start_short(stopped: Manager, namespace: Namespace, wire: Wire):
    name = new_name()
    wire.freeze()
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(stopped.start, name, start_id="1")
        stopped.until(lambda: len(stopped.request("GET")[1]) == 1)
        stop = threads.submit(stopped.request, "DELETE", f"services/{name}/")
        stopped.until(lambda: stopped.status(name)["stop_pending"])
        wire.mend()
        assert stop.result(60) == (204, None)
        assert answer.result(60)[0] == 500
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    assert namespace.objects(name) == []


def test_stops_in_the_middle_of_starts_leave_nothing(stopped: Manager, namespace: Namespace, wire: Wire):
    names = [new_name() for _ in range(12)]

    def start_and_stop(name: str) -> set[int]:
        with ThreadPoolExecutor(2) as threads:
            start = threads.submit(stopped.start, name, start_id="1")
            stop = threads.submit(stopped.request, "DELETE", f"services/{name}/")
            assert stop.result()[0] in (204, 404)
            assert start.result()[0] in (201, 500)
        return {stopped.request("DELETE", f"services/{name}/")[0]}

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(start_and_stop, names))
    stopped.until(lambda: stopped.request("GET") == (200, []))
    assert [each for each in namespace.objects() if any(name in each for name in names)] == []


def test_a_manager_that_starts_before_its_cluster(stopped: Manager, wire: Wire):
    name = new_name()
    assert stopped.start(name, "Type/sleeping")[0] == 201
    stopped.end()
    wire.cut()
    stopped.begin()
    assert stopped.status(name)["running"] is True, "nothing else is known"
    wire.mend()
    with Receiver().running() as hub:
        crashing = new_name()
        stopped.until(lambda: stopped.start(crashing, "Type/crashing", env=hub.env())[0] == 201)
        stopped.until(lambda: any(event["failed"] for event in hub.posted()))
    for each in (name, crashing):
        assert stopped.request("DELETE", f"services/{each}/")[0] == 204
