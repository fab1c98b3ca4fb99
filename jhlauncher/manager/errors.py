"""What can go wrong for a client of the manager, beside `jhlauncher.errors`."""

from __future__ import annotations

from ..errors import CallerError, LauncherError, NotFound


class BadInput(CallerError):
    """The request is not what it must be.

    Args:
        body: of the answer: ``{"field": ["problem"]}``, or ``["problem"]`` where no one field is to blame.

    """

    def __init__(self, body: dict[str, list[str]] | list[str]) -> None:
        super().__init__(str(body))
        self.body = body


class NotJson(CallerError):
    """The body is not JSON."""


class WrongMediaType(CallerError):
    """The body is of another kind."""

    status = 415


class NoSuchService(NotFound):
    """The credential has no such service; another's is as unknown."""

    def __init__(self) -> None:
        super().__init__("Not found.")


class StartRefused(LauncherError):
    """A service can't be started, or could not be; the Hub shows its user both texts.

    Args:
        error: what happened, in a few words; HTML.
        detailed: why, and what to do about it; HTML.

    """

    reason = "start_failed"

    def __init__(self, error: str, detailed: str) -> None:
        super().__init__(error)
        self.detailed = detailed


class BadDescription(LauncherError):
    """A service's description is missing or wrong; the text says where, for who writes descriptions."""


class HomeFailed(LauncherError):
    """A user's home can't be made; the text says why."""


class KubernetesRefused(LauncherError):
    """Kubernetes did not do what it was asked.

    Args:
        message: its own words.
        code: the HTTP status; 0: it could not be asked.

    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
