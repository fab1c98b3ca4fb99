"""What the service answers, as a client sees it. Fields that a newer service adds are kept, not refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..errors import Temporary
from ..records import FINAL


class Unreachable(Temporary):
    """The launcher can't be reached, or its answer was lost on the way."""

    reason = "unreachable"


class Launch(BaseModel):
    """A launch, as it was when the service answered."""

    model_config = ConfigDict(extra="allow")

    id: str
    state: str
    """queued, starting, ready, failed, cancelled, stopped or expired; perhaps others, of a newer service."""
    username: str
    server_name: str
    image: str
    template: str | None = None
    batch: str | None = None
    caller: str = ""
    """Who asked: user:NAME or service:NAME."""
    position: int | None = None
    """In the queue; 1 is next."""
    estimate: float | None = None
    """Seconds until its turn, if that is known."""
    not_before: datetime | None = None
    """When it begins to wait for its turn, where that was put off."""
    created: datetime
    started: datetime | None = None
    ready: datetime | None = None
    ended: datetime | None = None
    lifetime: float | None = None
    """Seconds from ready; None: until somebody stops it."""
    expires: datetime | None = None
    """When the server is stopped."""
    url: str | None = None
    """Of the server, while it is ready."""
    token: str | None = None
    """Opens this server and nothing else; for those who may start it, while it runs."""
    token_expires: datetime | None = None
    error: dict[str, Any] | None = None
    """Why it failed: `error`, `reason`, `details`, `status`."""
    ended_by: str | None = None

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL

    def __repr__(self) -> str:
        """Without the token, since notebooks show what a cell has as its value."""
        return f"<Launch {self.id} of {self.username}/{self.server_name}: {self.state}>"

    __str__ = __repr__


class SlurmJob(BaseModel):
    """The job of a user job: how Slurm says that it is, and what was asked for."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: int | None = None
    """Slurm's number; None: Slurm has not answered yet."""
    state: str
    """Slurm's, or SUBMITTING, NOT_SUBMITTED or UNKNOWN."""
    reason: str = ""
    """Why it is in that state."""
    node: str | None = None
    """Where it runs."""
    exit_code: int | None = None
    signal: int | None = None
    """That ended it."""
    started: datetime | None = None
    ended: datetime | None = None
    name: str = ""
    partition: str = ""
    time: int | None = None
    """Seconds."""
    nodes: int = 1
    cpus: int = 1
    """On each node, as memory and GPUs."""
    memory: int | None = None
    """Bytes; None: as Slurm has it."""
    gpus: int = 0
    project: str | None = None
    working_directory: str = ""
    output: str = ""
    """The file with what it prints."""


class UserJob(BaseModel):
    """A job on a system, or a forward to a node, as it was when the service answered."""

    model_config = ConfigDict(extra="allow", frozen=True)

    service: str
    """What it is called."""
    hostname: str
    """The system."""
    target_node: str | None = None
    """Where the job runs, or what is forwarded to."""
    ports: dict[int, int] = {}
    """By the port at which it is wanted, the one at the node."""
    addresses: dict[int, str] = {}
    """By the port at which it is wanted, where that is: ``HOST:PORT``."""
    forwarding: bool = False
    """Whether what comes to these addresses goes to the node now."""
    problem: str = ""
    """What is in the way."""
    created: datetime
    job: SlurmJob | None = None
    """None: there is a forward alone."""
    tail: str | None = None
    """The end of its job's output, if that was asked for."""

    @property
    def state(self) -> str:
        """Of its job; empty for a forward alone."""
        return self.job.state if self.job else ""

    @property
    def final(self) -> bool:
        """Whether its job has ended; a forward alone never does."""
        return self.job is not None and self.job.ended is not None

    def __repr__(self) -> str:
        """In a line, since notebooks show what a cell has as its value."""
        return f"<UserJob {self.service} on {self.hostname}: {self.state or f'forward to {self.target_node}'}>"

    __str__ = __repr__


@dataclass(frozen=True)
class Event:
    """Something that happened to a launch."""

    name: str
    """A state, ``progress``, ``warning`` or ``extended``."""
    data: dict[str, Any] = field(repr=False)
    """All that the service says of it."""
    id: int = 0
    """1 for the first of its launch; 0 for a passing one, such as the position in the queue."""
    launch: Launch | None = None
    """With ``ready``: the launch, with the server's URL and token."""

    @property
    def message(self) -> str:
        """For a person."""
        return str(self.data.get("message") or self.data.get("error") or self.name)

    @property
    def progress(self) -> int | None:
        """Per cent, of ``progress`` and ``ready``."""
        return 100 if self.name == "ready" else self.data.get("progress")

    @property
    def final(self) -> bool:
        """Nothing follows."""
        return self.name in FINAL
