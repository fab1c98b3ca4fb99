"""Follows the Hub's event stream of a start: one stream per server, however many listen.

Guarantees to each listener: events only rise, a stream that breaks is resumed without repeating itself, and nothing
follows a final event. What a final event says is the Hub's word and not yet the truth: after a cancelled start it
says ``ready`` (https://github.com/jupyterhub/jupyterhub, apihandlers/users.py), so callers look at what the mixin in
the Hub has said before, and without that, ask for the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from math import isfinite
from typing import Any, get_args

from pydantic import ValidationError
from traitlets import Float
from traitlets.config import LoggingConfigurable

from .errors import AnswerLost, HubUnavailable, LauncherError
from .hub import Hub, NotStarting
from .models import Model, Phase, ProgressEvent

Key = tuple[str, str]


class Up(Model):
    """What the mixin in the Hub says of a server that is up."""

    mark: str
    """Proves whose it is, and that it is; see `Signer.mark`."""
    url: str
    full_url: str | None = None


class ReadyEvent(ProgressEvent):
    """The end of a start, with what the mixin said just before."""

    up: Up | None = None


_STEPS: list[Phase] = [phase for phase in get_args(Phase) if phase not in ("ready", "failed")]


class Progress(LoggingConfigurable):
    """All starts that somebody listens to."""

    reconnect_delay = Float(
        0.1,
        min=0,
        help="Seconds before a broken stream is opened again; each further failure doubles it, up to 5 s.",
    ).tag(config=True)

    def __init__(self, hub: Hub, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.hub = hub
        self._streams: dict[Key, _Stream] = {}

    async def stop(self) -> None:
        """End all streams; their listeners get `HubUnavailable`."""
        await asyncio.gather(*(stream.stop() for stream in list(self._streams.values())))

    async def follow(self, user: str, server: str) -> AsyncGenerator[ProgressEvent, None]:
        """The events of a start, from where it is now to its final event.

        Raises:
            NotStarting: nothing is starting.
            HubUnavailable: the Hub is away.
            LauncherError: it does not let us follow the start.

        """
        key = (user, server)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(self, key)
        queue = stream.subscribe()
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.final:
                    return
        finally:
            stream.listeners.discard(queue)
            if not stream.listeners:
                await stream.stop()

    def ended(self, key: Key, stream: _Stream) -> None:
        """A stream has had its last event; the next start of the server gets a new one."""
        if self._streams.get(key) is stream:
            del self._streams[key]


class _Stream:
    """One upstream stream and those who listen to it."""

    def __init__(self, progress: Progress, key: Key) -> None:
        self._progress = progress
        self._key = key
        self._latest: ProgressEvent | None = None
        self._messages: set[str] = set()  # those of the latest per cent
        self._up: Up | None = None
        self.listeners: set[asyncio.Queue[ProgressEvent | Exception]] = set()
        self._task = asyncio.create_task(self._run(), name=f"progress of {key[0]}/{key[1]}")

    def subscribe(self) -> asyncio.Queue[ProgressEvent | Exception]:
        queue: asyncio.Queue[ProgressEvent | Exception] = asyncio.Queue()
        if self._latest:
            queue.put_nowait(self._latest)
        self.listeners.add(queue)
        return queue

    async def stop(self) -> None:
        self._progress.ended(self._key, self)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        delay = self._progress.reconnect_delay
        try:
            while True:
                if await self._connection():
                    delay = self._progress.reconnect_delay
                if self._latest and self._latest.final:
                    return
                self._progress.log.warning("Progress of %s/%s broke. Opening it again in %.1f s.", *self._key, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5)
        except asyncio.CancelledError:
            self._end(HubUnavailable("The launcher no longer follows this start."))
            raise
        except (NotStarting, LauncherError) as error:
            self._end(error)
        except Exception as error:
            self._progress.log.exception("Progress of %s/%s ended by a bug", *self._key)
            self._end(error)

    async def _connection(self) -> bool:
        """Pass on the events of one connection; whether any was new."""
        news = False
        with suppress(AnswerLost):
            async with aclosing(self._progress.hub.progress(*self._key)) as events:
                async for raw in events:
                    event = self._risen(raw)
                    if event:
                        news = True
                        self._publish(event)
                        if event.final:
                            break
        return news

    def _risen(self, raw: Any) -> ProgressEvent | None:
        """The event for our listeners, or None for one that they had: a new connection begins from the beginning."""
        if not isinstance(raw, dict):
            return None
        up = _up(raw["up"]) if "up" in raw else None
        if up:
            self._up = up
            return None
        reached = self._latest.progress if self._latest else -1
        phase = _phase(raw)
        number = raw.get("progress", max(reached, 0))  # an event may have a message only
        progress = int(min(100, max(0, number))) if isinstance(number, int | float) and isfinite(number) else 0
        message = str(raw.get("message", ""))
        if phase not in ("ready", "failed") and (
            progress < reached or (progress == reached and message in self._messages)
        ):
            return None
        if progress > reached:
            self._messages.clear()
        self._messages.add(message)
        if phase == "ready":
            return ReadyEvent(progress=progress, message=message, phase=phase, up=self._up)
        return ProgressEvent(progress=progress, message=message, phase=phase)

    def _publish(self, event: ProgressEvent) -> None:
        self._latest = event
        if event.final:
            self._progress.ended(self._key, self)
        for queue in self.listeners:
            queue.put_nowait(event)

    def _end(self, error: Exception) -> None:
        self._progress.ended(self._key, self)
        for queue in self.listeners:
            queue.put_nowait(error)


def _up(raw: Any) -> Up | None:
    try:
        return Up.model_validate(raw)
    except ValidationError:
        return None  # some other spawner's


def _phase(raw: dict[str, Any]) -> Phase:
    """The Hub's own words for the end, and before it what the spawner says, if it is one of ours."""
    if raw.get("ready"):
        return "ready"
    if raw.get("failed"):
        return "failed"
    return next((phase for phase in _STEPS if phase == raw.get("phase")), "starting")
