"""A launch as it is kept: what was asked, where it is, and what has happened to it.

::

    queued -> starting -> ready -> stopped | expired
       |         |
       v         v
    cancelled | expired | failed
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from .models import LaunchSpec

State = Literal["queued", "starting", "ready", "failed", "cancelled", "stopped", "expired"]
"""Where a launch is. ``expired``: its time was over, in the queue or as a running server."""
EXTENDED = "extended"
"""The event of a launch whose time was changed."""

ACTIVE: tuple[State, ...] = ("queued", "starting", "ready")
STATES: tuple[State, ...] = get_args(State)
FINAL: tuple[State, ...] = tuple(state for state in STATES if state not in ACTIVE)

Resource = Literal["servers", "cpu", "memory", "gpu"]
Needs = dict[Resource, float]
"""What a launch takes: servers, CPUs, bytes of memory, GPUs."""


class Limit(NamedTuple):
    """The most that the launches of one key may have together."""

    key: str
    """``user:alice``, ``group:course-1`` or ``all``."""
    resource: Resource
    """Servers, cores, bytes, devices."""
    most: float
    wait: bool
    """Whether a launch without room waits in the queue, or is refused."""

    @property
    def place(self) -> tuple[str, Resource]:
        """What it limits."""
        return self.key, self.resource


class LaunchEvent(NamedTuple):
    """Something that happened to a launch."""

    number: int
    """1 for the first; 0 for one that is not kept."""
    time: float
    """Seconds since 1970."""
    name: str
    """A `State`, ``progress``, ``warning`` or ``extended``."""
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """Nothing follows."""
        return self.name in FINAL


def new_id() -> str:
    """An id of a launch, a batch or a replica; not to be guessed."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """What is kept of one launch. ``seq`` and ``events`` are the store's to set."""

    caller: str
    """Who asked, as ``user:NAME`` or ``service:NAME``."""
    username: str
    server_name: str
    spec: LaunchSpec
    """Without ``env``."""
    rule: str
    """Of the policy."""
    share: str
    """Launches of one share are started first come, first served; shares take turns."""
    request: str
    """A keyed hash of what was asked."""
    weight: float = 1
    limits: list[Limit] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """What it counts for."""
    env: str | None = None
    """Sealed; None once the launch has ended."""
    template: str | None = None
    batch: str | None = None
    idempotency_key: str | None = None
    lifetime: float | None = None
    """Seconds from ready; None: until somebody stops it."""
    id: str = field(default_factory=new_id)
    seq: int = 0
    state: State = "queued"
    owner: str | None = None
    """The replica that works on it."""
    stop_by: str | None = None
    """Who asked for its end."""
    error: dict[str, Any] | None = None
    """Why it failed or ended."""
    path: str | None = None
    """The server's URL path."""
    full_url: str | None = None
    token: str | None = None
    """Sealed."""
    token_expires: float | None = None
    events: int = 0
    """How many are kept."""
    created: float = field(default_factory=time.time)
    started: float | None = None
    ready: float | None = None
    ended: float | None = None
    not_before: float | None = None
    """When it begins to wait for its turn; None: when it was accepted."""
    due: float | None = None
    """When something must be done about it: it begins to wait, expires in the queue, is warned, or its time is over."""
    wait_until: float | None = None
    """When it expires in the queue."""
    warned: float | None = None

    @property
    def final(self) -> bool:
        """Nothing will happen to it any more."""
        return self.state in FINAL

    @property
    def waits_since(self) -> float:
        """When it began to wait for its turn, or will."""
        return max(self.created, self.not_before or 0)

    @property
    def ends(self) -> float | None:
        """When the server's time is over; None: it is not up yet, or there is no end."""
        return self.ready + self.lifetime if self.ready and self.lifetime else None

    @property
    def needs(self) -> Needs:
        """What it takes of the limits."""
        return needs_of(self.spec)


def needs_of(spec: LaunchSpec) -> Needs:
    """What a launch takes of the limits; of what has a request and a limit, the limit."""

    def most(value: Any) -> float:
        return max((v for v in (value.request, value.limit) if v is not None), default=0) if value else 0

    return {"servers": 1, "cpu": most(spec.cpu), "memory": most(spec.memory), "gpu": most(spec.gpu)}


class BatchEvent(NamedTuple):
    """A launch of a batch came to another state, or its time was changed."""

    seq: int
    """Rises over all launches."""
    time: float
    launch: str
    username: str
    server_name: str
    name: str
    """A `State`, or ``extended``."""
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """What is kept of one request for many launches."""

    caller: str
    request: str
    """A keyed hash of what was asked."""
    group_name: str | None = None
    """Whose members it was asked for."""
    idempotency_key: str | None = None
    id: str = field(default_factory=new_id)
    created: float = field(default_factory=time.time)
    items: list[dict[str, Any]] = field(default_factory=list)
    """For each that was asked for, in order: ``{"launch": id}`` or ``{"error": ...}``, and its ``username``."""


def title_of(user: str, server: str) -> str:
    """The server at the beginning of a sentence; `name_of` is for its middle."""
    return "T" + name_of(user, server)[1:]


def name_of(user: str, server: str) -> str:
    """The server in the middle of a sentence."""
    return f"the server {server!r} of {user}" if server else f"the server of {user}"
