"""Whether a service runs, from what Kubernetes says of its pod, and how that is told to its user: pure functions."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, NamedTuple

from traitlets import Integer, List, Unicode
from traitlets.config import LoggingConfigurable

from .rendering import Json

_LOGS, _EVENTS = "<CONTAINER_LOGS>", "<POD_EVENTS_MESSAGES>"
"""Where lines go in the configured texts."""


class Details(NamedTuple):
    """Why a service does not run, as HTML."""

    error: str
    detailed_error: str


class Verdict(NamedTuple):
    """What is to be said of a service."""

    running: bool
    error: str = ""
    events: tuple[Json, ...] = ()
    """That are a reason."""
    pod: str | None = None
    """Whose log is of interest."""
    restarted: bool = False
    """It is that of the container before."""
    up: bool = False
    """The main container runs."""


class StatusTexts(LoggingConfigurable):
    """What counts as a failure, and how it is told."""

    pod_events_no = Integer(3, min=1, help="How many of a pod's last events are looked at, and told.").tag(
        config=True, key="services.status_information.pod_events_no"
    )
    container_logs_lines = Integer(5, min=1, max=1000, help="How many of a container's last lines are told.").tag(
        config=True, key="services.status_information.container_logs_lines"
    )
    container_logs_join = Unicode("<br>", help="HTML between two lines.").tag(
        config=True, key="services.status_information.container_logs_join"
    )
    pod_events_join = Unicode("<br>", help="HTML between two events.").tag(
        config=True, key="services.status_information.pod_events_join"
    )
    detailed_error_html_logs = Unicode(
        f"<details><summary>&nbsp&nbsp&nbsp&nbspContainer Logs</summary>{_LOGS}</details>",
        help=f"HTML around the lines of a container's log, which take the place of {_LOGS}.",
    ).tag(config=True, key="services.status_information.detailed_error_html_logs")
    detailed_error_html_events = Unicode(
        f"<details><summary>&nbsp&nbsp&nbsp&nbspKubernetes events</summary>{_EVENTS}</details>",
        help=f"HTML around a pod's events, which take the place of {_EVENTS}.",
    ).tag(config=True, key="services.status_information.detailed_error_html_events")
    pod_events_to_fail = List(
        Unicode(),
        default_value=["Warning"],
        help="A service that waits can't start if all of these types are among its pod's last events.",
    ).tag(config=True, key="services.pod_events_to_fail")

    def judge(self, pod: Json | None, events: Iterable[Json], container: str, hopeful: bool) -> Verdict:
        """What is to be said of a service.

        Args:
            pod: as the API has it; None if there is none.
            events: of the pod, or of what should have made it; the latest last.
            container: the one that is the service.
            hopeful: the pod, or a node for it, may still come.

        """
        latest = tuple(events)[-self.pod_events_no :]
        failing = set(self.pod_events_to_fail) <= {event.get("type") for event in latest}
        if pod is None:
            if latest and failing:
                return Verdict(False, "Service cannot start", latest)
            return Verdict(True) if hopeful else Verdict(False, "Service has no pod", latest)
        name, phase = pod["metadata"]["name"], pod["status"].get("phase", "Unknown")
        if phase not in ("Pending", "Running"):
            return Verdict(False, f"Service status is {phase}", pod=name)
        state, restarted = _state_of(pod, container)
        if "running" in state:
            return Verdict(True, up=True)
        if "terminated" in state:
            return Verdict(False, "Service status is in state terminated", pod=name)
        if failing and not (hopeful and _has_no_node(pod)):
            return Verdict(False, "Service cannot start", latest, name, restarted)
        return Verdict(True)

    def details(self, verdict: Verdict, lines: list[str]) -> Details:
        """What its user is told of a service that does not run."""
        texts = []
        if verdict.events:
            messages = [html.escape(str(event.get("message") or event.get("reason"))) for event in verdict.events]
            texts.append(self.detailed_error_html_events.replace(_EVENTS, self.pod_events_join.join(messages)))
        escaped = [html.escape(line) for line in lines[-self.container_logs_lines :]]
        logs = self.container_logs_join.join(escaped) or "No logs available"
        texts.append(self.detailed_error_html_logs.replace(_LOGS, logs))
        return Details(verdict.error, "".join(texts))


def _state_of(pod: Json, container: str) -> tuple[Json, bool]:
    """The state of a container, none before it has one, and whether it has ended before."""
    for each in pod["status"].get("containerStatuses") or []:
        if each["name"] == container:
            ended = bool((each.get("lastState") or {}).get("terminated"))
            return each.get("state") or {}, ended
    return {}, False


def _has_no_node(pod: Json) -> bool:
    return not (pod.get("spec") or {}).get("nodeName")


def time_of(event: Json) -> Any:
    """When an event was seen last: an RFC 3339 text, which sorts as it stands."""
    latest = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return latest or event["metadata"].get("creationTimestamp") or ""
