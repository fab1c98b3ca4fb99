"""What Kubernetes says of a pod that starts, and of one that never will: plain functions over its JSON."""

from __future__ import annotations

from typing import Any

from ..failures import Failure, ended, pull_failure
from ..models import Phase

CONTAINER = "notebook"
"""What KubeSpawner calls the server's container."""

Json = dict[str, Any]

_STEPS: dict[str, tuple[Phase, float]] = {
    "FailedScheduling": ("scheduling", 0),
    "TriggeredScaleUp": ("scheduling", 0.2),
    "NotTriggerScaleUp": ("scheduling", 0.2),
    "Scheduled": ("scheduling", 0.9),
    "Pulling": ("pulling", 0),
    "Pulled": ("pulling", 0.9),
    "Created": ("creating", 0.3),
    "Started": ("creating", 0.8),
}
"""Where a start is after an event with this reason; others only have something to say."""

_NO_IMAGE = {"ErrImageNeverPull", "InvalidImageName"}
_PULL_FAILED = {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"}
_NOT_CREATED = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
_CERTAIN = ("not found", "manifest unknown", "does not exist", "unauthorized", "denied", "forbidden")
"""Words after which trying to pull again is of no use."""


def step_of(event: Json) -> tuple[str, Phase | None, float]:
    """What people see of an event: message, phase (None: as before), how much of the phase is done."""
    phase, done = _STEPS.get(event["reason"], (None, 0))
    return str(event.get("message") or event["reason"]), phase, done


def mount_trouble(events: list[Json]) -> Failure | None:
    """What keeps a volume from being mounted; Kubernetes goes on trying, and may succeed."""
    latest = next((event for event in reversed(events) if event["reason"].startswith("Failed")), None)
    if latest and latest["reason"] in ("FailedMount", "FailedAttachVolume"):
        return Failure(reason="volume_failed", message=f"A volume could not be mounted: {latest.get('message')}")
    return None


def line_of(event: Json) -> str:
    """An event as a line of evidence."""
    return f"{event['reason']}: {event.get('message') or ''}"


def unschedulable(pod: Json) -> str | None:
    """Why the scheduler has found no node for the pod yet; None if it has, or has not looked."""
    for condition in pod["status"].get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or "")
    return None


def unschedulable_failure(why: str) -> Failure:
    """The failure of a pod that found no node."""
    if "persistentvolumeclaim" in why.lower():
        if "not found" in why:
            return Failure(reason="volume_not_found", message=f"A volume does not exist: {why}")
        return Failure(reason="volume_failed", message=f"A volume is not to be had (yet): {why}")
    return Failure(reason="unschedulable", message=f"No node can run the server: {why.rstrip('.')}. Ask for less.")


def failure_of(pod: Json, events: list[Json], memory_limit: int | None = None) -> Failure | None:
    """Why the pod will never be ready; None if it still may.

    Args:
        pod: as the API has it.
        events: those of this pod.
        memory_limit: bytes that the server may have.

    """
    status = pod["status"]
    if status["phase"] == "Failed" and status.get("reason"):
        return _rejected(status)
    for name, container in _containers(status):
        failure = _waiting(container, events) or _terminated(container, name, memory_limit)
        if failure:
            return failure
    return None


def termination(pod: Json) -> tuple[int | None, bool]:
    """The exit code of the server's container, and whether a later one of its containers runs by now."""
    for name, container in _containers(pod["status"]):
        if name == CONTAINER:
            last = (container.get("lastState") or {}).get("terminated")
            now = (container.get("state") or {}).get("terminated")
            return (now or last or {}).get("exitCode"), bool(last and not now)
    return None, False


def _containers(status: Json) -> list[tuple[str, Json]]:
    init = [(f"init container {c['name']}", c) for c in status.get("initContainerStatuses") or []]
    return init + [(c["name"], c) for c in status.get("containerStatuses") or []]


def _rejected(status: Json) -> Failure:
    """The node did not take the pod, or has thrown it out."""
    reason, message = status["reason"], status.get("message") or ""
    if reason.startswith("OutOf") or reason == "UnexpectedAdmissionError":
        return Failure(reason="unschedulable", message=f"The node could not run the server: {message or reason}")
    if reason == "Evicted" and "memory" in message:
        return Failure(reason="out_of_memory", message=f"The node ran out of memory: {message}")
    return Failure(reason="start_failed", message=f"Kubernetes gave the server up ({reason}): {message}")


def _waiting(container: Json, events: list[Json]) -> Failure | None:
    """Why a container can't be made."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason") or "", waiting.get("message") or ""
    if reason in _NO_IMAGE:
        return Failure(
            reason="image_not_found",
            message=f"The image {container['image']} can't be used: {message or reason}",
        )
    if reason in _PULL_FAILED:
        # what went wrong is in the first message and the events; "back-off" says nothing
        text = " ".join([message, *(e.get("message") or "" for e in events if e["reason"] == "Failed")])
        again = any(e["reason"] == "BackOff" for e in events)
        if reason != "ErrImagePull" or again or any(word in text.lower() for word in _CERTAIN):
            return pull_failure(container["image"], text)
    if reason in _NOT_CREATED:
        return _not_created(message or reason)
    return None


def _not_created(message: str) -> Failure:
    lower = message.lower()
    if "memory limit too low" in lower or "oom-killed" in lower:
        return ended(None, out_of_memory=True)
    return Failure(reason="start_failed", message=f"Kubernetes could not start the container: {message}")


def _terminated(container: Json, name: str, memory_limit: int | None) -> Failure | None:
    """A container has ended; an init container may, with exit code 0."""
    for state in ("state", "lastState"):
        end = (container.get(state) or {}).get("terminated")
        if not end or (name.startswith("init container") and end["exitCode"] == 0):
            continue
        if end.get("reason") in ("ContainerCannotRun", "StartError"):
            return _not_created(end.get("message") or end["reason"])
        # a busy kubelet is sometimes told of the end before it is told why: SIGKILL under a limit must do
        killed = name == CONTAINER and end["exitCode"] == 137 and memory_limit is not None
        out_of_memory = end.get("reason") == "OOMKilled" or killed
        if name == CONTAINER or out_of_memory:
            return ended(end["exitCode"], out_of_memory=out_of_memory, memory_limit=memory_limit)
        message = f"The {name} ended with exit code {end['exitCode']}. {end.get('message') or ''}".strip()
        return Failure(reason="crashed", message=message, exit_code=end["exitCode"])
    return None
