"""Services on a real cluster: how they are, what their Hub is told, and what becomes of those that nobody wants."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jhlauncher.database import Database
from jhlauncher.manager.rendering import Ref
from jhlauncher.manager.rows import Row, Rows
from tests.engines.hubs import REPOSITORY
from tests.manager.receivers import Receiver
from tests.manager.support import Manager, Namespace, description, new_name

pytestmark = pytest.mark.real_hub

LOGS = "<details><summary>&nbsp&nbsp&nbsp&nbspContainer Logs</summary>"
EVENTS = "<details><summary>&nbsp&nbsp&nbsp&nbspKubernetes events</summary>"


@pytest.fixture
def hub() -> Iterator[Receiver]:
    with Receiver().running() as hub:
        yield hub


def start(manager: Manager, hub: Receiver, service: str) -> str:
    name = new_name()
    status, body = manager.start(name, service, start_id="1", env=hub.env())
    assert status == 201, body
    return name


def test_a_start_that_works_is_told(manager: Manager, hub: Receiver):
    name = start(manager, hub, "Type/sleeping")
    manager.until(lambda: any("Started" in event["html_message"] for event in hub.posted()))
    first = hub.requests[0]
    assert first["path"] == "/hub/api/users/progress/status/jo/lab"
    assert first["headers"]["Authorization"] == "token secret-of-the-server"
    assert not any(event["failed"] or event["ready"] for event in hub.posted())
    numbers = [event["progress"] for event in hub.posted()]
    assert numbers == sorted(numbers)
    assert manager.status(name)["running"] is True
    manager.request("DELETE", f"services/{name}/")


def test_a_crash_shows_its_log(manager: Manager, hub: Receiver, namespace: Namespace):
    name = start(manager, hub, "Type/crashing")
    model = manager.settled(name, lambda model: not model["running"])
    assert model["details"]["error"] in ("Service status is in state terminated", "Service cannot start")
    assert f"{LOGS}&lt;b&gt;it can not go on&lt;/b&gt;<br>because</details>" in model["details"]["detailed_error"]
    failed = manager.until(lambda: [event for event in hub.posted() if event["failed"]])
    assert len(failed) == 1
    assert failed[0]["progress"] == 100
    assert "it can not go on" in failed[0]["html_message"]
    assert failed[0]["html_message"].startswith("<details><summary>Service ")
    manager.settled(name, lambda model: EVENTS in model.get("details", {}).get("detailed_error", ""))
    assert len([event for event in hub.posted() if event["failed"]]) == 1, "told once, however often it restarts"
    assert manager.request("DELETE", f"services/{name}/") == (204, None)


def test_an_image_that_is_not_there_shows_events(manager: Manager, hub: Receiver):
    name = start(manager, hub, "Type/no-image")
    details = manager.settled(name, lambda model: not model["running"])["details"]
    assert details["error"] == "Service cannot start"
    assert EVENTS in details["detailed_error"]
    assert "no-such-image:test" in details["detailed_error"]
    assert f"{LOGS}No logs available</details>" in details["detailed_error"]
    manager.request("DELETE", f"services/{name}/")


def test_a_hub_that_is_busy_is_told_later_and_in_order(manager: Manager, hub: Receiver):
    for _ in range(3):
        hub.answers.put(503)
    name = start(manager, hub, "Type/crashing")
    manager.until(lambda: any(event["failed"] for event in hub.posted()))
    assert [r["status"] for r in hub.requests][:4] == [503, 503, 503, 204]
    assert "assigned" in hub.posted()[0]["html_message"] or "pulled" in hub.posted()[0]["html_message"]
    manager.request("DELETE", f"services/{name}/")


def test_bug_a_service_without_a_pod_runs(stopped: Manager, namespace: Namespace):
    """It was meant to be told as not running, but another text was looked for."""
    stopped.arguments = ["--Watching.start_grace=0"]
    stopped.begin()
    name = new_name()
    stopped.start(name, "Type/idle")
    details = stopped.settled(name, lambda model: not model["running"])["details"]
    assert details["error"] == "Service has no pod"
    stopped.request("DELETE", f"services/{name}/")


def test_status_costs_the_cluster_nothing(stopped: Manager, hub: Receiver, tmp_path: Path):
    requests = tmp_path / "requests"
    stopped.program = ["-m", "tests.manager.wrapped", "count", str(requests)]
    stopped.environment["PYTHONPATH"] = str(REPOSITORY)
    stopped.begin()
    running, crashed = start(stopped, hub, "Type/sleeping"), start(stopped, hub, "Type/no-image")
    stopped.until(lambda: any("Started" in event["html_message"] for event in hub.posted()))
    stopped.settled(crashed, lambda model: not model["running"])
    before = requests.read_text().splitlines()
    for _ in range(100):
        assert stopped.status(running)["running"]
        assert not stopped.status(crashed)["running"]
    after = requests.read_text().splitlines()
    assert [line for line in after[len(before) :] if "/log" not in line] == []
    assert len(after) - len(before) < 5, "a log, when the pod's events have changed"
    for name in (running, crashed):
        stopped.request("DELETE", f"services/{name}/")


async def keep_rows(manager: Manager, number: int) -> list[str]:
    """Have so many services in the manager's database that run, as far as it knows; their names."""
    database = Database(url=f"sqlite:///{manager.folder}/jhlauncher.sqlite")
    database.validate_settings()
    await database.start()
    rows = Rows(database)
    names = [new_name() for _ in range(number)]
    for name in names:
        main = Ref("apps/v1", "Deployment", f"depl-{name}-1")
        row = Row("hub", name, "1", {"service": "Type/idle"}, 17, main, [main, Ref("v1", "Secret", "s")], "s")
        await rows.begin(row)
        await rows.started(row.key)
    await database.stop()
    return names


def test_a_thousand_services_cost_the_cluster_no_more_than_one(stopped: Manager, tmp_path: Path):
    names = asyncio.run(keep_rows(stopped, 1000))
    requests = tmp_path / "requests"
    stopped.program = ["-m", "tests.manager.wrapped", "count", str(requests)]
    stopped.environment["PYTHONPATH"] = str(REPOSITORY)
    stopped.begin()
    with ThreadPoolExecutor(8) as threads:
        assert all(model["running"] for model in threads.map(stopped.status, names))
    asked = requests.read_text().splitlines()
    assert {line.partition("?")[0].rpartition("/")[2] for line in asked} == {"pods", "events"}
    assert len(asked) < 12, "two lists and two watches, and again when a watch is renewed"


def test_what_ended_is_removed_after_a_while(stopped: Manager, hub: Receiver, namespace: Namespace):
    stopped.arguments = ["--Reaper.interval=0.5", "--Reaper.ended_grace=1"]
    stopped.begin()
    name = start(stopped, hub, "Type/crashing")
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    assert namespace.objects(name) == []
    assert "has not been running for a while; it is removed" in stopped.log()


def test_what_crashes_again_and_again_is_removed_too(stopped: Manager, hub: Receiver, namespace: Namespace):
    """Between two crashes, it runs for a moment."""
    stopped.arguments = ["--Reaper.interval=0.5", "--Reaper.ended_grace=8"]
    command = ["python3", "-c", "import time; time.sleep(2); 1 / 0"]
    stopped.describe("Type/again", description(command))
    stopped.begin()
    name = start(stopped, hub, "Type/again")
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404, 120)
    assert namespace.objects(name) == []


def test_what_its_hub_does_not_know_is_removed(stopped: Manager, hub: Receiver, namespace: Namespace):
    stopped.arguments = ["--Reaper.interval=0.2", "--Reaper.hub_interval=0.5"]
    stopped.begin()
    known = new_name()
    stopped.start(known, "Type/idle")  # its Hub has no address
    name = start(stopped, hub, "Type/sleeping")
    stopped.until(lambda: len([r for r in hub.requests if r["path"] == "/hub/api/user"]) > 2)
    for status in (500, 403, 200, 403, 200):
        hub.knows.put(status)
    asked = len(hub.requests)
    stopped.until(lambda: len(hub.requests) > asked + 6)
    hub.proxy_refuses = True
    asked = len(hub.requests)
    stopped.until(lambda: len(hub.requests) > asked + 3)
    assert stopped.status(name)["running"], "twice in a row, and the Hub itself"
    hub.proxy_refuses = False

    # after a restart, how to reach the Hub is in the service's own Secret
    stopped.end()
    stopped.begin()
    asked = len(hub.requests)
    stopped.until(lambda: len(hub.requests) > asked)
    assert hub.requests[-1]["headers"]["Authorization"] == "token secret-of-the-server"
    hub.known = 403
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    assert namespace.objects(name) == []
    assert "is not known to its Hub any more; it is removed" in stopped.log()
    assert stopped.status(known)["running"]
    stopped.request("DELETE", f"services/{known}/")


def test_services_outlive_the_manager(stopped: Manager, hub: Receiver, namespace: Namespace):
    stopped.begin()
    name = start(stopped, hub, "Type/sleeping")
    stopped.settled(name, lambda model: model["running"])
    stopped.end(signal.SIGKILL)
    stopped.begin()
    assert stopped.status(name)["running"] is True
    assert stopped.request("PATCH", f"services/{name}/", body={})[0] == 200
    assert stopped.request("DELETE", f"services/{name}/") == (204, None)
    assert namespace.objects(name) == []


def test_homes_are_made_from_the_skeleton(manager: Manager, hub: Receiver):
    skel = manager.folder / "skel/hub"
    skel.mkdir(parents=True)
    (skel / "welcome").write_text("hello")
    home = manager.folder / "homes/hub/4711"
    body = {**hub.env(), "JUPYTERHUB_USER_ID": 4711}
    name = new_name()
    assert manager.start(name, env=body)[0] == 201
    assert (home / "welcome").read_text() == "hello"
    (home / "welcome").write_text("mine")
    (skel / "later").write_text("new")
    assert manager.start(name, env=body)[0] == 201
    assert [path.name for path in home.iterdir()] == ["welcome"]
    assert (home / "welcome").read_text() == "mine"
    manager.request("DELETE", f"services/{name}/")


def test_a_home_that_can_not_be_made(stopped: Manager, namespace: Namespace):
    (stopped.folder / "homes").write_text("a file")
    stopped.begin()
    name = new_name()
    status, answer = stopped.start(name)
    assert status == 500
    assert "the home of user 17 can&#x27;t be made" in answer["detailed_error"]
    assert namespace.objects(name) == []


@pytest.mark.parametrize("change", ["good", "unknown key", "no json"])
def test_config_json_is_read_again(stopped: Manager, change: str, tmp_path: Path):
    stopped.arguments = ["--ConfigFile.interval=0.1"]
    stopped.begin()
    message = "services.utils.common.start_service_2"
    if change == "good":
        stopped.configure(error_messages={message: "Another text"})
        stopped.until(lambda: stopped.start(service="x")[1]["error"] == "Another text")
        stopped.configure()
        stopped.until(lambda: stopped.start(service="x")[1]["error"] == "Could not start service")
        return
    if change == "unknown key":
        stopped.configure(error_messages={message: "Another text"}, services={"bas": "x"})
    else:
        stopped.config.write_text("{")
    stopped.until(lambda: "What has changed is not in force" in stopped.log())
    assert stopped.start(service="x")[1]["error"] == "Could not start service"
