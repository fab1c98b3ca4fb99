"""``users``: people with accounts; rosters as JSON or CSV."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from tornado.web import Finish

from ..errors import Forbidden
from ..models import Model, NoQuery, query_flag, query_integer
from ..people import Manager, PersonAtHub
from ..roster import EnrolRequest, RemoveRequest, RemoveResult, Roster, UserResult, from_csv, from_json
from .callers import HubHandler
from .streams import EventStream
from .views import moment

CSV = "text/csv"


def _columns(value: Any) -> Any:
    return dict(part.split(":", 1) for part in value.split(",") if ":" in part) if isinstance(value, str) else value


class CsvQuery(Model):
    """The query of ``POST users`` with a CSV file; see `EnrolRequest`."""

    mode: Literal["all", "some"] = "all"
    mail: Literal["once", "again", "no"] = "once"
    dry_run: Annotated[bool, BeforeValidator(query_flag)] = False
    adopt: Annotated[bool, BeforeValidator(query_flag)] = False
    links: Annotated[bool, BeforeValidator(query_flag)] = False
    columns: Annotated[dict[str, str], BeforeValidator(_columns)] = {}
    """How columns are headed that are not headed as usual: ``name:Studente,emails:Posta``."""


class UsersQuery(Model):
    """The query of ``GET users``."""

    limit: Annotated[int, Field(ge=1, le=200), BeforeValidator(query_integer)] = 50
    """How many at most."""
    cursor: Annotated[int, Field(ge=0), BeforeValidator(query_integer)] = 0
    """``next`` of the page before."""
    name: Annotated[str, Field(max_length=255)] = ""
    """A part of their user names."""


class UserView(BaseModel):
    """A user of the Hub."""

    username: str
    admin: bool
    groups: list[str]
    last_activity: datetime | None
    servers: list[str]
    """The names of those that run, start or stop; "" is the default server."""
    name: str | None
    """As the person writes it; with ``emails`` and what follows, of those who were enrolled here, for callers with
    admin:users."""
    emails: list[str]
    enrolled: datetime | None
    mail: Literal["none", "sending", "sent", "failed"] | None
    """How far their invitation came. ``sending`` long after it was begun: not known."""
    mail_error: str | None
    mailed: datetime | None


class UserList(BaseModel):
    """A page of users."""

    items: list[UserView]
    next: str | None
    """The cursor of the next page; None on the last one."""


class EnrolView(BaseModel):
    """What became of a roster."""

    users: list[UserResult]
    """By row."""
    counts: dict[str, int]
    """Rows by status, and mails as ``mail_sent`` and so on."""
    dry_run: bool
    encoding: str
    """How a CSV file was read."""
    delimiter: str
    ignored: list[str]
    """Columns that say nothing here."""


class RemoveView(BaseModel):
    """What became of those who were to be removed."""

    users: list[RemoveResult]


class UsersHandler(HubHandler):
    """All users."""

    _stream: EventStream | None = None

    async def admit(self) -> None:
        """Let callers in that have a token: what runs in a browser, perhaps beside a student's page, is none of them.

        Raises:
            Unauthenticated, Forbidden: nobody who is served here.

        """
        await super().admit()
        if self.in_browser:
            raise Forbidden("People are managed with a token of JupyterHub's, and not from a browser's session.")

    @property
    def manager(self) -> Manager:
        """Who manages people."""
        configured = self.services.parts.invitations.hub_url
        url = configured or self.absolute_url(str(self.hub_auth.hub_prefix), None)
        return Manager(self.caller, self.token, url)

    async def get(self) -> None:
        """List those whom the caller may see."""
        query = self.query(UsersQuery)
        found, following = await self.services.parts.people.page(self.manager, query.cursor, query.limit, query.name)
        items = [_view(person) for person in found]
        page = UserList(items=items, next=str(following) if following is not None else None)
        self.answer(page.model_dump(mode="json"))

    async def post(self) -> None:
        """Enrol the people of a roster; with ``Accept: text/event-stream``, each as it happens."""
        self.services.parts.people.check(self.caller)
        async with self.services.parts.people.reading:
            roster, request = await asyncio.to_thread(self._asked)
        enrolment = await self.services.parts.people.plan(self.manager, roster, request)
        results: list[UserResult] = []

        def told(result: UserResult) -> dict[str, Any]:
            results.append(result)
            return {"done": len(results), "total": len(roster.rows), **result.model_dump()}

        await self._each(enrolment.run(), told, lambda: _summary(roster, request, results).model_dump(mode="json"))

    async def delete(self) -> None:
        """Remove users."""
        self.query(NoQuery)
        request = self.body(RemoveRequest)
        results: list[RemoveResult] = []

        def told(result: RemoveResult) -> dict[str, Any]:
            results.append(result)
            return {"done": len(results), "total": len(request.usernames), **result.model_dump()}

        work = self.services.parts.people.remove(self.manager, request.usernames)
        await self._each(work, told, lambda: RemoveView(users=results).model_dump(mode="json"))

    def _asked(self) -> tuple[Roster, EnrolRequest]:
        """The roster, and what to do with it."""
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == CSV:
            query = self.query(CsvQuery)
            return from_csv(self.received(), query.columns), EnrolRequest(**query.model_dump(exclude={"columns"}))
        self.query(NoQuery)
        request = self.body(EnrolRequest)
        return from_json(request.users), request

    async def _each(
        self, work: AsyncGenerator[Any, None], told: Callable[[Any], dict[str, Any]], summary: Callable[[], Any]
    ) -> None:
        """Answer with the summary; with each result before, if that is asked for."""
        streamed = "text/event-stream" in self.request.headers.get("Accept", "")
        self._stream = EventStream(self, self.serving.keepalive) if streamed else None

        async def run() -> None:
            async with aclosing(work):
                async for result in work:
                    event = told(result)
                    if self._stream:
                        await self._stream.send(event, name="user")

        try:
            await self.interruptible(run())
        except Finish:
            raise
        except Exception as error:
            if not (self._stream and self._stream.begun):
                raise
            self.log_exception(type(error), error, error.__traceback__)
            self._stream.end(self.error_body(self.translate(error)), name="failed")
        else:
            if self._stream:
                self._stream.end(summary(), name="done")
            else:
                self.answer(summary())

    def on_finish(self) -> None:
        """Forget the stream, however the request ended."""
        super().on_finish()
        if self._stream:
            self._stream.close()


def _summary(roster: Roster, request: EnrolRequest, results: list[UserResult]) -> EnrolView:
    counts = Counter[str](result.status for result in results)
    counts.update(f"mail_{result.mail}" for result in results if result.mail != "none")
    return EnrolView(
        users=sorted(results, key=lambda result: result.row),
        counts=dict(counts),
        dry_run=request.dry_run,
        encoding=roster.encoding,
        delimiter=roster.delimiter,
        ignored=roster.ignored,
    )


def _view(person: PersonAtHub) -> UserView:
    model, record = person.model, person.record
    return UserView(
        username=model["name"],
        admin=bool(model.get("admin")),
        groups=model.get("groups") or [],
        last_activity=model.get("last_activity"),
        servers=sorted(model.get("servers") or {}),
        name=record.name if record else None,
        emails=record.emails if record else [],
        enrolled=moment(record.created) if record else None,
        mail=record.mail if record else None,
        mail_error=record.mail_error if record else None,
        mailed=moment(record.mailed) if record else None,
    )
