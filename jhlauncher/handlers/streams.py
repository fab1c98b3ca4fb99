"""Answers that are streams of server-sent events, and the signs of life that keep them open."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from .. import sse


class Keepalive:
    """Gives a sign of life on all open streams, so that no proxy takes them for dead.

    Args:
        interval: seconds between two signs.

    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._streams: set[EventStream] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, stream: EventStream) -> None:
        """Keep a stream alive until `discard`."""
        self._streams.add(stream)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="keepalive")

    def discard(self, stream: EventStream) -> None:
        """Forget a stream."""
        self._streams.discard(stream)

    async def stop(self) -> None:
        """End."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for number, stream in enumerate(list(self._streams)):
                if stream in self._streams:  # it may have ended meanwhile
                    stream.send_now(sse.KEEPALIVE)
                if number % 50 == 49:
                    await asyncio.sleep(0)  # others have their turn


class EventStream:
    """One answer that is a stream; belongs to a handler."""

    __slots__ = ("_handler", "_keepalive")

    def __init__(self, handler: RequestHandler, keepalive: Keepalive) -> None:
        self._handler = handler
        self._keepalive = keepalive

    @property
    def begun(self) -> bool:
        """Whether something has been sent."""
        return self._handler._headers_written

    def begin(self) -> None:
        """Send the headers."""
        if not self.begun:
            self._handler.set_header("Content-Type", "text/event-stream")
            self._handler.set_header("X-Accel-Buffering", "no")  # nginx would hold events back
            self._keepalive.add(self)
            self._handler.flush()

    async def send(self, data: Any, *, name: str, id: int | None = None) -> None:
        """Send an event; returns when there is room for the next."""
        self.begin()
        with suppress(StreamClosedError):  # on_connection_close deals with it
            self._handler.write(sse.encode(data, name=name, id=id))
            await self._handler.flush()

    def send_now(self, text: str) -> None:
        """Send something short without waiting; a stream whose reader does not read is left alone."""
        if not self._handler.request.connection.stream.writing():  # type: ignore[union-attr]
            self._handler.write(text)
            self._handler.flush()

    def end(self, data: Any = None, *, name: str = "") -> None:
        """Send a last event, if there is one, and end."""
        self.begin()
        self._handler.finish(sse.encode(data, name=name) if name else None)

    def close(self) -> None:
        """The request is over, however it ended."""
        self._keepalive.discard(self)
