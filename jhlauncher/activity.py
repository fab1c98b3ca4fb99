"""When servers were last used, as the Hub knows it: asked for all at once, and remembered for a while."""

from __future__ import annotations

import asyncio
import time

from traitlets import Float
from traitlets.config import LoggingConfigurable

from .errors import LauncherError
from .hub import Hub
from .records import LaunchRecord
from .starting import launch_id

_PATIENCE = 3
"""Seconds for the Hub's answer; without one, it is told what was known before."""


class Activity(LoggingConfigurable):
    """The latest activity of servers."""

    activity_cache_seconds = Float(
        10, min=0.01, help="Seconds for which it is remembered when the Hub's servers were last used."
    ).tag(config=True)

    def __init__(self, hub: Hub, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._known: dict[str, str] = {}
        self._asked = 0.0
        """When, in seconds since 1970."""
        self._until = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def latest(self, records: list[LaunchRecord]) -> dict[str, str]:
        """When the servers of these launches were last used, in ISO 8601, as far as that is known; by launch.

        Those who ask at once share one request; a Hub that does not answer is not waited for.
        """
        if not records:
            return {}
        new = any(record.ready and record.ready > self._asked for record in records)
        if (new or time.monotonic() >= self._until) and (self._asking is None or self._asking.done()):
            self._asked = time.time()
            self._asking = asyncio.create_task(self._ask(), name="activity of servers")
        if self._asking:
            await asyncio.wait([self._asking], timeout=_PATIENCE)
        return {record.id: self._known[record.id] for record in records if record.id in self._known}

    async def _ask(self) -> None:
        try:
            servers = await self._hub.active_servers()
            times = {launch_id(server): server.get("last_activity") for server in servers.values()}
            self._known = {launch: time for launch, time in times.items() if launch and time}
        except LauncherError as error:
            self.log.warning("Could not ask when servers were last used: %s", error.message)
        self._until = time.monotonic() + self.activity_cache_seconds
