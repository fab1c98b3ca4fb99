"""Cleans up after services: those that could not be removed, that ended, and those that no Hub knows any more.

A Hub drops a server that does not run and says nothing; and a Hub may be gone, or restored from an older database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from ..errors import LauncherError
from .reports import Reports
from .rows import Row, Rows
from .services import ServiceManager
from .watching import Watching

_AT_ONCE = 10
"""Hubs that are asked at the same time."""
_SLACK = 120
"""Seconds after which a start that must be over is taken to be lost."""


class Reaper(LoggingConfigurable):
    """Removes what is not wanted any more."""

    interval = Float(30, min=0.1, help="Seconds between two rounds.").tag(config=True)
    ended_grace = Float(
        600, min=0, help="Seconds after which a service that does not run, or can't start, is removed."
    ).tag(config=True)
    hub_interval = Float(
        300, min=0, help="Seconds between two questions to a Hub whether it still knows a service. 0: it is not asked."
    ).tag(config=True)
    hub_refusals = Integer(
        2, min=1, help="How often in a row a Hub must say that it does not know a service before it is removed."
    ).tag(config=True)

    def __init__(
        self, rows: Rows, manager: ServiceManager, watching: Watching, reports: Reports, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self._rows = rows
        self._manager = manager
        self._watching = watching
        self._reports = reports
        self._refusals: dict[str, int] = {}

    async def start(self) -> None:
        """Begin."""
        rounds = {"reaper": (self._clean, self.interval), "known to Hubs": (self._ask_hubs, self.hub_interval)}
        self._tasks = [
            asyncio.create_task(self._rounds(work, interval), name=name)
            for name, (work, interval) in rounds.items()
            if interval
        ]

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _rounds(self, work: Callable[[list[Row]], Awaitable[None]], interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await work(await self._rows.all())
            except LauncherError as error:
                self.log.warning("The services can't be looked through now: %s", error.message)
            except Exception:
                self.log.exception("The services could not be looked through")

    async def _clean(self, rows: list[Row]) -> None:
        for row in rows:
            overdue = time.time() - row.created > self._manager.start_timeout + _SLACK
            if row.stop_pending or (row.state == "starting" and overdue):
                self.log.info("Service %s is to be stopped, and was not removed yet", row)
                self._manager.end(row)
            elif row.state == "started" and self._watching.down_for(row.key) > self.ended_grace:
                self._remove(row, "has not been running for a while")

    def _remove(self, row: Row, why: str) -> None:
        self.log.warning("Service %s %s; it is removed", row, why)
        self._manager.end(row)

    async def _ask_hubs(self, rows: list[Row]) -> None:
        rows = [row for row in rows if row.state == "started" and not row.stop_pending]
        self._refusals = {row.key: self._refusals.get(row.key, 0) for row in rows}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(row: Row) -> None:
            async with gate:
                contact = await self._watching.contact(row)
                known = await self._reports.known(contact) if contact else "unclear"
            if known == "unclear":
                return
            self._refusals[row.key] = self._refusals[row.key] + 1 if known == "no" else 0
            if self._refusals[row.key] >= self.hub_refusals:
                self._remove(row, "is not known to its Hub any more")

        for result in await asyncio.gather(*map(one, rows), return_exceptions=True):
            if isinstance(result, Exception):
                self.log.warning("A service's Hub could not be asked: %s", result)
