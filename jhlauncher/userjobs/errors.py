"""What can go wrong with a system that jobs run on, beside `jhlauncher.errors`."""

from __future__ import annotations

from ..errors import CallerError, Temporary


class MissingKey(CallerError):
    """The request lacks a key; the K8s Manager's clients know the body ``["Missing key: KEY"]``."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Missing key: {key}")


class NoAccount(CallerError):
    """Nobody has said which account the caller has on the system."""

    status = 403
    reason = "no_account"


class JobConflict(CallerError):
    """There is one of that name, or it is not in a state for this."""

    status = 409
    reason = "userjob_exists"


class JobRefused(CallerError):
    """Slurm does not take the job; the text has its words."""

    reason = "job_refused"


class SystemUnavailable(Temporary):
    """The system, or its Slurm, can't be reached; nothing was done there."""

    reason = "system_unavailable"


class AnswerLost(SystemUnavailable):
    """The system may have done what it was asked: its answer did not come."""
