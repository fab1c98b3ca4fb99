"""``launches``: ask for a server, and follow what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from ..errors import Forbidden, InvalidRequest, ShuttingDown, Unauthenticated
from ..models import ExtendRequest, GroupName, LaunchRequest, Model, NoQuery, ServerName, TemplateName, UserName
from ..news import Happening
from ..records import EXTENDED, FINAL, STATES, LaunchRecord, State
from .callers import HubHandler
from .streams import EventStream
from .views import EventList, EventView, LaunchList, LaunchView, PlanView, event_data, launch_view


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a number") from None


def _integer(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError("must be a whole number")
    return int(value)


def _time(value: str) -> float:
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("must be a time as in 2026-01-31T09:00:00Z") from None


def _states(value: str) -> list[str]:
    return value.split(",")


def _boolean(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
"""Of a batch."""
Limit = Annotated[int, Field(ge=1, le=500), BeforeValidator(_integer)]
Wait = Annotated[float, Field(ge=0, le=300, allow_inf_nan=False), BeforeValidator(_number)]
"""Seconds to wait until it is ready, or has ended."""
Time = Annotated[float, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})]
"""ISO 8601; UTC unless it says otherwise."""


class WaitQuery(Model):
    """The query of ``GET launches/ID``."""

    wait: Wait = 0


class SubmitQuery(WaitQuery):
    """The query of ``POST launches``."""

    dry_run: Annotated[bool, BeforeValidator(_boolean)] = False
    """Only say what would become of it."""


class EventsQuery(Model):
    """The query of ``GET launches/ID/events``."""

    last_event_id: Annotated[int, BeforeValidator(_integer)] | None = None
    """For clients that can't send the header ``Last-Event-ID``."""


class AllEventsQuery(EventsQuery):
    """The query of ``GET launches/events``; all that are given must hold."""

    username: UserName | None = None
    group: GroupName | None = None
    """Of a user in this group of the Hub's; the caller's scopes must reach it."""


class ListQuery(Model):
    """The query of ``GET launches``; all that are given must hold."""

    username: UserName | None = None
    server_name: ServerName | None = None
    group: GroupName | None = None
    """Of a user in this group of the Hub's; the caller's scopes must reach it."""
    state: Annotated[list[State], BeforeValidator(_states)] | None = None
    """One, or several with commas between."""
    template: TemplateName | None = None
    batch: Id | None = None
    since: Time | None = None
    """Asked for at this time or later (ISO 8601)."""
    until: Time | None = None
    """Asked for before this time."""
    limit: Limit = 50
    """How many at most."""
    cursor: Annotated[int, BeforeValidator(_integer)] | None = None
    """``next`` of the page before."""


class LaunchHandler(HubHandler):
    """What the handlers of launches share."""

    async def view(self, record: LaunchRecord, *, with_position: bool = True) -> LaunchView:
        """The launch as this caller may see it."""
        launcher = self.services.parts.launcher
        place = await launcher.position(record) if with_position else self.services.parts.news.place(record)
        return launch_view(
            record,
            base=self.services.prefix,
            url=self.absolute_url(record.path, record.full_url) if record.path else None,
            # a browser has its own login for the server; a token that it does not need it can't give away
            token=None if self.in_browser else await launcher.token_of(self.caller, record),
            position=place[0] if place else None,
            estimate=place[1] if place else None,
        )

    async def answer_launch(self, record: LaunchRecord, wait: float) -> None:
        """Answer with the launch as it is after ``wait`` seconds, or sooner: 202 while it is on its way."""
        if wait:
            with suppress(ShuttingDown):  # it goes on; the caller may ask again
                record = await self.interruptible(self.services.parts.launcher.settled(record, wait))
            await self.admit()
        self.set_header("Location", f"{self.services.prefix}launches/{record.id}")
        body = (await self.view(record)).model_dump(mode="json")
        self.answer(body, status=202 if record.state in ("queued", "starting") else 200)


class LaunchesHandler(LaunchHandler):
    """All launches."""

    async def get(self) -> None:
        """List those that the caller may see, the newest first; pages stay as they are while new ones come."""
        query = self.query(ListQuery)
        wanted = query.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
        records, following = await self.services.parts.launcher.find(self.caller, query.cursor, query.limit, **wanted)
        items = [await self.view(record, with_position=False) for record in records]
        page = LaunchList(items=items, next=None if following is None else str(following))
        self.answer(page.model_dump(mode="json"))

    async def post(self) -> None:
        """Accept a launch."""
        query = self.query(SubmitQuery)
        request = self.body(LaunchRequest)
        if query.dry_run:
            plan = await self.services.parts.planner.plan(self.caller, request)
            return self.answer(PlanView(**plan).model_dump(mode="json"))
        key = self.idempotency_key()
        record = await self.services.parts.launcher.submit(self.caller, request, key=key)
        return await self.answer_launch(record, query.wait)


class OneLaunchHandler(LaunchHandler):
    """One launch."""

    async def get(self, launch: str) -> None:
        """Tell about it."""
        query = self.query(WaitQuery)
        record = await self.services.parts.launcher.get(self.caller, launch)
        if query.wait:
            record = await self.interruptible(self.services.parts.launcher.settled(record, query.wait))
            await self.admit()
        self.answer((await self.view(record)).model_dump(mode="json"))

    async def patch(self, launch: str) -> None:
        """Give it another end."""
        self.query(NoQuery)
        lifetime = self.body(ExtendRequest).lifetime
        record = await self.services.parts.launcher.extend(self.caller, launch, lifetime)
        self.answer((await self.view(record)).model_dump(mode="json"))

    async def delete(self, launch: str) -> None:
        """Cancel it, or stop its server: 204 when that is done, 202 while it is being done."""
        query = self.query(WaitQuery)
        record = await self.services.parts.launcher.end(self.caller, launch)
        if query.wait and not record.final:
            record = await self.interruptible(self.services.parts.launcher.ended(record, query.wait))
        if record.final:
            self.nothing()
        else:
            self.answer((await self.view(record)).model_dump(mode="json"), status=202)


def wants_json(accept: str) -> bool:
    """Whether a client asks for JSON rather than for a stream."""
    return "application/json" in accept and "text/event-stream" not in accept


class EventsHandler(LaunchHandler):
    """A stream of events that can be resumed."""

    endless = True
    _stream: EventStream | None = None

    async def stream(self, send: Callable[[EventStream], Coroutine[Any, Any, None]]) -> None:
        """Answer with a stream; ``send`` sends its events until there are no more."""
        self._stream = EventStream(self, self.serving.keepalive)
        self._stream.begin()
        with suppress(ShuttingDown, Unauthenticated, Forbidden):  # who comes back goes on where it was, or is told why
            await self.interruptible(send(self._stream))
        self._stream.end()

    def last_event_id(self, query: EventsQuery) -> int:
        """Up to where the client has seen it.

        Raises:
            InvalidRequest: it is not a number.

        """
        header = self.request.headers.get("Last-Event-ID", "").strip()
        if query.last_event_id is not None:
            return query.last_event_id
        if not header:
            return 0
        if not header.isascii() or not header.isdigit() or len(header) > 18:
            raise InvalidRequest("The Last-Event-ID is not one of this stream's.")
        return int(header)

    def on_finish(self) -> None:
        """Forget the stream."""
        super().on_finish()
        if self._stream:
            self._stream.close()


class LaunchEventsHandler(EventsHandler):
    """The events of one launch."""

    async def get(self, launch: str) -> None:
        """Send what has happened since ``Last-Event-ID``, and what happens, until its end."""
        query = self.query(EventsQuery)
        if wants_json(self.request.headers.get("Accept", "")):
            return await self._answer_past(launch, query)
        there_are, state = await self._state_of(launch)
        after = min(self.last_event_id(query), there_are)
        if state in FINAL and after == there_are:
            return self.nothing()  # which tells a browser not to come back

        async def send(stream: EventStream) -> None:
            async with aclosing(self.services.parts.launcher.follow(launch, after, waits=state == "queued")) as events:
                async for event in events:
                    data = event_data(event)
                    if event.name == "ready":
                        await self.admit()
                        now = await self.services.parts.launcher.get(self.caller, launch)
                        if now.state == "ready":
                            data["launch"] = (await self.view(now)).model_dump(mode="json")
                    await stream.send(data, name=event.name, id=event.number or None)

        return await self.stream(send)

    async def _answer_past(self, launch: str, query: EventsQuery) -> None:
        """Tell what has happened so far, and no more."""
        await self.services.parts.launcher.get(self.caller, launch)
        events = await self.services.parts.store.events_of(launch, self.last_event_id(query))
        items = [EventView(id=event.number, event=event.name, data=event_data(event)) for event in events]
        self.answer(EventList(items=items).model_dump(mode="json"))

    async def _state_of(self, launch: str) -> tuple[int, str]:
        """How many events there are, and its state; the launch itself is not held while somebody listens."""
        record = await self.services.parts.launcher.get(self.caller, launch)
        return record.events, record.state


class AllEventsHandler(EventsHandler):
    """The events of all launches that the caller may see."""

    async def get(self) -> None:
        """Send what happens, from now on or since ``Last-Event-ID``, for as long as somebody listens.

        ``reset`` tells that something may have been missed before it, and all launches are to be looked at anew.
        """
        query = self.query(AllEventsQuery)
        after = self.last_event_id(query) or None
        if query.group is not None:
            await self.services.parts.access.members(self.caller, query.group)

        async def send(stream: EventStream) -> None:
            async with aclosing(self.services.parts.news.follow(after)) as chapters:
                async for chapter in chapters:
                    await self.admit()
                    if not chapter.complete:
                        await stream.send({}, name="reset", id=chapter.seq)
                    wanted = await self._wanted(query, chapter.happenings)
                    for place, happening in enumerate(wanted, start=1):
                        # only a whole chapter has been read: who comes back from its middle is told it again
                        end = chapter.seq if place == len(wanted) else None
                        if place % 50 == 0:
                            await asyncio.sleep(0)  # others have their turn
                        await stream.send(await self._told(happening), name=happening.event.name, id=end)

        return await self.stream(send)

    async def _wanted(self, query: AllEventsQuery, happenings: list[Happening]) -> list[Happening]:
        access = self.services.parts.access
        visible = await access.visible(self.caller)
        members = await access.members(self.caller, query.group) if query.group is not None else None
        return [
            happening
            for happening in happenings
            if visible.covers(happening.record)
            and query.username in (None, happening.record.username)
            and (members is None or happening.record.username in members)
        ]

    async def _told(self, happening: Happening) -> dict[str, Any]:
        """An event, with whose it is, and with the launch if it came into another state."""
        record, event = happening
        about = {"id": record.id, "username": record.username, "server_name": record.server_name}
        data = about | {"number": event.number or None} | event_data(event)
        if event.number and event.name in (*STATES, EXTENDED):
            data["launch"] = (await self.view(record, with_position=False)).model_dump(mode="json")
        return data
