"""What answers look like: the models that `openapi.json` describes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from ..models import Cpu, Gpu, LaunchSpec, Memory, Phase
from ..records import BatchEvent, BatchRecord, LaunchEvent, LaunchRecord, State


class ErrorView(BaseModel):
    """The one shape of an error."""

    error: str
    """What happened, to what, and what to do; for a person."""
    reason: str
    """The machine word; docs/reasons.md has them all."""
    details: dict[str, Any]
    status: int
    """Of HTTP."""


class LaunchView(BaseModel):
    """A launch."""

    id: str
    state: State
    username: str
    server_name: str
    image: str
    template: str | None
    batch: str | None
    caller: str
    """Who asked: user:NAME or service:NAME."""
    rule: str
    """Of the policy, by which it was allowed."""
    position: int | None = None
    """In the queue; 1 is next."""
    estimate: float | None = None
    """Seconds until its turn, if that is known."""
    not_before: datetime | None
    """When it begins to wait for its turn, where that was put off."""
    created: datetime
    started: datetime | None
    ready: datetime | None
    ended: datetime | None
    lifetime: float | None
    """Seconds from ready; None: until somebody stops it."""
    expires: datetime | None
    """When the server is stopped."""
    url: str | None
    """Of the server, when it is ready."""
    token: str | None
    """Opens this server and nothing else; for those who may start it, while it runs."""
    token_expires: datetime | None
    error: ErrorView | None
    """Why it failed, or ended before it was ready."""
    ended_by: str | None
    """Who asked for its end: user:NAME, service:NAME or lifetime."""
    links: dict[Literal["self", "events"], str]


class LaunchList(BaseModel):
    """A page of launches, the newest first."""

    items: list[LaunchView]
    next: str | None
    """The cursor of the next page; None on the last one."""


class EventView(BaseModel):
    """Something that happened to a launch."""

    id: int
    """1 for the first."""
    event: str
    """Its name: a state, ``progress``, ``warning`` or ``extended``."""
    data: dict[str, Any]


class EventList(BaseModel):
    """What has happened to a launch so far."""

    items: list[EventView]


class ProgressView(BaseModel):
    """How far a start is."""

    progress: int
    """Per cent."""
    message: str
    phase: Phase


class BatchItemView(BaseModel):
    """What became of one launch of a batch."""

    username: str | None
    launch: LaunchView | None
    error: ErrorView | None
    """Why it was not accepted."""
    progress: ProgressView | None = None
    """The latest, while it starts."""
    last_activity: str | None = None
    """When its server was last used, as the Hub knows it; None: it is not ready, or that is not known."""


class BatchView(BaseModel):
    """Many launches that were asked for in one request."""

    id: str
    created: datetime
    caller: str
    counts: dict[str, int]
    """How many launches are in each state; ``refused`` were not accepted."""
    group: str | None
    """Whose members it was asked for."""
    items: list[BatchItemView]
    """In the order of the request. Launches that are no longer kept are None."""
    links: dict[Literal["self", "events"], str]


class BatchSummary(BaseModel):
    """A batch in a list."""

    id: str
    created: datetime
    caller: str
    group: str | None
    counts: dict[str, int]
    links: dict[Literal["self", "events"], str]


class BatchList(BaseModel):
    """A page of batches, the newest first."""

    items: list[BatchSummary]
    next: str | None
    """The cursor of the next page; None on the last one."""


class ExtendedItem(BaseModel):
    """What became of one launch that was to get another end."""

    launch: LaunchView
    error: ErrorView | None
    """Why it did not."""


class ExtendedList(BaseModel):
    """What became of all launches of a batch that had not ended."""

    items: list[ExtendedItem]


class LimitView(BaseModel):
    """A limit that holds for a launch."""

    key: str
    resource: Literal["servers", "cpu", "memory", "gpu"]
    most: float
    used: float
    """By what starts and runs now; where it says ``refuse``, by what waits, too."""
    when_full: Literal["queue", "refuse"]


class TemplateView(BaseModel):
    """A template."""

    description: str
    image: str | None
    vols: list[dict[str, Any]]
    cpu: Cpu | None
    memory: Memory | None
    gpu: Gpu | None
    lifetime: float | None
    env: list[str]
    """The names of its variables."""


class OptionsView(BaseModel):
    """What a caller may ask for."""

    username: str
    members: list[str] | None
    """Of the group that was asked for, of whom this is the first."""
    server_name: str
    rule: str
    request: dict[str, Any]
    """A JSON Schema for the body of ``POST launches``."""
    templates: dict[str, TemplateView]
    start_links: list[str]
    """Those of the templates that a launch link of the page starts at once."""
    limits: list[LimitView]


class CheckView(BaseModel):
    """One check of ``ready``."""

    ok: bool
    message: str


class ReadyView(BaseModel):
    """Whether launches can work."""

    ready: bool
    checks: dict[str, CheckView]


class HealthView(BaseModel):
    """Whether the process is alive."""

    status: Literal["ok"]


class ContainerView(BaseModel):
    """The answer of ``POST containers``."""

    image: str
    server_name: str
    token: str | None
    """None for browsers, which do not need it."""
    url: str
    username: str
    vols: list[dict[str, Any]]
    cpu: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    gpu: dict[str, Any] | None = None


class StatusView(BaseModel):
    """The answer of ``GET containers``."""

    last_activity: str | None
    name: str
    pending: str | None
    progress_url: str | None
    ready: bool
    started: str | None
    url: str | None
    state: dict[str, Any]


class PlanView(BaseModel):
    """What would become of a request (``dry_run``)."""

    decision: Literal["start", "queue", "refuse"]
    username: str | None = None
    rule: str | None
    """Which rule of the policy decided."""
    spec: LaunchSpec | None
    """What would be launched."""
    env: list[str] = []
    """The names of its environment variables; the values may be secrets of the template's."""
    lifetime: float | None = None
    position: int | None = None
    estimate: float | None = None
    limits: list[LimitView] = []
    error: ErrorView | None = None
    """Why it would be refused."""


_TIMES = ("ends", "expires", "not_before")
"""What is a time in the data of events."""


def moment(seconds: float | None) -> datetime | None:
    """A time, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def iso(seconds: float) -> str:
    """A time as text, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def event_data(event: LaunchEvent | BatchEvent) -> dict[str, Any]:
    """What is told of an event."""
    times = {name: iso(event.data[name]) for name in _TIMES if event.data.get(name) is not None}
    return {"time": iso(event.time), **event.data, **times}


def launch_view(record: LaunchRecord, *, base: str, url: str | None, token: str | None, **more: Any) -> LaunchView:
    """A launch as it is shown.

    Args:
        record: of the launch.
        base: path of the service.
        url: absolute, of its server.
        token: if this caller may have it.
        more: further fields.

    """
    running = record.state == "ready"
    return LaunchView(
        id=record.id,
        state=record.state,
        username=record.username,
        server_name=record.server_name,
        image=record.spec.image,
        template=record.template,
        batch=record.batch,
        caller=record.caller,
        rule=record.rule,
        not_before=moment(record.not_before),
        created=datetime.fromtimestamp(record.created, UTC),
        started=moment(record.started),
        ready=moment(record.ready),
        ended=moment(record.ended),
        lifetime=record.lifetime,
        expires=moment(record.ends) if running else None,
        url=url if running else None,
        token=token,
        token_expires=moment(record.token_expires) if token else None,
        error=ErrorView(**record.error) if record.error else None,
        ended_by=record.stop_by,
        links={"self": f"{base}launches/{record.id}", "events": f"{base}launches/{record.id}/events"},
        **more,
    )


def batch_summary(batch: BatchRecord, counts: dict[str, int], base: str) -> BatchSummary:
    """A batch without its launches.

    Args:
        batch: the batch.
        counts: of its launches by state.
        base: path of the service.

    """
    refused = sum("error" in item for item in batch.items)
    address = f"{base}batches/{batch.id}"
    return BatchSummary(
        id=batch.id,
        created=datetime.fromtimestamp(batch.created, UTC),
        caller=batch.caller,
        group=batch.group_name,
        counts={**counts, "refused": refused},
        links={"self": address, "events": f"{address}/events"},
    )
