"""Every error that a caller may see, in one tree.

::

    LauncherError
    ├── CallerError              the caller can do something about it (4xx)
    │   ├── InvalidRequest       400  a field is missing, malformed or unknown
    │   ├── Unauthenticated      401  no token, or one the Hub does not know
    │   ├── Forbidden            403  the caller's scopes do not reach this
    │   ├── PolicyDenied         403  the policy does not allow what was asked
    │   ├── NotFound             404  no such server, user or resource
    │   ├── ServerConflict       409  the server is running, starting or stopping already
    │   ├── KeyReused            422  the Idempotency-Key was used for another request
    │   ├── BatchRefused         400  one of the launches of a batch can't be accepted, and all are wanted
    │   ├── LimitReached         429  a limit of the policy leaves no room for it now
    │   └── MethodNotAllowed     405
    ├── Temporary                the same request may work later (503)
    │   ├── HubUnavailable            the Hub does not answer
    │   │   └── AnswerLost                 ... and may have done what it was asked
    │   ├── StoreUnavailable          the launcher's database does not answer
    │   ├── QueueFull                 too many launches are waiting
    │   └── ShuttingDown              this service is stopping
    ├── LaunchFailed             500  the server could not be started; ``reason`` says why
    ├── StopFailed               500  the server could not be stopped
    └── HubRefused               500  the Hub refuses this service's own token

An error carries what a caller may read (``message``, ``reason``, ``details``) and nothing else; what only the
operator should see belongs in the log or in ``__cause__``.
"""

from __future__ import annotations

from typing import Any


class LauncherError(Exception):
    """Something went wrong that has a name.

    Args:
        message: what happened, to what, and what to do; a sentence for a person.
        reason: the machine word; the class's own when not given.
        details: JSON-serialisable particulars.
        retry_after: seconds after which the same request may succeed.

    """

    status = 500
    reason = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.details = details or {}
        self.retry_after = retry_after

    def as_dict(self, status: int | None = None) -> dict[str, Any]:
        """The one JSON shape of an error, for an answer with the HTTP status ``status``."""
        return {
            "error": self.message,
            "reason": self.reason,
            "details": self.details,
            "status": status or self.status,
        }


class CallerError(LauncherError):
    """The caller can do something about it."""

    status = 400
    reason = "invalid_request"


class InvalidRequest(CallerError):
    """A field is missing, malformed or unknown; ``details["fields"]`` names each."""

    reason = "invalid_request"


class Unauthenticated(CallerError):
    """No token, or one that the Hub does not know."""

    status = 401
    reason = "unauthenticated"


class Forbidden(CallerError):
    """The caller's JupyterHub scopes do not reach this."""

    status = 403
    reason = "missing_scope"


class PolicyDenied(CallerError):
    """The policy does not let this caller ask for this."""

    status = 403
    reason = "policy_denied"


class NotFound(CallerError):
    """There is no such server, user or resource."""

    status = 404
    reason = "not_found"


class MethodNotAllowed(CallerError):
    """The resource exists and does not answer to this HTTP method."""

    status = 405
    reason = "method_not_allowed"


class ServerConflict(CallerError):
    """The server is not in a state that allows this: running, starting or stopping."""

    status = 409
    reason = "server_running"


class KeyReused(CallerError):
    """The Idempotency-Key was used for another request (draft-ietf-httpapi-idempotency-key-header)."""

    status = 422
    reason = "idempotency_key_reused"


class LimitReached(CallerError):
    """A limit of the policy leaves no room for this launch now."""

    status = 429
    reason = "limit_reached"


class BatchRefused(CallerError):
    """A batch of which all or none is wanted has launches that can't be accepted; ``details["items"]`` says why."""

    reason = "batch_refused"


class Temporary(LauncherError):
    """The same request may work later."""

    status = 503
    reason = "unavailable"


class HubUnavailable(Temporary):
    """JupyterHub does not answer."""

    reason = "hub_unavailable"


class AnswerLost(HubUnavailable):
    """The request may have reached JupyterHub, its answer did not come back."""


class StoreUnavailable(Temporary):
    """The launcher's database does not answer."""

    reason = "store_unavailable"


class QueueFull(Temporary):
    """Too many launches are waiting."""

    reason = "queue_full"


class ShuttingDown(Temporary):
    """This service is stopping."""

    reason = "shutting_down"


class LaunchFailed(LauncherError):
    """The server could not be started; ``reason`` is one of the words in docs/reasons.md."""

    reason = "start_failed"


class StopFailed(LauncherError):
    """The server could not be stopped."""

    reason = "stop_failed"


class HubRefused(LauncherError):
    """The Hub refuses this service's own token: its role lacks a scope, or the token is wrong."""

    reason = "hub_refused"


def restored(body: dict[str, Any]) -> LauncherError:
    """The error that `LauncherError.as_dict` made this of; its class has the same status and, if it can, reason."""
    tree = [LauncherError]
    for kind in tree:
        tree += [subclass for subclass in kind.__subclasses__() if subclass.__module__ == __name__]
    fitting = [kind for kind in tree if kind.status == body["status"]]
    named = [kind for kind in fitting if vars(kind).get("reason") == body["reason"]]
    kind = [*fitting[:1], *named][-1] if fitting else CallerError if body["status"] < 500 else LauncherError
    error = kind(body["error"], reason=body["reason"], details=body["details"])
    error.status = body["status"]
    return error
