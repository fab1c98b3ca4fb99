"""What is answered about user jobs, as OpenAPI describes it, too."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from ..handlers.views import moment
from .rows import UserJob


class JobView(BaseModel):
    """A job: what was asked of Slurm, and what Slurm says."""

    id: int | None
    """Slurm's number; None as long as Slurm has not answered."""
    state: str
    """Slurm's, in its words (https://slurm.schedmd.com/job_state_codes.html), SUBMITTING, NOT_SUBMITTED or UNKNOWN."""
    reason: str
    """Why it is in that state, in Slurm's words; empty if nothing is to be said."""
    exit_code: int | None
    signal: int | None
    """That ended it."""
    node: str | None
    """Where its script runs."""
    started: datetime | None
    ended: datetime | None
    name: str
    partition: str
    project: str | None
    time: int
    """Its limit, in seconds."""
    nodes: int
    cpus: int
    """On each node, as memory and gpus are."""
    memory: int | None
    """Bytes; None: Slurm's default."""
    gpus: int
    working_directory: str
    output: str
    """The file with what it prints."""


class UserJobView(BaseModel):
    """A forward to a node, or a job, which may have forwards."""

    service: str
    hostname: str
    """The system."""
    target_node: str | None
    ports: dict[str, int]
    """By the port at which it is wanted, the one at the node."""
    addresses: dict[str, str]
    """``HOST:PORT`` where each of them is reached; empty when it has ended."""
    forwarding: bool
    """Whether what comes there goes to the node now."""
    problem: str
    """What is in the way; empty if nothing is."""
    created: datetime
    job: JobView | None
    """None for a forward alone."""


class OneUserJobView(UserJobView):
    """One that was asked for by its name."""

    tail: str | None = None
    """The end of the job's output, if it was asked for; None as long as there is no file."""


class AllowedView(BaseModel):
    """The most that a job may ask for; None: it can't be chosen."""

    partitions: list[str]
    """The first is the default."""
    projects: list[str]
    time: int
    """Seconds."""
    nodes: int
    cpus: int
    memory: int | None
    """Bytes."""
    gpus: int


class SystemView(BaseModel):
    """A system where the caller has an account."""

    name: str
    account: str
    jobs: bool
    """Whether there are jobs, and not forwards alone."""
    forwards: bool
    """Whether something can be forwarded, and output be told."""
    allowed: AllowedView
    max_jobs: int
    """That the caller may have at once."""
    max_ports: int
    problem: str
    """Why it is not known how its jobs are; empty if it is."""


def job_view(job: UserJob) -> JobView | None:
    """A user job's job."""
    if job.job is None:
        return None
    output = job.job["output"].replace("%j", str(job.job_id)) if job.job_id else job.job["output"]
    asked: dict[str, Any] = {**job.job, "output": output}
    return JobView(
        id=job.job_id,
        state=str(job.state),
        reason=job.reason,
        exit_code=job.exit_code,
        signal=job.signal,
        node=job.target_node,
        started=moment(job.started),
        ended=moment(job.ended),
        **asked,
    )
