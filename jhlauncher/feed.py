"""Tells many listeners what happens to launches, from any process; what is kept is read from the store.

Besides what is kept there are passing events (number 0): the position in the queue, and what holds everything up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from traitlets import Float
from traitlets.config import LoggingConfigurable

from .batches import Batches
from .bell import Bell
from .errors import NotFound, StoreUnavailable
from .queue import Line, Pace, StartBound
from .records import STATES, BatchEvent, LaunchEvent
from .store import BATCH, MOVED, QUEUE, ROOM, Store

_RECENT = 20
"""Events that are at hand for those who are a little behind."""


class _Listeners:
    """Those who listen to one launch."""

    __slots__ = ("bell", "latest", "number", "recent")

    def __init__(self) -> None:
        self.bell = Bell()
        self.number = 0
        self.latest = 0
        """The number of the latest event that we have heard of."""
        self.recent: list[LaunchEvent] = []
        """The latest of those that this process has kept."""

    def heard(self, number: int) -> None:
        """There is an event with this number."""
        if number > self.latest:
            self.latest = number
            self.bell.ring()

    def kept(self, event: LaunchEvent) -> None:
        """This process has kept an event."""
        self.recent = [*self.recent[-_RECENT:], event]
        self.heard(event.number)

    def news(self, after: int) -> list[LaunchEvent] | None:
        """The events after that number, None if one must look."""
        if self.latest <= after:
            return []
        news = [event for event in self.recent if event.number > after]
        complete = [event.number for event in news] == list(range(after + 1, self.latest + 1))
        return news if complete else None


class Feed(LoggingConfigurable):
    """The events of launches."""

    position_interval = Float(
        1, min=0.01, help="Seconds between two looks at the queue, for the positions of those who listen."
    ).tag(config=True)

    def __init__(self, store: Store, batches: Batches, bound: StartBound, pace: Pace, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._store = store
        self._batches = batches
        self._bound = bound
        self._pace = pace
        self._listeners: dict[str, _Listeners] = {}
        self._line = Line.empty()
        self._hindrance = ""
        self._queue_changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._missed = 0  # how often something may have been missed
        self.line_observers: list[Callable[[list[str], str], Awaitable[None]]] = []
        """Called with the ids of all that wait, in order, and with what holds them up, whenever that has changed."""
        store.database.on_change(self._changed, self._look_again)
        store.event_observers.append(self._kept_here)

    async def start(self) -> None:
        """Look at the queue whenever it changes."""
        self._looking = asyncio.create_task(self._look_at_queue(), name="positions in the queue")

    async def stop(self) -> None:
        """Look no more; listeners are theirs to cancel."""
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def follow(self, launch: str, after: int = 0, *, waits: bool = True) -> AsyncGenerator[LaunchEvent, None]:
        """What happened to a launch after the event with that number, and what happens, until its end.

        Args:
            launch: its id.
            after: the number of the last event that was seen; 0 if none was.
            waits: whether it was still in the queue by then.

        Raises:
            NotFound: it is not known any more.

        """
        listeners = self._listeners.setdefault(launch, _Listeners())
        listeners.number += 1
        passing: tuple[int, str] | None = None
        missed = -1
        try:
            while True:
                rung = listeners.bell.listen()
                news = listeners.news(after) if missed == self._missed else None
                missed = self._missed
                for event in await self._kept(launch, after) if news is None else news:
                    yield event
                    after = event.number
                    waits = event.name == "queued" if event.name in STATES else waits
                    if event.final:
                        return
                if waits and launch not in self._line.told:
                    self._queue_changed.set()  # nobody has looked for this one yet
                position = self._line.order.get(launch)
                if waits and position is not None and passing != (position, self._hindrance):
                    passing = (position, self._hindrance)
                    yield await self._in_queue(launch, position)
                await rung.wait()
        finally:
            listeners.number -= 1
            if not listeners.number:
                self._listeners.pop(launch, None)
                self._line.told.pop(launch, None)

    async def follow_batch(self, batch: str, after: int = 0) -> AsyncGenerator[BatchEvent, None]:
        """What happened to the launches of a batch after the event with that number, until all have ended."""
        listeners = self._listeners.setdefault(BATCH + batch, _Listeners())
        listeners.number += 1
        try:
            while True:
                rung = listeners.bell.listen()
                try:
                    over = await self._batches.is_over(batch)  # before its events, so that the last is among them
                    found = await self._batches.events_of(batch, after)
                except StoreUnavailable:
                    continue  # it is retried there
                for event in found:
                    yield event
                    after = event.seq
                if over:
                    return
                await rung.wait()
        finally:
            listeners.number -= 1
            if not listeners.number:
                self._listeners.pop(BATCH + batch, None)

    async def _kept(self, launch: str, after: int) -> list[LaunchEvent]:
        while True:
            with contextlib.suppress(StoreUnavailable):  # it is retried there; here nobody is to be turned away
                found = await self._store.events_of(launch, after)
                if not found and not after and not await self._store.get(launch):
                    raise NotFound("This launch is not known any more.", reason="launch_not_found")
                return found

    def look(self) -> None:
        """Look at the queue again, for one who has just come."""
        self._queue_changed.set()

    def hinder(self, why: str) -> None:
        """Tell all who wait what holds them up; "" when it is over."""
        if why != self._hindrance:
            self._hindrance = why
            self._all_changed()

    def estimate(self, position: int) -> float | None:
        """Seconds until who is at this position in the queue starts; None if that is not known."""
        return self._pace.wait(position, self._bound.current)

    def place(self, position: int) -> dict[str, Any]:
        """What is told of this position in the queue, limits left aside."""
        message = self._hindrance or f"Waiting at position {position}"
        return {"message": message, "position": position, "estimate": self.estimate(position)}

    async def _in_queue(self, launch: str, position: int) -> LaunchEvent:
        self._line.told[launch] = position
        told = self.place(position)
        with contextlib.suppress(StoreUnavailable):
            held = await self._store.held_by(launch)
            if held:
                limit, used = held
                room = f"{used:g} of {limit.most:g} {limit.resource} are in use ({limit.key})"
                told |= {"message": f"Waiting for room: {room}", "estimate": None}
        return LaunchEvent(0, time.time(), "queued", told)

    # -- what wakes

    def _changed(self, topic: str) -> None:
        if topic in (QUEUE, ROOM, MOVED):
            self._queue_changed.set()
        elif topic in self._listeners:
            self._listeners[topic].bell.ring()
        else:
            launch, _, number = topic.partition(" ")
            if launch in self._listeners:
                self._listeners[launch].heard(int(number))

    def _kept_here(self, launch: str, event: LaunchEvent) -> None:
        if launch in self._listeners:
            self._listeners[launch].kept(event)

    def _look_again(self) -> None:
        self._missed += 1
        self._all_changed()

    def _all_changed(self) -> None:
        self._queue_changed.set()
        for listeners in self._listeners.values():
            listeners.bell.ring()

    async def _look_at_queue(self) -> None:
        while True:
            await self._queue_changed.wait()
            await asyncio.sleep(self.position_interval)  # most are gone by then
            self._queue_changed.clear()
            if not self._listeners and not self.line_observers:
                continue
            try:
                order = await self._store.queue_order()
                await self._tell_positions(order)
                for observer in list(self.line_observers):
                    await observer(order, self._hindrance)
            except StoreUnavailable:
                self._queue_changed.set()
            except Exception:
                self.log.exception("Could not tell the positions in the queue")

    async def _tell_positions(self, order: list[str]) -> None:
        new = [launch for launch in order if launch in self._listeners and launch not in self._line.told]
        for number, launch in enumerate([*self._line.news(order), *new]):
            if launch in self._listeners:
                self._listeners[launch].bell.ring()
            if number % 50 == 49:
                await asyncio.sleep(0)  # others have their turn
