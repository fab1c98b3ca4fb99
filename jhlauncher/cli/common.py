"""What the commands share: exit status, errors of usage, and the body of a launch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..client import CallerError, LauncherClient, LauncherError, LaunchFailed
from .output import Output

DONE, FAILED, USAGE, REFUSED, UNAVAILABLE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141
STOPPING = 300
"""Seconds for a server to stop."""

Command = Callable[[LauncherClient, Namespace, Output], Awaitable[int]]
"""What a command does; the exit status."""


class Usage(ValueError):
    """What was asked for can't be had with these arguments."""


def status_of(error: LauncherError | ValueError) -> int:
    """The exit status for an error."""
    if isinstance(error, ValueError):
        return USAGE
    if isinstance(error, LaunchFailed):
        return FAILED
    return REFUSED if isinstance(error, CallerError) else UNAVAILABLE


def launch_body(args: Namespace) -> dict[str, Any]:
    """What is asked for, but for whom."""
    limits = {
        name: {"limit": getattr(args, name)} for name in ("cpu", "memory", "gpu") if getattr(args, name) is not None
    }
    names = ("template", "image", "server_name", "lifetime", "queue_timeout")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    lists = {"vols": args.volume, "env": dict(args.env or [])}
    return {**given, **limits, **{name: value for name, value in lists.items() if value}}


def told_apart(answers: Iterable[Any]) -> tuple[list[Any], list[LauncherError]]:
    """What was asked for many times at once: results, and what was refused.

    Raises:
        BaseException: an answer that is neither, a bug.

    """
    results, refused = [], []
    for answer in answers:
        if isinstance(answer, LauncherError):
            refused.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            results.append(answer)
    return results, refused
