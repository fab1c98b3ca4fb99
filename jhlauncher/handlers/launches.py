"""``launches``: ask for a server, and follow what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..errors import Forbidden, InvalidRequest, ShuttingDown, Unauthenticated
from ..models import LaunchRequest, Model, ServerName, TemplateName, UserName
from ..records import FINAL, LaunchRecord, State
from .callers import HubHandler
from .streams import EventStream
from .views import LaunchList, LaunchView, PlanView, iso, launch_view


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


Wait = Annotated[float, BeforeValidator(_number), Field(ge=0, le=300, allow_inf_nan=False)]
"""Seconds to wait until it is ready, or has ended."""


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


class ListQuery(Model):
    """The query of ``GET launches``; all that are given must hold."""

    username: UserName | None = None
    server_name: ServerName | None = None
    state: Annotated[list[State], BeforeValidator(_states)] | None = None
    """One, or several with commas between."""
    template: TemplateName | None = None
    batch: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None
    since: Annotated[float, BeforeValidator(_time)] | None = None
    """Asked for at this time or later (ISO 8601)."""
    until: Annotated[float, BeforeValidator(_time)] | None = None
    """Asked for before this time."""
    limit: Annotated[int, BeforeValidator(_integer), Field(ge=1, le=500)] = 50
    """How many at most."""
    cursor: Annotated[int, BeforeValidator(_integer)] | None = None
    """``next`` of the page before."""


class LaunchHandler(HubHandler):
    """What the handlers of launches share."""

    async def view(self, record: LaunchRecord, *, with_position: bool = True) -> LaunchView:
        """The launch as this caller may see it."""
        launcher = self.services.parts.launcher
        place = await launcher.position(record) if with_position else None
        return launch_view(
            record,
            base=self.services.prefix,
            url=self.absolute_url(record.path, record.full_url) if record.path else None,
            token=await launcher.token_of(self.caller, record),
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

    async def delete(self, launch: str) -> None:
        """Cancel it, or stop its server: 204 when that is done, 202 while it is being done."""
        query = self.query(WaitQuery)
        record = await self.services.parts.launcher.end(self.caller, launch)
        if query.wait and not record.final:
            record = await self.interruptible(self.services.parts.launcher.ended(record, query.wait))
        if record.final:
            self.set_status(204)
            self.clear_header("Content-Type")
            await self.finish()
        else:
            self.answer((await self.view(record)).model_dump(mode="json"), status=202)


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

    async def answer_nothing(self) -> None:
        """Say that nothing follows, which tells a browser not to come back."""
        self.clear_header("Content-Type")
        self.set_status(204)
        await self.finish()

    def last_event_id(self) -> int:
        """Up to where the client has seen it.

        Raises:
            InvalidRequest: it is not a number.

        """
        query = self.query(EventsQuery)
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
        there_are, state = await self._state_of(launch)
        after = min(self.last_event_id(), there_are)
        if state in FINAL and after == there_are:
            return await self.answer_nothing()

        async def send(stream: EventStream) -> None:
            async with aclosing(self.services.parts.launcher.follow(launch, after, waits=state == "queued")) as events:
                async for event in events:
                    data: dict[str, Any] = {"time": iso(event.time), **event.data}
                    if event.name == "ready":
                        await self.admit()
                        now = await self.services.parts.launcher.get(self.caller, launch)
                        if now.state == "ready":
                            data["launch"] = (await self.view(now)).model_dump(mode="json")
                    if event.name == "warning":
                        data["ends"] = iso(data["ends"])
                    await stream.send(data, name=event.name, id=event.number or None)

        return await self.stream(send)

    async def _state_of(self, launch: str) -> tuple[int, str]:
        """How many events there are, and its state; the launch itself is not held while somebody listens."""
        record = await self.services.parts.launcher.get(self.caller, launch)
        return record.events, record.state
