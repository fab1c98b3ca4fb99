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
