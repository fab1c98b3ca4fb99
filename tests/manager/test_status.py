"""What is said of a service, row by row of the K8s Manager's table: pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from jhlauncher.manager.status import StatusTexts, time_of

LOGS = "<details><summary>&nbsp&nbsp&nbsp&nbspContainer Logs</summary>"
EVENTS = "<details><summary>&nbsp&nbsp&nbsp&nbspKubernetes events</summary>"
NORMAL = {"type": "Normal", "reason": "Pulling", "message": "Pulling image"}
WARNING = {"type": "Warning", "reason": "Failed", "message": "Failed to <pull>"}
WAITING = {"waiting": {"reason": "ContainerCreating"}}


def pod(phase: str = "Running", state: Any = None, node: str | None = "n", last: Any = None) -> dict[str, Any]:
    statuses = [
        {"name": "other", "state": {"terminated": {}}},
        *([{"name": "main", "state": state, "lastState": last or {}}] if state is not None else []),
    ]
    return {
        "metadata": {"name": "pod-1"},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


@pytest.mark.parametrize(
    ("pod", "events", "expected"),
    [
        (pod("Failed"), [], (False, "Service status is Failed")),
        (pod("Succeeded"), [], (False, "Service status is Succeeded")),
        (pod("Unknown"), [], (False, "Service status is Unknown")),
        (pod(state={"terminated": {"exitCode": 0}}), [], (False, "Service status is in state terminated")),
        (pod(state={"running": {}}), [WARNING], (True, "")),
        (pod("Pending", WAITING), [WARNING, NORMAL], (False, "Service cannot start")),
        (pod("Pending", WAITING), [WARNING, NORMAL, NORMAL, NORMAL], (True, "")),
        (pod("Pending", WAITING), [NORMAL], (True, "")),
        (pod("Pending", WAITING), [], (True, "")),
        (pod("Pending"), [], (True, "")),
        (pod("Pending"), [WARNING], (False, "Service cannot start")),
        (None, [], (False, "Service has no pod")),
        (None, [WARNING], (False, "Service cannot start")),
    ],
)
def test_the_table(pod: Any, events: list[Any], expected: tuple[bool, str]):
    verdict = StatusTexts().judge(pod, events, "main", hopeful=False)
    assert (verdict.running, verdict.error) == expected
    assert verdict.up == (pod is not None and "running" in str(pod))


def test_hope_is_for_what_has_no_pod_or_node_yet():
    texts = StatusTexts()
    assert texts.judge(None, [], "main", hopeful=True).running
    assert not texts.judge(None, [WARNING], "main", hopeful=True).running, "a quota does not go away"
    assert texts.judge(pod("Pending", node=None), [WARNING], "main", hopeful=True).running
    assert not texts.judge(pod("Pending", WAITING), [WARNING], "main", hopeful=True).running
    assert not texts.judge(pod("Failed"), [], "main", hopeful=True).running


def test_what_counts_as_a_failure_can_be_configured():
    texts = StatusTexts(pod_events_to_fail=["Warning", "Normal"], pod_events_no=2)
    assert texts.judge(pod("Pending", WAITING), [WARNING], "main", False).running
    assert not texts.judge(pod("Pending", WAITING), [WARNING, NORMAL], "main", False).running
    assert texts.judge(pod("Pending", WAITING), [WARNING, NORMAL, NORMAL], "main", False).running


def test_the_texts():
    texts = StatusTexts()
    verdict = texts.judge(
        pod("Pending", WAITING, last={"terminated": {"exitCode": 1}}), [NORMAL, WARNING], "main", False
    )
    assert (verdict.pod, verdict.restarted) == ("pod-1", True)
    details = texts.details(verdict, [f"line <{number}>" for number in range(7)])
    assert details.error == "Service cannot start"
    assert details.detailed_error == (
        f"{EVENTS}Pulling image<br>Failed to &lt;pull&gt;</details>"
        f"{LOGS}" + "<br>".join(f"line &lt;{number}&gt;" for number in range(2, 7)) + "</details>"
    )
    ended = texts.judge(pod("Failed"), [WARNING], "main", False)
    assert texts.details(ended, []).detailed_error == f"{LOGS}No logs available</details>"


def test_configured_texts():
    texts = StatusTexts(
        container_logs_lines=1, container_logs_join="|", pod_events_join="|", pod_events_no=2,
        detailed_error_html_logs="L<CONTAINER_LOGS>", detailed_error_html_events="E<POD_EVENTS_MESSAGES>",
    )  # fmt: skip
    verdict = texts.judge(pod("Pending", WAITING), [WARNING, NORMAL, WARNING], "main", False)
    assert texts.details(verdict, ["a", "b"]).detailed_error == "EPulling image|Failed to &lt;pull&gt;Lb"


def test_events_in_order_of_time():
    new = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "lastTimestamp": None, "eventTime": None}
    assert time_of(new) == "2026-01-01T00:00:00Z"
    assert time_of({**new, "lastTimestamp": "2026-02-01T00:00:00Z"}) == "2026-02-01T00:00:00Z"
    assert time_of({**new, "series": {"lastObservedTime": "2026-03-01T00:00:00Z"}}) == "2026-03-01T00:00:00Z"
