"""What all requests of a process share: bounds, signs of life, and the end of those under way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from .streams import Keepalive


class UnderWay(Protocol):
    """A request that is being answered."""

    endless: bool
    """Whether the answer goes on until somebody ends it."""

    def interrupt(self) -> None:
        """Cut long work short."""


@dataclass
class Serving:
    """The requests under way."""

    max_body_size: int
    """Bytes."""
    keepalive_interval: float
    """Seconds between signs of life on a quiet event stream."""
    keepalive: Keepalive = field(init=False)
    draining: bool = False
    """The service stops: no new requests."""
    requests: set[UnderWay] = field(default_factory=set)
    """Those under way."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last request has been answered while draining."""

    def __post_init__(self) -> None:
        self.keepalive = Keepalive(self.keepalive_interval)

    async def drain(self, timeout: float) -> None:
        """Let requests end by themselves for ``timeout`` seconds, and then cut them short; streams at once."""
        self.draining = True
        for request in list(self.requests):
            if request.endless:
                request.interrupt()
        for wait in (timeout, 5):
            if self.requests:
                self.idle.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self.idle.wait()
                except TimeoutError:
                    for request in self.requests:
                        request.interrupt()
