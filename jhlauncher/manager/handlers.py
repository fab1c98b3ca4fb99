"""HTTP of the manager: ``api/services``, ``api/logs`` and ``api/health``, in the words of the K8s Manager's clients."""

from __future__ import annotations

from typing import Any

from tornado.web import RequestHandler

from ..errors import Forbidden, LauncherError, MethodNotAllowed, NotFound, Unauthenticated
from ..handlers.base import BaseHandler
from ..userjobs.handlers import AllUserJobs, OfHubUsers, OneUserJob, SystemsOfOwner, UserJobsHandler
from ..userjobs.systems import Owner
from . import requests
from .credentials import LOGS, NOT_PERMITTED, SERVICES, Client, Credentials
from .errors import BadInput, NotJson, StartRefused, WrongMediaType
from .parts import ManagerParts
from .rendering import Json
from .rows import Row


class ManagerHandler(BaseHandler):
    """For credentials of a group."""

    group: str
    """That a credential needs."""
    challenge = 'Basic realm="api"'
    caller: Client

    @property
    def manager(self) -> ManagerParts:
        """The parts of the manager."""
        parts: ManagerParts = self.settings["manager"]
        return parts

    async def admit(self) -> None:
        """Let a credential in that has the group.

        Raises:
            Unauthenticated: nobody that is known.
            Forbidden: it lacks the group, or at the Hub the scope.

        """
        self.caller = await self.manager.credentials.identify(self.request.headers.get("Authorization", ""))
        if not self.caller.may(self.group, str(self.request.method)):
            raise Forbidden(NOT_PERMITTED)

    def json(self) -> Any:
        """The request's body.

        Raises:
            InvalidRequest: it is too large.
            WrongMediaType, NotJson: it is not JSON.

        """
        return requests.parse_json(self.received(), self.request.headers.get("Content-Type", ""))

    def error_body(self, error: LauncherError) -> Any:
        """An error as the clients of the K8s Manager know it."""
        if isinstance(error, BadInput):
            return error.body
        if isinstance(error, MethodNotAllowed):
            return {"detail": f'Method "{self.request.method}" not allowed.'}
        if isinstance(error, StartRefused):
            return {"error": error.message, "detailed_error": error.detailed}
        if isinstance(error, Unauthenticated | Forbidden | NotFound | NotJson | WrongMediaType):
            return {"detail": error.message}
        return {"error": error.message, "detailed_error": ""}


class HealthHandler(ManagerHandler):
    """``api/health``: for anybody."""

    needs_caller = False

    def get(self) -> None:
        """Nothing, with 200."""
        self.finish()


class UnknownHandler(ManagerHandler):
    """Any other address."""

    needs_caller = False

    async def prepare(self) -> None:
        """Answer 404 to every method."""
        raise NotFound("Not found.")


class ServicesHandler(ManagerHandler):
    """``api/services``."""

    group = SERVICES

    async def get(self) -> None:
        """All services of the credential."""
        self.answer([row.as_dict() for row in await self.manager.services.list(self.caller.credential)])

    async def post(self) -> None:
        """Start a service; answers when all its objects are made."""
        headers = self.request.headers
        variables = self.manager.secrets.variables(headers)
        request = requests.start_request(self.json(), self.caller.credential, headers.get("uuidcode"), variables)
        row = await self.interruptible(self.manager.services.start(request))
        self.answer(row.as_dict(), 201)


class OneServiceHandler(ManagerHandler):
    """``api/services/NAME``."""

    group = SERVICES

    async def get(self, name: str) -> None:
        """A service, and whether it runs."""
        self.answer(await self._model(await self.manager.services.find(self.caller.credential, name)))

    async def delete(self, name: str) -> None:
        """Stop a service."""
        await self.interruptible(self.manager.services.stop(self.caller.credential, name))
        self.nothing()

    async def patch(self, name: str) -> None:
        """Apply what the description has for that."""
        row = await self.interruptible(self.manager.services.update(self.caller.credential, name))
        self.answer(await self._model(row))

    put = patch

    async def _model(self, row: Row) -> Json:
        running, details = await self.manager.services.status(row)
        model = {**row.as_dict(), "running": running}
        return {**model, "details": details._asdict()} if details else model


class LogHandlersHandler(ManagerHandler):
    """``api/logs/handler``."""

    group = LOGS

    async def get(self) -> None:
        """All log handlers."""
        self.answer(await self.manager.logs.list())

    async def post(self) -> None:
        """Add one."""
        body = _handler_body(self.json())
        if "handler" not in body:
            raise BadInput({"handler": ["This field is required."]})
        self.answer(await self.manager.logs.create(body["handler"], body.get("configuration", {})), 201)


class OneLogHandlerHandler(ManagerHandler):
    """``api/logs/handler/NAME``."""

    group = LOGS

    async def get(self, name: str) -> None:
        """A log handler."""
        self.answer(await self.manager.logs.get(name))

    async def patch(self, name: str) -> None:
        """Change what is named, and leave the rest as it is."""
        body = _handler_body(self.json())
        if body.get("handler", name) != name:
            raise BadInput({"handler": [f"The path names {name}."]})
        self.answer(await self.manager.logs.change(name, body.get("configuration", {})))

    put = patch

    async def delete(self, name: str) -> None:
        """Remove it."""
        await self.manager.logs.remove(name)
        self.nothing()


class LogTestHandler(ManagerHandler):
    """``api/logs/logtest``."""

    group = LOGS

    def get(self) -> None:
        """Log something at each level."""
        self.manager.logs.test()
        self.finish()


class OfCredentials(UserJobsHandler, ManagerHandler):
    """User jobs of credentials: a Hub says which of its users it is for, or has its own."""

    group = SERVICES

    def owner(self, username: str | None) -> Owner:
        """A user of the credential's, or the credential itself."""
        return Owner(self.caller.credential, username or "")


class UserJobsOfCredentials(OfCredentials, AllUserJobs):
    """``api/userjobs``."""


class OneUserJobOfCredentials(OfCredentials, OneUserJob):
    """``api/userjobs/NAME``."""


class SystemsOfCredentials(OfCredentials, SystemsOfOwner):
    """``api/systems``."""


class OfEither(OfHubUsers):
    """Beside the launcher: for users of its Hub, and for credentials."""

    client: Client | None = None

    async def admit(self) -> None:
        """Let in whom either lets in.

        Raises:
            Unauthenticated, Forbidden: nobody who is served here.

        """
        credentials: Credentials = self.settings["manager"].credentials
        header = self.request.headers.get("Authorization", "")
        if not credentials.has(header):
            await super().admit()
            return
        self.client = await credentials.identify(header)
        if not self.client.may(SERVICES, str(self.request.method)):
            raise Forbidden(NOT_PERMITTED)

    def owner(self, username: str | None) -> Owner:
        """The user who calls, or one of the credential's."""
        return Owner(self.client.credential, username or "") if self.client else super().owner(username)


class SystemsOfEither(OfEither, SystemsOfOwner):
    """``api/systems``."""


class UserJobsOfEither(OfEither, AllUserJobs):
    """``api/userjobs``."""


class OneUserJobOfEither(OfEither, OneUserJob):
    """``api/userjobs/NAME``."""


def _handler_body(body: Any) -> Json:
    if not isinstance(body, dict):
        raise BadInput(["Input data must be an object"])
    unknown = body.keys() - {"handler", "configuration"}
    if unknown:
        raise BadInput({min(unknown): ["Unknown field."]})
    return body


Routes = list[tuple[str, type[RequestHandler]]]
_ALWAYS: Routes = [
    (r"api/health/?", HealthHandler),
    (r"api/services/?", ServicesHandler),
    (r"api/services/([^/]+)/?", OneServiceHandler),
    (r"api/logs/handler/?", LogHandlersHandler),
    (r"api/logs/handler/([^/]+)/?", OneLogHandlerHandler),
    (r"api/logs/logtest/?", LogTestHandler),
]
_UNKNOWN: Routes = [(r"api/.*", UnknownHandler)]
ROUTES: Routes = [
    *_ALWAYS,
    (r"api/systems/?", SystemsOfCredentials),
    (r"api/userjobs/?", UserJobsOfCredentials),
    (r"api/userjobs/([^/]+)/?", OneUserJobOfCredentials),
    *_UNKNOWN,
]
"""Patterns below the prefix."""
BESIDE_LAUNCHER: Routes = [
    *_ALWAYS,
    (r"api/systems/?", SystemsOfEither),
    (r"api/userjobs/?", UserJobsOfEither),
    (r"api/userjobs/([^/]+)/?", OneUserJobOfEither),
    *_UNKNOWN,
]
"""Patterns below the launcher's prefix."""
