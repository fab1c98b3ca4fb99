"""A job as Slurm sees it: from the JSON of ``squeue`` and of slurmrestd, which differs from version to version."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import LauncherError
from .errors import AnswerLost, JobRefused, SystemUnavailable
from .requests import Submission

FINAL = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
})  # fmt: skip
"""States that a job does not leave (https://slurm.schedmd.com/job_state_codes.html)."""
SUBMITTING, UNKNOWN, NOT_SUBMITTED = "SUBMITTING", "UNKNOWN", "NOT_SUBMITTED"
"""States of our own: Slurm has not answered yet; Slurm has forgotten the job; it never came there."""
MISSED = frozenset({UNKNOWN, NOT_SUBMITTED})
ENDED = FINAL | MISSED
UNREADABLE = ""
"""State of a job of which Slurm says something that can't be read."""
_NOT_THERE = ("unable to contact slurm controller", "connection refused")
_LOST = ("timed out", "timeout", "zero bytes were transmitted")
_GONE = ("invalid job id", "already completing or completed", "already finished")
_MOST_NODES = 10_000
_LOG = logging.getLogger("jhlauncher")


@dataclass(frozen=True)
class JobStatus:
    """How a job is."""

    id: int
    state: str
    reason: str
    """Why it is in that state; "": nothing is to be said."""
    account: str
    """Whose it is on the system."""
    marker: str
    nodes: str
    """Where it runs: a host list of Slurm's, ``node[01-04,07]``."""
    node: str | None
    """The one where its script runs."""
    exit_code: int | None = None
    signal: int | None = None
    """That ended it."""
    started: float | None = None
    ended: float | None = None

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL


class Slurm(Protocol):
    """What is needed of a system's Slurm."""

    async def submit(self, account: str, submission: Submission) -> int:
        """Submit a job; its number.

        Raises:
            JobRefused: Slurm does not take it.
            SystemUnavailable: nothing was submitted.
            AnswerLost: it may have been.

        """

    async def cancel(self, account: str, job: int) -> None:
        """Cancel a job; one that has ended, or is not known, is left as it is.

        Raises:
            SystemUnavailable: it may go on.

        """

    async def jobs(self, accounts: set[str]) -> list[JobStatus]:
        """The jobs of these accounts, perhaps of others, too: those that wait, run, or ended some minutes ago.

        Raises:
            SystemUnavailable: they can't be had.

        """


def refusal(words: str) -> LauncherError:
    """What it means that a submission ended with these words: it is refused, was not sent, or may be there."""
    said = words.lower()
    if any(each in said for each in _LOST):
        return AnswerLost("Slurm did not answer in time. It may have the job.")
    if any(each in said for each in _NOT_THERE):
        return SystemUnavailable("Slurm does not answer.")
    return JobRefused(f"Slurm does not take the job: {words[:500]}")


def is_gone(words: str) -> bool:
    """Whether Slurm's words say that there is nothing to cancel."""
    return any(each in words.lower() for each in _GONE)


def parse_jobs(text: str) -> list[JobStatus]:
    """The jobs in an answer.

    Raises:
        SystemUnavailable: it is not what Slurm says.

    """
    try:
        document = json.loads(text)
        jobs = document["jobs"]
        if document.get("errors") and not jobs:
            raise SystemUnavailable("Slurm does not say how jobs are.")
        found = [status for job in jobs if (status := _status_of(job))]
        if jobs and all(status.state == UNREADABLE for status in found):
            raise ValueError("of no job is said what is needed")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemUnavailable("Slurm's answer is not its JSON.") from error


def _status_of(job: Any) -> JobStatus | None:
    """How a job is; one that can't be read, which may be anybody's, must not hide the others."""
    try:
        return _status(job)
    except Exception as error:
        _LOG.debug("What Slurm says of a job can't be read (%s): %.300r", type(error).__name__, job)
        number = job.get("job_id") if isinstance(job, dict) else None
        return JobStatus(number, UNREADABLE, "", "", "", "", None) if isinstance(number, int) else None


def _status(job: dict[str, Any]) -> JobStatus:
    state = job["job_state"]  # since 23.02 a list, with flags like COMPLETING behind
    state = str((state or ["PENDING"])[0] if isinstance(state, list) else state)
    code, signal = _exit(job.get("exit_code")) if state in FINAL else (None, None)
    nodes = str(job.get("nodes") or "")
    reason = str(job.get("state_reason") or "")
    described = str(job.get("state_description") or "")
    return JobStatus(
        id=int(job["job_id"]),
        state=state,
        reason=described or ("" if reason == "None" else reason),
        account=str(job.get("user_name") or ""),
        marker=str(job.get("comment") or ""),
        nodes=nodes,
        node=str(job.get("batch_host") or "") or next(hosts(nodes), None),
        exit_code=code,
        signal=signal,
        started=_time(job.get("start_time")) if nodes else None,  # of a job that waits, it is a guess
        ended=_time(job.get("end_time")) if state in FINAL else None,
    )


def _plain(value: Any) -> Any:
    """The number in ``{"set": true, "infinite": false, "number": 3}``, as newer versions write it."""
    if isinstance(value, dict):
        return value.get("number") if value.get("set", True) and not value.get("infinite") else None
    return value


def _time(value: Any) -> float | None:
    seconds = _plain(value)
    return float(seconds) if seconds else None


def _exit(value: Any) -> tuple[int | None, int | None]:
    """Exit code and signal: of the number that wait(2) gives, or as newer versions write them."""
    if isinstance(value, dict) and ("return_code" in value or "signal" in value):
        signal = value.get("signal") or {}
        number = _plain(signal.get("signal_id", signal.get("id"))) or None
        return (None if number else _plain(value.get("return_code"))), number
    status = _plain(value)
    if not isinstance(status, int) or not 0 <= status <= 0xFFFF:
        return None, None
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def hosts(text: str) -> Iterator[str]:
    """The hosts of a host list, ``a,node[01-03,07]``, in order (https://slurm.schedmd.com/scontrol.html, hostlist)."""
    count = 0
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        for host in _expanded(part):
            count += 1
            if count > _MOST_NODES:
                return
            yield host


def _expanded(text: str) -> Iterator[str]:
    before, bracket, rest = text.partition("[")
    if not bracket:
        yield before
        return
    inside, _, after = rest.partition("]")
    for piece in inside.split(","):
        first, _, last = piece.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for tail in _expanded(after):
                yield f"{before}{number:0{len(first)}}{tail}"
