"""The times in which JupyterHub can't be reached; nothing is started then, and who waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .feed import Feed
from .hub import Hub

AWAY = "JupyterHub can't be reached; waiting for it"


class Outage:
    """Waits for JupyterHub, once for all launches."""

    def __init__(self, hub: Hub, feed: Feed) -> None:
        self._hub = hub
        self._feed = feed
        self._task: asyncio.Task[None] | None = None
        self.on_end: Callable[[], None] = lambda: None
        """Called when the Hub is back."""

    @property
    def lasts(self) -> bool:
        """Whether the Hub is away, as far as is known."""
        return self._task is not None and not self._task.done()

    def begin(self) -> asyncio.Task[None]:
        """The Hub is away; the task that ends when it is back."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._wait(), name="outage of JupyterHub")
        return self._task

    async def over(self) -> None:
        """Return when the Hub is back, which is away now."""
        await asyncio.shield(self.begin())

    async def close(self) -> None:
        """Wait no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _wait(self) -> None:
        self._feed.hinder(AWAY)
        try:
            await self._hub.reachable()
        finally:
            self._feed.hinder("")
            asyncio.get_running_loop().call_soon(self.on_end)  # when this task is done
