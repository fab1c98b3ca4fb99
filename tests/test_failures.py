"""Why a start failed: words, proof, and no secrets. What a cluster can't be made to do here is told by its JSON."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jhlauncher.engines import pods
from jhlauncher.engines.pulling import Layers, pull
from jhlauncher.failures import MAX_LINES, Evidence, Failure, hide, pull_failure, secrets_of
from jhlauncher.steps import Steps


def failure(**fields: Any) -> Failure:
    return Failure(reason="crashed", message="It ended.", **fields)


def test_secrets_are_hidden_wherever_they_stand():
    secrets = secrets_of(
        {
            "MAX_TOKENS": 4096,
            "KEY_SECRET": {"valueFrom": {}},
            "JUPYTERHUB_API_TOKEN": "abcdef0123",
            "HOME": "/home/jovyan",
            "DB_PASSWORD": "hunter22",
        },
        {"ANYTHING": "first line\nsecond line", "SHORT": "1"},
    )
    lines = [
        "token abcdef0123 in /home/jovyan, 1 time",
        "connect hunter22",
        "second line",
        "GET /?token=4711abc&x=1",
        'password: "topsecret"',
        "Authorization: Bearer aaa.bbb",
        "postgresql://user:pass@host/db",
        "AWS_SECRET_ACCESS_KEY=abcdefg12345",
        "x" * 495 + "abcdef0123",
    ]
    hidden = failure(log=lines, events=lines[:1]).scrubbed(secrets)
    assert hidden.log == [
        "token [hidden] in /home/jovyan, 1 time",
        "connect [hidden]",
        "[hidden]",
        "GET /?token=[hidden]&x=1",
        "password: [hidden]",
        "Authorization: Bearer [hidden]",
        "postgresql://[hidden]@host/db",
        "AWS_SECRET_ACCESS_KEY=[hidden]",
        "x" * 495 + "[hidd",
    ]
    assert hidden.events == [lines[0].replace("abcdef0123", "[hidden]")]


def test_evidence_is_bounded_and_plain():
    evidence = Evidence(log=[*(str(n) for n in range(100)), "\x1b[31mred\x1b[0m\x07", "x" * 10_000])
    assert len(evidence.log) == MAX_LINES
    assert evidence.log[-2] == "red"
    assert len(failure(log=evidence.log).scrubbed([]).log[-1]) == 500


def test_what_is_known_already_is_kept():
    known = failure(exit_code=3).with_evidence(Evidence(exit_code=1, log=["line"]))
    assert (known.exit_code, known.log) == (3, ["line"])


def test_html_is_escaped():
    page = failure(log=["<script>alert(1)</script>"]).as_html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("manifest for x:1 not found: manifest unknown", "image_not_found"),
        ("pull access denied for x, repository does not exist or may require 'docker login'", "image_pull_denied"),
        ("unauthorized: authentication required", "image_pull_denied"),
        ("no basic auth credentials", "image_pull_denied"),
        ("received unexpected HTTP status: 403 Forbidden", "image_pull_denied"),
        ("dial tcp: lookup registry: no such host", "image_not_found"),
    ],
)
def test_words_of_registries(text: str, reason: str):
    assert pull_failure("x:1", text).reason == reason


def test_name_of_the_image_says_nothing():
    assert pull_failure("denied/forbidden:1", "denied/forbidden:1 not found").reason == "image_not_found"


# -- pods


def pod(phase: str = "Pending", **status: Any) -> dict[str, Any]:
    return {"metadata": {"uid": "1"}, "status": {"phase": phase, **status}}


def notebook(state: dict[str, Any], last: dict[str, Any] | None = None, name: str = "notebook") -> dict[str, Any]:
    return {"name": name, "image": "x:1", "state": state, "lastState": last or {}}


def event(reason: str, message: str = "") -> dict[str, Any]:
    return {"reason": reason, "message": message}


BACK_OFF = notebook({"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x:1"'}})
NETWORK = notebook({"waiting": {"reason": "ErrImagePull", "message": "dial tcp: i/o timeout"}})


@pytest.mark.parametrize(
    ("pod", "events", "reason"),
    [
        (pod("Failed", reason="OutOfmemory", message="Node didn't have enough resource"), [], "unschedulable"),
        (pod("Failed", reason="UnexpectedAdmissionError", message="no gpu left"), [], "unschedulable"),
        (pod("Failed", reason="Evicted", message="The node was low on resource: memory."), [], "out_of_memory"),
        (pod("Failed", reason="Evicted", message="The node was low on: ephemeral-storage."), [], "start_failed"),
        (pod(containerStatuses=[BACK_OFF]), [event("Failed", "x:1: unauthorized")], "image_pull_denied"),
        (pod(containerStatuses=[BACK_OFF]), [event("Failed", "x:1: not found")], "image_not_found"),
        (pod(containerStatuses=[NETWORK]), [event("BackOff", "Back-off pulling")], "image_not_found"),
        (
            pod(containerStatuses=[notebook({"waiting": {"reason": "InvalidImageName", "message": "bad"}})]),
            [],
            "image_not_found",
        ),
        (
            pod(containerStatuses=[notebook({"waiting": {"reason": "CreateContainerConfigError", "message": "x"}})]),
            [],
            "start_failed",
        ),
        (
            pod("Running", containerStatuses=[notebook({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})]),
            [],
            "out_of_memory",
        ),
        (
            pod(
                "Running",
                containerStatuses=[notebook({"running": {}}, {"terminated": {"exitCode": 1, "reason": "Error"}})],
            ),
            [],
            "crashed",
        ),
        (
            pod(initContainerStatuses=[notebook({"terminated": {"exitCode": 2, "reason": "Error"}}, name="prepare")]),
            [],
            "crashed",
        ),
        (
            pod(
                containerStatuses=[
                    notebook({"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such command"}})
                ]
            ),
            [],
            "start_failed",
        ),
    ],
)
def test_pods_that_will_never_be_ready(pod: dict[str, Any], events: list[dict[str, Any]], reason: str):
    failure = pods.failure_of(pod, events)
    assert failure
    assert failure.reason == reason


def test_kill_under_a_memory_limit_is_taken_for_out_of_memory():
    killed = pod("Running", containerStatuses=[notebook({"terminated": {"exitCode": 137, "reason": "Error"}})])
    for limit, reason in ((None, "crashed"), (64 * 1024**2, "out_of_memory")):
        failure = pods.failure_of(killed, [], limit)
        assert failure
        assert failure.reason == reason


@pytest.mark.parametrize(
    "pod",
    [
        pod(),
        pod(containerStatuses=[notebook({"waiting": {"reason": "ContainerCreating"}})]),
        pod(containerStatuses=[NETWORK]),  # it will be tried again
        pod("Running", containerStatuses=[notebook({"running": {}})]),
        pod(initContainerStatuses=[notebook({"terminated": {"exitCode": 0}}, name="prepare")]),
    ],
)
def test_pods_that_may_still_be_ready(pod: dict[str, Any]):
    assert pods.failure_of(pod, []) is None


def test_a_volume_that_is_gone_meanwhile():
    why = 'persistentvolumeclaim "data" not found'
    assert pods.unschedulable_failure(why).reason == "volume_not_found"
    unbound = "pod has unbound immediate PersistentVolumeClaims"
    assert pods.unschedulable_failure(unbound).reason == "volume_failed"


def test_a_volume_that_is_not_mounted():
    trouble = event("FailedAttachVolume", "Multi-Attach error")
    found = pods.mount_trouble([event("Scheduled"), trouble])
    assert found
    assert (found.reason, "Multi-Attach" in found.message) == ("volume_failed", True)
    assert pods.mount_trouble([trouble, event("Failed", "something else since")]) is None


def test_exit_code_and_which_log():
    ended = {"terminated": {"exitCode": 3}}
    assert pods.termination(pod(containerStatuses=[notebook(ended)])) == (3, False)
    assert pods.termination(pod(containerStatuses=[notebook({"running": {}}, ended)])) == (3, True)
    assert pods.termination(pod()) == (None, False)


# -- progress


def test_layers_of_a_pull():
    layers = Layers()
    assert layers.done == 0
    for event in (
        {"status": "Pulling from x", "id": "1"},
        {"status": "Already exists", "id": "base"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Pulling fs layer", "id": "b"},
    ):
        layers.take(event)
    assert layers.done == 0
    layers.take({"status": "Downloading", "id": "a", "progressDetail": {"current": 50, "total": 100}})
    assert 0.1 < layers.done < 0.2
    layers.take({"status": "Downloading", "id": "b", "progressDetail": {"current": 5, "total": -1}})
    for layer in "ab":
        layers.take({"status": "Pull complete", "id": layer})
    assert layers.done == 1


def test_steps_only_rise_and_keep_their_phase():
    steps = Steps()
    steps.add("half", "pulling", 0.5)
    steps.add("a word", None)
    steps.add("back", "scheduling")
    steps.add("back", "scheduling")
    assert [(event["progress"], event["phase"]) for event in steps._events] == [
        (35, "pulling"),
        (35, "pulling"),
        (35, "scheduling"),
    ]


class SlowRegistry:
    """An engine that pulls layer by layer, when it is told to."""

    def __init__(self) -> None:
        self.pulls = 0
        self.go_on = threading.Semaphore(0)

    def pull(self, image: str, **options: Any) -> Iterator[dict[str, Any]]:
        self.pulls += 1
        for _ in range(2):
            self.go_on.acquire(timeout=10)
            yield {"status": "Downloading", "id": "a", "progressDetail": {"current": 1, "total": 2}}


@pytest.mark.asyncio
async def test_a_pull_that_was_given_up_is_not_joined():
    """Or the next who wants the image would get the end of the old one for a success."""
    engine = SlowRegistry()
    first = asyncio.create_task(pull(engine, "x:1", None, lambda done: None))
    second = asyncio.create_task(pull(engine, "x:1", None, lambda done: None))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert engine.pulls == 1  # the second still waits for it
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    third = asyncio.create_task(pull(engine, "x:1", None, lambda done: None))
    await asyncio.sleep(0)
    for _ in range(3):  # one ends the pull that nobody waits for any more
        engine.go_on.release()
    await asyncio.wait_for(third, 10)
    assert engine.pulls == 2


@pytest.mark.parametrize(
    "text",
    ["a" * 65_536, "token" * 13_000, "token " * 10_000, "token=" * 10_000, 'token="' * 9_000, "bearer" + " " * 60_000,
     "://" * 20_000, "://" + "a" * 60_000, "authorization:" * 4_000, "passw" + "\t" * 60_000, "secret'" * 9_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hiding_takes_no_time_whatever_a_container_prints(text: str):
    """The Hub does it; compared with a text of the same length in which there is nothing to hide."""

    def seconds(text: str) -> float:
        begin = time.perf_counter()
        hide(text, [])
        return time.perf_counter() - begin

    plain = min(seconds("x. " * (len(text) // 3)) for _ in range(3))
    assert min(seconds(text) for _ in range(3)) < 200 * plain + 0.05


def test_what_is_hidden_in_a_line():
    line = "MY_TOKEN_X=abc1 password: 'abc2' https://u:abc3@h/ Authorization: Bearer abc4 api-key abc5"
    shown = hide(line, [])
    assert [word for word in ("abc1", "abc2", "abc3", "abc4", "abc5") if word in shown] == ["abc5"]
