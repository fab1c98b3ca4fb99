"""Works on launches, one replica's share of them: takes up those whose turn it is, and what others have left.

What wakes a round: a launch was accepted (`store.QUEUE`), one is ready or has ended while others wait (`store.ROOM`),
one is due, the Hub may take more, and the replica's own sign of life. What is done for one launch is
`jhlauncher.lifecycle`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import sqlalchemy as sa
from traitlets.config import LoggingConfigurable

from . import queries
from .errors import HubUnavailable, LauncherError, LaunchFailed, StoreUnavailable
from .lifecycle import Lifecycle, Work
from .outage import Outage
from .queue import StartBound
from .records import FINAL, LaunchRecord, name_of, new_id
from .replicas import Replicas
from .store import QUEUE, ROOM, STOP, Store

_FORGET_INTERVAL = 3600
"""Seconds."""


class _Taken(NamedTuple):
    """What a round has found."""

    starting: list[LaunchRecord]
    """Those whose turn it is."""
    left: list[LaunchRecord]
    """Those that nobody worked on."""
    ours: list[LaunchRecord]
    """All that this replica has, if it was looked for."""
    outlook: queries.Outlook


class Worker(LoggingConfigurable):
    """Works on launches."""

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        lifecycle: Lifecycle,
        bound: StartBound,
        outage: Outage,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._store = store
        self._replicas = replicas
        self._lifecycle = lifecycle
        self._bound = bound
        self._outage = outage
        self.replica = new_id()
        self._works: dict[str, Work] = {}
        self._outlook = queries.Outlook(waits=True, due=-math.inf)  # as of the last round
        self._check_ours = True  # what we have: something may have been missed
        self._taken_again: set[str] = set()  # whose task was about to end
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.superseded = asyncio.Event()
        """Set when another process has taken this one's place at the database."""
        outage.on_end = self._wake.set

    async def start(self) -> None:
        """Take up what there is, and work from now on."""
        self._store.database.on_change(self._changed, self._check)
        await self._replicas.join(self.replica)
        self._check()
        for run in (self._rounds, self._signs_of_life, self._forgetting):
            self._tasks.append(asyncio.create_task(run(), name=run.__name__.strip("_")))

    async def stop(self) -> None:
        """Leave everything where it is, for others or the next process to go on with."""
        await _cancelled(self._tasks)
        await self._leave_works()
        with contextlib.suppress(StoreUnavailable):
            await self._replicas.leave(self.replica)

    async def _leave_works(self) -> None:
        await _cancelled([work.task for work in self._works.values() if work.task])

    # -- rounds

    def _changed(self, topic: str) -> None:
        if topic == QUEUE or (topic == ROOM and self._outlook.waits):
            self._wake.set()
        elif topic.startswith(STOP):
            launch = topic.removeprefix(STOP)
            if launch in self._works:
                self._works[launch].interrupt()
                self._wake.set()  # its task may just have ended
            else:  # it may be on its way here
                self._check()

    def _check(self) -> None:
        """Have the next round look at all that is this replica's: something may have been missed."""
        self._check_ours = True
        self._wake.set()

    async def _rounds(self) -> None:
        while True:
            await self._sleep_until_woken()
            try:
                await self._round()
            except StoreUnavailable:
                self._check()  # it has waited long enough already
            except Exception:
                self.log.exception("A round of the worker failed")
                await asyncio.sleep(1)
                self._check()

    async def _sleep_until_woken(self) -> None:
        seconds = min(max(0.0, self._outlook.due - time.time()), self._bound.rises_in)
        with contextlib.suppress(TimeoutError):  # asyncio.wait_for might swallow a cancellation (Python 3.11)
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _round(self) -> None:
        if self._outlook.due <= time.time():
            await self._settle_due()
        replica, most = self.replica, self._bound.rise()
        takes = not self._outage.lasts
        check, self._check_ours = self._check_ours, False
        self._outlook = self._outlook._replace(waits=True)  # until we know better; what tells of room now is heard
        if takes and not check:
            to_do, self._outlook = await self._store.database.read(partial(queries.to_do, replica=replica, most=most))
            if not to_do:
                return
        known = set(self._works)  # before asking: what ends meanwhile may still be in the answer
        taking = self._taking(replica, most if takes else None, check)
        taken = await self._store.database.write(taking, alone=True)
        self._outlook = taken.outlook
        for record in taken.left:
            self._take_up(record, replica, resumed=True)
        for record in taken.starting:
            self._take_up(record, replica, resumed=False)
        for record in taken.ours:
            if record.id in self._works:
                if record.stop_by:  # in case that was not heard
                    self._works[record.id].interrupt()
            elif record.id not in known:
                self._take_up(record, replica, resumed=True)

    def _taking(self, replica: str, most: int | None, check: bool) -> Callable[[sa.Connection], _Taken]:
        """The transaction that takes what is to be done.

        Args:
            replica: for whom.
            most: how many may be starting then; None: the Hub is away, and nothing is taken.
            check: look at all that the replica has.

        """
        attempts = count()

        def work(connection: sa.Connection) -> _Taken:
            left = starting = ours = []
            if most is not None:
                left = self._replicas.take_over(connection, replica)
                starting = self._store.claim(connection, replica, most)
            if next(attempts) or check:  # done again, it does not know what it took if the answer was all that was lost
                ours = queries.owned(connection, replica)
            return _Taken(starting, left, ours, queries.outlook(connection))

        return work

    def _take_up(self, record: LaunchRecord, replica: str, resumed: bool) -> None:
        if record.id in self._works:  # given back or let go just now, and its task is about to end
            self._taken_again.add(record.id)
            return
        work = self._works[record.id] = Work(record, replica, resumed)
        work.task = asyncio.create_task(self._lifecycle.run(work), name=f"launch {record.id}")
        work.task.add_done_callback(lambda task: self._done(record.id, task))

    def _done(self, launch: str, task: asyncio.Task[None]) -> None:
        self._works.pop(launch, None)
        if task.cancelled() or launch in self._taken_again:  # one that was to end may not even have begun
            self._check()
        elif task.exception():  # the next sign of life takes it up again
            self.log.error("Launch %s: a bug", launch, exc_info=task.exception())
        self._taken_again.discard(launch)

    async def _settle_due(self) -> None:
        """What was put off begins to wait, what has waited too long expires, lifetimes come to their end."""
        now = time.time()
        for record in await self._store.due(now):
            if record.state == "queued" and record.wait_until and now < record.wait_until:
                await self._store.let_wait(record.id)
            elif record.state == "queued":
                error = self._no_turn(record).as_dict()
                await self._store.change(record.id, "expired", error, unless=(*FINAL, "starting", "ready"), error=error)
            elif record.state == "ready" and record.ends:
                await self._store.settle_lifetime(record.id)
            else:
                await self._store.settle(record.id)

    def _no_turn(self, record: LaunchRecord) -> LauncherError:
        server, seconds = name_of(record.username, record.server_name), time.time() - record.waits_since
        if self._outage.lasts:
            return HubUnavailable(f"JupyterHub could not be reached for {seconds:.0f} seconds to start {server}.")
        if self._bound.rises_in < math.inf:
            return LaunchFailed(
                f"JupyterHub was too busy for {seconds:.0f} seconds to start {server}.", reason="throttled"
            )
        text = f"There was no turn within {seconds:.0f} seconds for {server}. Try again later."
        return LaunchFailed(text, reason="queue_timeout")

    # -- one of several

    async def _signs_of_life(self) -> None:
        """Keep what we hold; let it go when others have it."""
        while True:
            await asyncio.sleep(self._replicas.lease_timeout / 3)
            try:
                if not await self._replicas.alive(self.replica):
                    await self._superseded()
            except StoreUnavailable:
                pass  # the store has told it
            except Exception:
                self.log.exception("Could not give a sign of life")
            self._check()  # somebody else may have died

    async def _forgetting(self) -> None:
        """Forget what ended long ago, bit by bit."""
        while True:
            try:
                more = await self._store.purge()
            except StoreUnavailable:
                more = False
            except Exception:
                self.log.exception("Could not forget what ended long ago")
                more = False
            await asyncio.sleep(1 if more else _FORGET_INTERVAL)

    async def _superseded(self) -> None:
        await self._leave_works()
        database = self._store.database
        if database.on_sqlite and await self._replicas.all():
            self.log.error("Another jhlauncher uses the database %s; this one ends.", database.label)
            self.superseded.set()
            await asyncio.Event().wait()
        self.log.warning("This replica gave no sign of life for too long; others have its launches. It begins anew.")
        replica = new_id()
        await self._replicas.join(replica)
        self.replica = replica


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
