"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, in a word."""
    status: Status
    message: str
    """What was found, for a person."""
    remedy: str = ""
    """What to do."""


def good(check: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Launches work, but perhaps not as somebody expects."""
    return Finding(check, "warning", message, remedy)


def problem(check: str, message: str, remedy: str) -> Finding:
    """Launches, or some of them, won't work."""
    return Finding(check, "problem", message, remedy)


def skipped(check: str, message: str, remedy: str = "") -> Finding:
    """It could not be looked at from here."""
    return Finding(check, "skipped", message, remedy)
