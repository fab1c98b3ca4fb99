"""What is measured for Prometheus. Each replica counts what it has done itself; the queue is the same for all."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .records import LaunchRecord

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The measures of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._launches = Counter(
            "jhlauncher_launches", "Launches by the state they came to, and why.", ["state", "reason"],
            registry=self._registry,
        )  # fmt: skip
        self._phases = Histogram(
            "jhlauncher_phase_seconds", "Seconds that launches were in a phase.", ["phase"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._kept = Gauge(
            "jhlauncher_launches_kept", "Launches that are kept, by state; queued is the length of the queue.",
            ["state"], registry=self._registry,
        )  # fmt: skip
        self._bound = Gauge(
            "jhlauncher_concurrent_starts_bound", "Servers that may be starting at a time, as learned from the Hub.",
            registry=self._registry,
        )  # fmt: skip
        self._requests = Counter(
            "jhlauncher_hub_requests", "Requests to JupyterHub by method and status; error: there was no answer.",
            ["method", "code"], registry=self._registry,
        )  # fmt: skip

    def changed(self, record: LaunchRecord) -> None:
        """A launch is in a new state."""
        self._launches.labels(record.state, record.error["reason"] if record.error else "").inc()
        if record.state == "starting" and record.started:
            self.phase("queued", record.started - record.waits_since)
        if record.state == "ready" and record.ready and record.started:
            self.phase("start", record.ready - record.started)

    def phase(self, phase: str, seconds: float) -> None:
        """A launch was in a phase for so long."""
        self._phases.labels(phase).observe(max(0.0, seconds))

    def hub_request(self, method: str, code: str) -> None:
        """The Hub was asked something."""
        self._requests.labels(method, code).inc()

    def render(self, kept: dict[str, int], bound: int) -> bytes:
        """All of it in Prometheus' text format."""
        self._kept.clear()
        for state, number in {"queued": 0, **kept}.items():
            self._kept.labels(state).set(number)
        self._bound.set(bound)
        return generate_latest(self._registry)
