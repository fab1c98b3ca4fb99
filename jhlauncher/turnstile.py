"""Lets few at a time do what a busy machine does one after the other anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turnstile:
    """Lets some through at a time, first come, first served.

    Args:
        places: how many may be in it.
        patience: seconds after which one counts as through who has not said so.

    """

    def __init__(self, places: int, patience: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._patience = patience

    async def enter(self) -> Callable[[], None]:
        """Wait for a place; what is returned gives it back, and may be called more than once."""
        await self._free.acquire()
        timer: asyncio.TimerHandle | None = None

        def leave() -> None:
            nonlocal timer
            if timer:
                timer.cancel()
                timer = None
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._patience, leave)
        return leave
