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

from ..bell import Bell, first_ring
from ..reflectors import telling
from . import reports
from .cluster import INSTANCE, MAIN, MANAGED_BY, SERVICE, Cluster
from .descriptions import Descriptions
from .errors import KubernetesRefused
from .rendering import Json
from .reports import Contact, Reports
from .rows import Row
from .status import Details, StatusTexts, Verdict, time_of

_MAKERS = {"Deployment", "ReplicaSet", "StatefulSet"}
_WATCHED = ("pods", "events")
_STABLE = 60
"""Seconds after which a service that has been down is taken to be up again; a container that crashes is restarted."""
_STEPS = {"Scheduled": 40, "Pulling": 50, "Pulled": 60, "Created": 65, "Started": 70}
"""Per cent at which a start is after an event with this reason; others only have something to say."""


@dataclass
class _Followed:
    """A service that is looked after."""

    row: Row
    contact: Contact | None
    introduced: bool
    """Whether ``contact`` is known; it may be that there is none."""
    verdict: Verdict = field(default_factory=lambda: Verdict(True))
    explaining: asyncio.Task[Details] | None = None
    """Finds out why it does not run."""
    since: float = field(default_factory=time.monotonic)
    """Since when it is followed, on the monotonic clock."""
    down_since: float | None = None
    up_since: float | None = None
    """Until it has been so for a while, it may be about to crash again."""
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
        self._of_makers: dict[str, list[Json]] = defaultdict(list)
        for pod in pods.values():
            self._pods[pod["metadata"]["labels"].get(SERVICE, "")].append(pod)
        for event in sorted(events.values(), key=time_of):
            about = event["involvedObject"]
            if about.get("kind") in _MAKERS:
                self._of_makers[_maker(about)].append(event)
            elif about.get("uid"):
                self._events[about["uid"]].append(event)

    def pod(self, key: str) -> Json | None:
        """The pod of a service: the newest, rather one that stays."""
        return max(self._pods.get(key, ()), key=_newest, default=None)

    def events(self, row: Row, pod: Json | None) -> list[Json]:
        """Of a service's pod, or of what should have made one."""
        if pod:
            return self._events.get(pod["metadata"]["uid"], [])
        return self._of_makers.get(row.main.name, [])


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
        self._bell = Bell()
        """Rings when there is a service more."""

    # -- start and stop

    async def start(self) -> None:
        """Watch; returns when all that is there has been seen, or the cluster does not answer yet.

        Raises:
            KubernetesRefused: the cluster does not let us.

        """
        ours = {MANAGED_BY: "jhlauncher", INSTANCE: self._cluster.deployment_name, MAIN: "true"}
        for kind, labels in zip(_WATCHED, (ours, {}), strict=True):
            self._given_up[kind] = asyncio.Event()
            try:
                await self._watch(kind, labels)
            except KubernetesRefused as error:
                if error.code in (401, 403):
                    await self.stop()
                    raise
                self.log.error("The cluster at %s can't be used yet: %s", self._cluster.address, error.message)
                self._given_up[kind].set()
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
        await self._cluster.may_list(kind)  # kubespawner's words for a refusal are long
        reflector = telling(ResourceReflector)(
            parent=self,
            kind=kind,
            namespace=self._cluster.namespace,
            labels=labels,
            on_failure=self._given_up[kind].set,
            timeout_seconds=60,  # a watch is renewed so often: one that broke in silence is noticed
            restart_seconds=60,
            request_timeout=75,
        )
        await reflector.start()
        self._reflectors[kind] = reflector

    async def _keep(self, kind: str, labels: dict[str, str]) -> None:
        """Begin anew when a watch gives up, which it does after a minute without the API server."""
        while True:
            await self._over(kind)
            await asyncio.sleep(self.restart_delay)
            try:
                await self._watch(kind, labels)
            except Exception as error:  # of several libraries; it is logged, and tried again
                self.log.debug("No watch of %s yet: %s", kind, error)
            else:
                self._given_up[kind].clear()
                self._bell.ring()

    async def _over(self, kind: str) -> None:
        """Return when a watch has given up, or its task has ended without saying so."""
        given_up = asyncio.create_task(self._given_up[kind].wait())
        watch = self._reflectors[kind].watch_task if kind in self._reflectors else None
        try:
            await asyncio.wait([given_up, *([watch] if watch else [])], return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()
        if watch and watch.done():
            self.log.error("The watch of %s has ended; it begins again", kind)
            self._given_up[kind].set()

    # -- services

    def follow(self, row: Row, contact: Contact | None, coming_up: bool) -> None:
        """Look after a service from now on.

        Args:
            row: the service.
            contact: who is told; None: nobody.
            coming_up: it is being started; one that was found has its contact in its Secret.

        """
        self._followed.setdefault(row.key, _Followed(row, contact, introduced=coming_up, been_up=not coming_up))
        self._bell.ring()

    def leave(self, key: str) -> None:
        """Look after a service no more."""
        followed = self._followed.pop(key, None)
        if followed and followed.explaining:
            followed.explaining.cancel()

    async def contact(self, row: Row) -> Contact | None:
        """How a service's Hub is reached; its own Secrets know, after a restart.

        Raises:
            KubernetesRefused: they can't be read.

        """
        followed = self._followed.get(row.key)
        if followed and followed.introduced:
            return followed.contact
        env = await self._cluster.secret(row.secret, row.key)
        certs = await self._cluster.secret(row.certs_secret, row.key) if row.certs_secret else {}
        contact = Contact.of(env, reports.certificates(certs))
        if followed:
            followed.contact, followed.introduced = contact, True
        return contact

    def down_for(self, key: str) -> float:
        """For how many seconds a service has not been running."""
        followed = self._followed.get(key)
        if followed is None or followed.down_since is None or followed.verdict.running:
            return 0
        return time.monotonic() - followed.down_since

    async def status(self, row: Row) -> Details | None:
        """None if a service runs or starts; else why not."""
        followed = self._followed.get(row.key)
        while followed and followed.explaining:
            explaining = followed.explaining
            await asyncio.wait([explaining])
            if not explaining.cancelled():
                return explaining.result()
            if followed.explaining is explaining:  # all watching has ended
                return None
            followed = self._followed.get(row.key)
        return None

    # -- looking

    async def _looks(self) -> None:
        """Look at all services whenever something has changed, or may have by time alone."""
        while True:
            rung = [self._bell.listen(), *(reflector.bell.listen() for reflector in self._reflectors.values())]
            try:
                self.look()
            except Exception:
                self.log.exception("The services could not be looked at")
            await first_ring(rung, timeout=5)
            await asyncio.sleep(0.05)  # changes come in swarms; one look does for all of one

    def look(self) -> None:
        """Look at all services; nothing is said of any while the cluster has not been seen."""
        if len(self._reflectors) < len(_WATCHED):
            return
        view = _View(*(self._reflectors[kind].resources for kind in _WATCHED))
        for followed in list(self._followed.values()):
            try:
                self._look_at(followed, view)
            except Exception:
                self.log.exception("Service %s can't be judged", followed.row)

    def _look_at(self, followed: _Followed, view: _View) -> None:
        row = followed.row
        pod = view.pod(row.key)
        events = view.events(row, pod)
        hopeful = time.monotonic() - followed.since < self.start_grace or any(
            event.get("reason") == "TriggeredScaleUp" for event in events
        )
        before = followed.verdict
        verdict = self._texts.judge(pod, events, self._descriptions.container_main_name, hopeful)
        followed.verdict = verdict
        if verdict.running:
            if followed.explaining:
                followed.explaining.cancel()
            followed.explaining = None
            followed.up_since = followed.up_since or time.monotonic()
            if time.monotonic() - followed.up_since > _STABLE:
                followed.down_since = None
            self._tell_progress(followed, events)
            followed.been_up = followed.been_up or verdict.up
            return
        followed.up_since = None
        followed.down_since = followed.down_since or time.monotonic()
        if followed.explaining is None or (verdict.pod and verdict != before):
            # once the pod is gone, what was known while it was there still says more
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
        if not followed.failure_told:
            self.log.warning("Service %s does not run: %s", followed.row, verdict.error)
            await self._tell_failure(followed, details)
        return details

    async def _tell_failure(self, followed: _Followed, details: Details) -> None:
        try:
            contact = await self.contact(followed.row)
        except KubernetesRefused as error:
            self.log.warning("The Hub of service %s is not known: %s", followed.row, error.message)
        else:
            followed.failure_told = True
            self._reports.tell(followed.row.key, contact, reports.failure(details))


def _maker(about: Json) -> str:
    """The name of the Deployment or StatefulSet; a ReplicaSet is named after its Deployment, with a hash."""
    name = str(about.get("name"))
    return name.rpartition("-")[0] if about["kind"] == "ReplicaSet" else name


def _newest(pod: Json) -> tuple[bool, str]:
    metadata = pod["metadata"]
    return metadata.get("deletionTimestamp") is None, metadata["creationTimestamp"]
