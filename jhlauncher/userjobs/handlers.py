"""``api/userjobs``: the K8s Manager's resource, with jobs; here for users with a token of JupyterHub's."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from tornado.web import RequestHandler

from ..access import READ, START, STOP
from ..errors import Forbidden, InvalidRequest, LauncherError, NotFound, ShuttingDown, Unauthenticated
from ..handlers.base import BaseHandler
from ..handlers.callers import HubHandler
from ..handlers.streams import EventStream
from ..models import Caller, Model, NoQuery, UserName, parse, query_flag, query_integer
from .errors import MissingKey, NoAccount, SystemUnavailable
from .requests import NAME, UserJobRequest, check_keys
from .systems import Owner
from .userjobs import UserJobs
from .views import OneUserJobView

JOBS_SCOPE = "custom:jhlauncher:jobs"
"""JupyterHub's custom scope for tokens that may have user jobs and nothing else."""
_SCOPES = {"POST": START, "DELETE": STOP, "GET": READ}


class ListQuery(Model):
    """The query of ``GET api/userjobs`` and ``api/systems``."""

    username: UserName | None = None
    """Whose; for credentials of the K8s Manager only."""


class RemoveQuery(ListQuery):
    """The query of ``DELETE api/userjobs/NAME``."""

    keep: Annotated[bool, BeforeValidator(query_flag)] = False
    """Whether a job is only cancelled, and can still be looked at."""


class OneQuery(ListQuery):
    """The query of ``GET api/userjobs/NAME``."""

    tail: Annotated[int, Field(ge=0, le=1_048_576), BeforeValidator(query_integer)] = 0
    """Bytes of the end of the job's output that are wanted, too."""


class UserJobsHandler(BaseHandler):
    """What the handlers share, whoever calls."""

    _stream: EventStream | None = None

    @property
    def jobs(self) -> UserJobs:
        """What does the work."""
        jobs: UserJobs = self.settings["userjobs"]
        return jobs

    def owner(self, username: str | None) -> Owner:
        """Whose user jobs it is about.

        Raises:
            Forbidden: the caller may not act for them.

        """
        raise NotImplementedError

    def error_body(self, error: LauncherError) -> Any:
        """Our one shape of errors, with the fields of the K8s Manager's beside it."""
        if isinstance(error, MissingKey):
            return [error.message]
        detail = "Not found." if isinstance(error, NotFound) else error.message
        return {**error.as_dict(self.status_of(error)), "detail": detail, "detailed_error": ""}

    def on_finish(self) -> None:
        """Forget the stream, however the request ended."""
        super().on_finish()
        if self._stream:
            self._stream.close()

    async def follow(self, views: AsyncGenerator[Any, None], name: str) -> None:
        """Answer with a stream: an event of this name for each view."""
        self.endless = True
        try:
            await self.interruptible(self._send(views, name))
        except (ShuttingDown, Unauthenticated, Forbidden):  # who comes back is told why
            if self._stream is None:
                raise
        if self._stream:
            self._stream.end()

    async def _send(self, views: AsyncGenerator[Any, None], name: str) -> None:
        async with aclosing(views):
            async for view in views:
                if self._stream:
                    await self.admit()  # it may be long since
                self._stream = self._stream or EventStream(self, self.serving.keepalive)
                await self._stream.send(_plain(view), name=name)

    @property
    def _wants_events(self) -> bool:
        return "text/event-stream" in self.request.headers.get("Accept", "")

    # -- all

    async def list_all(self) -> None:
        """All of the owner's, the newest first; with ``Accept: text/event-stream``, whenever that changes."""
        owner = self.owner(self.query(ListQuery).username)
        if self._wants_events:
            await self.follow(self.jobs.follow_all(owner), "userjobs")
            return
        self.answer(_plain([self.jobs.view(job) for job in await self.jobs.all_of(owner)]))

    async def create(self, key: str | None) -> None:
        """Answer with a forward that is made, or a job that is submitted."""
        self.query(NoQuery)
        body = self.received()
        try:
            check_keys(json.loads(body))
        except (ValueError, RecursionError):
            raise InvalidRequest("The body is not JSON.") from None
        request = parse(UserJobRequest, body)
        job, new = await self.interruptible(self.jobs.create(self.owner(request.username), request, key))
        self.answer(_plain(self.jobs.view(job)), 201 if new else 200)

    def tell_systems(self) -> None:
        """Answer with the systems where the owner has an account."""
        self.answer(_plain(self.jobs.systems_of(self.owner(self.query(ListQuery).username))))

    # -- one

    async def show(self, name: str) -> None:
        """Answer with one; with ``Accept: text/event-stream``, each time that it changes."""
        query = self.query(OneQuery)
        owner = self.owner(query.username)
        _check_name(name)
        if self._wants_events:
            await self.follow(self.jobs.follow(owner, name), "userjob")
            return
        job = await self.jobs.find(owner, name)
        view = OneUserJobView(**dict(self.jobs.view(job)))
        try:
            view.tail = await self.interruptible(self.jobs.tail(job, query.tail)) if query.tail else None
        except (SystemUnavailable, Forbidden, NoAccount) as error:  # how it is can be told all the same
            view.problem = error.message
        self.answer(_plain(view))

    async def remove(self, name: str) -> None:
        """Cancel one, and forget it."""
        query = self.query(RemoveQuery)
        _check_name(name)
        await self.interruptible(self.jobs.remove(self.owner(query.username), name, query.keep))
        self.nothing()


def _check_name(name: str) -> None:
    """Refuse what nothing is called.

    Raises:
        NotFound: it is no name of a user job.

    """
    if not NAME.fullmatch(name):
        raise NotFound("You have no such user job.", reason="userjob_not_found")


def _plain(views: BaseModel | list[Any]) -> Any:
    """One view, or many, as JSON has it."""
    return [_plain(view) for view in views] if isinstance(views, list) else views.model_dump(mode="json")


class AllUserJobs(UserJobsHandler):
    """All of the owner's."""

    async def get(self) -> None:
        """Tell them."""
        await self.list_all()

    async def post(self) -> None:
        """Forward to a node, or submit a job."""
        await self.create(self.idempotency_key())


class OneUserJob(UserJobsHandler):
    """One of the owner's."""

    async def get(self, name: str) -> None:
        """Tell it."""
        await self.show(name)

    async def delete(self, name: str) -> None:
        """Cancel it, and forget it."""
        await self.remove(name)


class SystemsOfOwner(UserJobsHandler):
    """The systems where the owner has an account."""

    async def get(self) -> None:
        """Tell them."""
        self.tell_systems()


class OfHubUsers(UserJobsHandler, HubHandler):
    """For users with a token of JupyterHub's: each has their own."""

    async def admit(self) -> None:
        """Let users in whose token may start, stop or read their servers, or is one for user jobs.

        Raises:
            Unauthenticated, Forbidden: nobody who is served here.

        """
        await super().admit()
        check_scopes(self.caller, str(self.request.method))

    def owner(self, username: str | None) -> Owner:
        """The caller; nobody acts for another."""
        if username not in (None, self.caller.name):
            raise Forbidden("User jobs are a user's own: nobody has them for another.", reason="not_yours")
        return Owner("", self.caller.name)


def check_scopes(caller: Caller, method: str) -> None:
    """Return if a caller may have user jobs.

    Raises:
        Forbidden: it is a service, or a scope is missing.

    """
    if caller.kind != "user":
        raise Forbidden("User jobs are a user's own: send a token of the user's.", reason="not_yours")
    names = (JOBS_SCOPE, *_SCOPES.get(method, START))
    if caller.scopes.isdisjoint({scope for name in names for scope in (name, f"{name}!user={caller.name}")}):
        needs = f"{names[1]}!user={caller.name}"
        raise Forbidden(f"Your token may not do that: {JOBS_SCOPE} or {needs} is needed.", details={"needs": needs})


class UserJobsOfHubUsers(OfHubUsers, AllUserJobs):
    """``api/userjobs``."""


class OneUserJobOfHubUsers(OfHubUsers, OneUserJob):
    """``api/userjobs/NAME``."""


class SystemsOfHubUsers(OfHubUsers, SystemsOfOwner):
    """``api/systems``."""


ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"api/systems/?", SystemsOfHubUsers),
    (r"api/userjobs/?", UserJobsOfHubUsers),
    (r"api/userjobs/([^/]+)/?", OneUserJobOfHubUsers),
]
"""Patterns below the prefix."""
