"""Wakes those who wait for something to change, as often as it does."""

from __future__ import annotations

import asyncio


class Bell:
    """Rings for all who listen.

    Take what `listen` returns *before* looking at what may change, and await it after: a change in between is not
    missed.
    """

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who listens now. Belongs to the event loop's thread."""
        self._rung.set()
        self._rung = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """What is set by the next ring."""
        return self._rung


async def first_ring(rung: list[asyncio.Event], timeout: float) -> None:
    """Wait for the first of what `Bell.listen` gave; the time-out, in seconds, is for what nobody tells."""
    waits = [asyncio.create_task(event.wait()) for event in rung]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
