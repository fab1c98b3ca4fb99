"""Watches the services' pods and what happens to them: one watch of pods, one of events, however many services.

Whoever asks for a service's status is told from here, without a request to the API server. What becomes of a service
while it starts, and why it has failed, is told to its Hub.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from kubespawner.reflector import ResourceReflector
from traitlets import Float
from traitlets.config import LoggingConfigurable

from ..reflectors import telling
from . import reports
from .cluster import INSTANCE, MAIN, MANAGED_BY, SERVICE, Cluster
from .descriptions import Descriptions
from .rendering import Json
from .reports import Contact, Reports
from .rows import Row
from .status import Details, StatusTexts, Verdict, time_of

_MAKERS = {"Deployment", "ReplicaSet", "StatefulSet"}
_STEPS = {"Scheduled": 40, "Pulling": 50, "Pulled": 60, "Created": 65, "Started": 70}
"""Per cent at which a start is after an event with this reason; others only have something to say."""


@dataclass
class _Followed:
    """A service that is looked after."""

    row: Row
    contact: Contact | None
    verdict: Verdict = field(default_factory=lambda: Verdict(True))
    explaining: asyncio.Task[Details] | None = None
    """Finds out why it does not run."""
    down_since: float | None = None
    """On the monotonic clock."""
    been_up: bool = False
    told: set[str] = field(default_factory=set)
    """Events that its Hub knows of, or need not."""
    progress: int = 40
    failure_told: bool = False


class _View:
    """What is known of the cluster at one moment."""

    def __init__(self, pods: dict[str, Any], events: dict[str, Any]) -> None:
        self._pods: dict[str, list[Json]] = defaultdict(list)
        self._events: dict[str, list[Json]] = defaultdict(list)
        self._of_makers: list[Json] = []
        for pod in pods.values():
            self._pods[pod["metadata"]["labels"][SERVICE]].append(pod)
        for event in sorted(events.values(), key=time_of):
            about = event["involvedObject"]
            if about.get("kind") in _MAKERS:
                self._of_makers.append(event)
            elif about.get("uid"):
                self._events[about["uid"]].append(event)

    def pod(self, key: str) -> Json | None:
        """The pod of a service: the newest, rather one that stays."""
        return max(self._pods.get(key, ()), key=_newest, default=None)

    def events(self, row: Row, pod: Json | None) -> list[Json]:
        """Of a service's pod, or of what should have made one."""
        if pod:
            return self._events.get(pod["metadata"]["uid"], [])
        name = row.main.name
        return [e for e in self._of_makers if f"{e['involvedObject'].get('name')}-".startswith(f"{name}-")]


class Watching(LoggingConfigurable):
    """The services' state, as the cluster tells of it."""

    start_grace = Float(
        60, min=0, help="Seconds for which a service that has no pod, or no node for its pod, may still be starting."
    ).tag(config=True)
    restart_delay = Float(1, min=0.01, help="Seconds before a watch that has given up begins again.").tag(config=True)

    def __init__(
        self, cluster: Cluster, descriptions: Descriptions, texts: StatusTexts, reports: Reports, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._cluster = cluster
        self._descriptions = descriptions
        self._texts = texts
        self._reports = reports
        self._followed: dict[str, _Followed] = {}
        self._reflectors: dict[str, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._given_up: dict[str, asyncio.Event] = {}

    # -- start and stop

    async def start(self) -> None:
        """Watch; returns when all that is there has been seen.

        Raises:
            ApiException: the cluster does not let us.

        """
        ours = {MANAGED_BY: "jhlauncher", INSTANCE: self._cluster.deployment_name, MAIN: "true"}
        for kind, labels in (("pods", ours), ("events", {})):
            await self._watch(kind, labels)
            self._tasks.append(asyncio.create_task(self._keep(kind, labels), name=f"watch of {kind}"))
        self._tasks.append(asyncio.create_task(self._looks(), name="services"))

    async def stop(self) -> None:
        """End all watching."""
        explaining = [each.explaining for each in self._followed.values() if each.explaining]
        for task in [*self._tasks, *explaining]:
            task.cancel()
        await asyncio.gather(*self._tasks, *explaining, return_exceptions=True)
        for reflector in self._reflectors.values():
            await reflector.stop()

    async def _watch(self, kind: str, labels: dict[str, str]) -> None:
        over = self._given_up[kind] = asyncio.Event()
        reflector = telling(ResourceReflector)(
            parent=self,
            kind=kind,
            namespace=self._cluster.namespace,
            labels=labels,
            on_failure=over.set,
            timeout_seconds=300,  # a quiet watch is renewed so often
            restart_seconds=600,
            request_timeout=330,
        )
        await reflector.start()
        self._reflectors[kind] = reflector

    async def _keep(self, kind: str, labels: dict[str, str]) -> None:
        """Begin anew when a watch gives up, which it does after half a minute without the API server."""
        while True:
            await self._given_up[kind].wait()
            self.log.error("The watch of %s has given up; it begins again", kind)
            while True:
                await asyncio.sleep(self.restart_delay)
                try:
                    await self._watch(kind, labels)
                    break
                except Exception as error:  # of several libraries; it is logged, and tried again
                    self.log.warning("No watch of %s yet: %s", kind, error)

    # -- services

    def follow(self, row: Row, contact: Contact | None, coming_up: bool) -> None:
        """Look after a service from now on.

        Args:
            row: the service.
            contact: who is told; None: nobody.
            coming_up: it is being started, rather than found.

        """
        if row.key not in self._followed:
            followed = self._followed[row.key] = _Followed(row, contact, been_up=not coming_up)
            self._look_at(followed, self._view())

    def leave(self, key: str) -> None:
        """Look after a service no more."""
        followed = self._followed.pop(key, None)
        if followed and followed.explaining:
            followed.explaining.cancel()

    def contact(self, key: str) -> Contact | None:
        """How a service's Hub is reached."""
        followed = self._followed.get(key)
        return followed.contact if followed else None

    def down_for(self, key: str) -> float:
        """For how many seconds a service has not been running."""
        followed = self._followed.get(key)
        return time.monotonic() - followed.down_since if followed and followed.down_since is not None else 0

    async def status(self, row: Row) -> Details | None:
        """None if a service runs or starts; else why not."""
        self.follow(row, None, coming_up=False)
        followed = self._followed[row.key]
        if followed.verdict.running or not followed.explaining:
            return None
        return await asyncio.shield(followed.explaining)

    # -- looking

    def _view(self) -> _View:
        return _View(*(self._reflectors[kind].resources for kind in ("pods", "events")))

    async def _looks(self) -> None:
        """Look at all services whenever something has changed, or may have by time alone."""
        while True:
            bells = [reflector.bell.listen() for reflector in self._reflectors.values()]
            view = self._view()
            for followed in list(self._followed.values()):
                try:
                    self._look_at(followed, view)
                except Exception:
                    self.log.exception("Service %s can't be judged", followed.row)
            waits = [asyncio.create_task(bell.wait()) for bell in bells]
            await asyncio.wait(waits, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.sleep(0.05)  # changes come in swarms; one look does for all of one

    def _look_at(self, followed: _Followed, view: _View) -> None:
        row = followed.row
        pod = view.pod(row.key)
        events = view.events(row, pod)
        hopeful = time.time() - row.created < self.start_grace or any(
            event.get("reason") == "TriggeredScaleUp" for event in events
        )
        before = followed.verdict
        verdict = self._texts.judge(pod, events, self._descriptions.container_main_name, hopeful)
        followed.verdict = verdict
        if verdict.running:
            followed.down_since = followed.explaining = None
            self._tell_progress(followed, events)
            followed.been_up = followed.been_up or verdict.up
        elif followed.explaining is None or (verdict.pod and verdict != before):
            followed.down_since = followed.down_since or time.monotonic()
            if followed.explaining:
                followed.explaining.cancel()
            followed.explaining = asyncio.create_task(self._explain(followed, verdict), name=f"why {row.id} failed")

    def _tell_progress(self, followed: _Followed, events: list[Json]) -> None:
        for event in events:
            uid = event["metadata"]["uid"]
            if uid in followed.told:
                continue
            followed.told.add(uid)
            if not followed.been_up:
                followed.progress = max(followed.progress, _STEPS.get(event.get("reason") or "", 0))
                message = str(event.get("message") or event.get("reason"))
                self._reports.tell(followed.row.key, followed.contact, reports.progress(followed.progress, message))

    async def _explain(self, followed: _Followed, verdict: Verdict) -> Details:
        """Why a service does not run; its Hub is told, once."""
        texts, container = self._texts, self._descriptions.container_main_name
        lines = []
        if verdict.pod:
            lines = await self._cluster.log_of(verdict.pod, container, texts.container_logs_lines, verdict.restarted)
        details = texts.details(verdict, lines)
        self.log.warning("Service %s does not run: %s", followed.row, verdict.error)
        if not followed.failure_told:
            followed.failure_told = True
            self._reports.tell(followed.row.key, followed.contact, reports.failure(details))
        return details


def _newest(pod: Json) -> tuple[bool, str]:
    metadata = pod["metadata"]
    return metadata.get("deletionTimestamp") is None, metadata["creationTimestamp"]
