"""What happens to all launches: read from the store once, for many listeners, from whatever process it comes.

`jhlauncher.feed` tells everything of one launch; this tells those who watch many, as a page or a dashboard does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from traitlets import Float
from traitlets.config import LoggingConfigurable

from .bell import Bell
from .errors import StoreUnavailable
from .feed import Feed
from .queue import Line
from .records import LaunchEvent, LaunchRecord
from .store import Store

_KEPT = 4000
"""Happenings that are at hand; who is further behind must look at all launches again."""
_CATCH_UP = 1000
"""Happenings of the past that are told to who comes back."""
_LOOK_BACK = 100
"""Events among which a number may be missing when the first listener comes."""
_HOLES = 500
"""Numbers below the newest that may be missing."""
_HOLE_SECONDS = 60
"""For which a number that is missing is waited for: transactions are not committed in the order of their events."""


class Happening(NamedTuple):
    """Something that happened to a launch."""

    record: LaunchRecord
    """The launch as it is now."""
    event: LaunchEvent
    """Its number is 0 for a passing one."""


class Chapter(NamedTuple):
    """What happened since the chapter before."""

    seq: int
    """Where it ends; who comes back with this goes on from there."""
    happenings: list[Happening]
    complete: bool
    """Whether nothing was missed before it. Else all launches are to be looked at again."""


@dataclass
class _Past:
    """Up to where the events have been read."""

    seq: int
    holes: dict[int, float] = field(default_factory=dict)
    """Numbers below it that were not there yet, and until when they are waited for."""

    @property
    def whole(self) -> int:
        """Up to where nothing is missing: who goes on from there may be told something twice, but misses nothing."""
        return min(self.holes, default=self.seq + 1) - 1

    def read(self, found: list[int]) -> None:
        """These were there now."""
        now = time.monotonic()
        self.holes = {seq: until for seq, until in self.holes.items() if until > now and seq not in found}
        highest = max([self.seq, *found])
        missing = set(range(max(self.seq + 1, highest - _HOLES), highest)).difference(found)
        self.holes |= dict.fromkeys(missing, now + _HOLE_SECONDS)
        self.seq = highest


class News(LoggingConfigurable):
    """What happens to all launches."""

    news_interval = Float(
        0.25, min=0.01, help="Seconds between two looks at what has happened, for those who follow many launches."
    ).tag(config=True)

    def __init__(self, store: Store, feed: Feed, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._store = store
        self._feed = feed
        self._listeners = 0
        self._bell = Bell()
        self._changed = asyncio.Event()
        self._past: _Past | None = None
        self._recent: deque[Happening] = deque(maxlen=_KEPT)
        self._told = 0
        """How many there were, with those that are not at hand any more."""
        self._line = Line.empty()
        self._hindrance = ""
        self._looking: asyncio.Task[None] | None = None
        store.database.on_change(lambda _: self._changed.set(), self._changed.set)

    async def start(self) -> None:
        """Look whenever something has happened."""
        self._looking = asyncio.create_task(self._look(), name="news of all launches")

    async def stop(self) -> None:
        """Look no more; listeners are theirs to cancel."""
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def follow(self, after: int | None = None) -> AsyncGenerator[Chapter, None]:
        """What happens from now on, to whichever launch; the first chapter comes at once.

        Args:
            after: what happened since then, where that can still be told; see `Chapter.seq`.

        Raises:
            StoreUnavailable: the past can't be read.

        """
        past = await self._begin()
        try:
            position = self._told
            caught_up = await self._since(after, past.seq) if after is not None else None
            yield Chapter(past.whole, caught_up or [], complete=caught_up is not None)
            while True:
                rung = self._bell.listen()
                behind = self._told - position
                if behind:
                    complete = behind <= len(self._recent)
                    news = list(self._recent)[-behind:] if complete else []
                    position = self._told
                    yield Chapter((self._past or past).whole, news, complete)
                else:
                    await rung.wait()
        finally:
            self._end()

    def place(self, record: LaunchRecord) -> tuple[int, float | None] | None:
        """The place of a launch in the queue, and the seconds until its turn; None if that is not at hand."""
        position = self._line.order.get(record.id) if record.state == "queued" else None
        return (position, self._feed.estimate(position)) if position else None

    async def _begin(self) -> _Past:
        self._listeners += 1
        try:
            if self._past is None:
                latest = await self._store.latest_events(_LOOK_BACK)
                if self._past is None:  # else another was quicker
                    self._past = _Past(latest[0] - 1 if latest else 0)
                    self._past.read(latest)
        except BaseException:
            self._end()
            raise
        if self._tell_line not in self._feed.line_observers:
            self._feed.line_observers.append(self._tell_line)
            self._feed.look()
        return self._past

    def _end(self) -> None:
        self._listeners -= 1
        if not self._listeners:
            self._past = None
            self._line = Line.empty()
            self._recent.clear()
            with contextlib.suppress(ValueError):
                self._feed.line_observers.remove(self._tell_line)

    async def _since(self, after: int, until: int) -> list[Happening] | None:
        """What happened between two events, None if that is too much, or not to be known."""
        if after > until:
            return None
        found = await self._store.events_since(after, until, most=_CATCH_UP + 1)
        return [Happening(record, event) for _, record, event in found] if len(found) <= _CATCH_UP else None

    # -- what wakes

    async def _look(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(self.news_interval)  # more has happened by then
            self._changed.clear()
            past = self._past
            if past is None:
                continue
            try:
                found = await self._store.events_since(past.seq, besides=list(past.holes))
                latest = await self._store.latest_events(1) if not found else [past.seq]
            except StoreUnavailable:
                self._changed.set()
                continue
            except Exception:
                self.log.exception("Could not read what has happened")
                continue
            if latest and latest[0] < past.seq:
                self._begin_anew(latest[0])
                continue
            past.read([seq for seq, _, _ in found])
            self._tell([Happening(record, event) for _, record, event in found])

    def _tell(self, happenings: list[Happening]) -> None:
        if happenings:
            # values of `env` are of no use here, and may be large
            self._recent.extend(told._replace(record=replace(told.record, env=None)) for told in happenings)
            self._told += len(happenings)
            self._bell.ring()

    def _begin_anew(self, seq: int) -> None:
        """All listeners must look anew: SQLite counts from 1 again when all events have been forgotten."""
        self._past = _Past(seq)
        self._recent.clear()
        self._told += 1
        self._bell.ring()

    async def _tell_line(self, order: list[str], hindrance: str) -> None:
        """The positions of those that wait, where they have changed by much."""
        if hindrance != self._hindrance:
            self._hindrance, self._line.told = hindrance, {}
        line = self._line
        moved = [*line.news(order), *(launch for launch in order if launch not in line.told)]
        records = {record.id: record for record in await self._store.with_ids(moved)}
        if line is not self._line:
            return  # nobody listens any more
        now = time.time()
        line.told.update({launch: line.order[launch] for launch in moved})
        self._tell(
            [
                Happening(records[launch], LaunchEvent(0, now, "queued", self._feed.place(line.order[launch])))
                for launch in moved
                if launch in records
            ]
        )
