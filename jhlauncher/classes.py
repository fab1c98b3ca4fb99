"""The use cases for many launches at once: a class is started, watched, given more time and stopped as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from .access import READ, Access
from .activity import Activity
from .batches import Batches
from .errors import CallerError, InvalidRequest, LauncherError, NotFound
from .feed import Feed
from .launcher import Launcher
from .models import MAX_BATCH, BatchRequest, Caller, LaunchRequest, SharedLaunch
from .planning import Planner
from .records import BatchEvent, BatchRecord, LaunchRecord
from .signing import Signer
from .store import Store

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 16
"""Launches of a batch that are looked up at the Hub at a time."""


class Doing(NamedTuple):
    """What a class is doing."""

    batch: BatchRecord
    launches: dict[str, LaunchRecord]
    """By id."""
    progress: dict[str, dict[str, Any]]
    """The latest of those that start, by id."""
    activity: dict[str, str]
    """When servers were last used, by id, as far as the Hub has told, and the caller may see it."""


class Classes:
    """Many launches at once."""

    def __init__(
        self,
        launcher: Launcher,
        access: Access,
        planner: Planner,
        store: Store,
        batches: Batches,
        feed: Feed,
        activity: Activity,
        signer: Signer,
    ) -> None:
        self._launcher = launcher
        self._access = access
        self._planner = planner
        self._store = store
        self._batches = batches
        self._feed = feed
        self._activity = activity
        self._signer = signer

    # -- asking

    async def submit(self, caller: Caller, request: BatchRequest, key: str | None = None) -> BatchRecord:
        """Accept many launches in one.

        Raises:
            BatchRefused: all or none were wanted, and one can't be accepted; or none can.
            Forbidden, InvalidRequest: the caller may not see the group, or it gives no class.
            KeyReused: the key was for another request.
            HubUnavailable, StoreUnavailable: try again.

        """
        batch = BatchRecord(
            caller=caller.label,
            request=self._signer.fingerprint(request.model_dump(mode="json")),
            group_name=request.group,
            idempotency_key=key,
        )
        known = await self._batches.same(batch)
        if known:
            return known

        async def prepared(one: tuple[int, LaunchRequest]) -> LaunchRecord | LauncherError:
            number, launch = one
            begins = batch.created + number * request.stagger if number and request.stagger else None
            try:
                return replace(await self._launcher.prepared(caller, launch, not_before=begins), batch=batch.id)
            except CallerError as error:
                return error

        wanted = await self._wanted(caller, request)
        records = await _each(prepared, list(enumerate(wanted)))
        asked = [(launch.username, record) for launch, record in zip(wanted, records, strict=True)]
        return await self._batches.add(batch, asked, all_or_none=request.mode == "all")

    async def _wanted(self, caller: Caller, request: BatchRequest) -> list[LaunchRequest]:
        """The launches that a request stands for."""
        if request.launch is None:
            return request.launches or []
        members = await self._access.people(caller, request.group) if request.group is not None else []
        people = list(dict.fromkeys([*(request.users or []), *members]))
        if len(people) > MAX_BATCH:
            problem = f"{len(people)} people are more than the {MAX_BATCH} of a batch"
            fields = [{"field": "group", "problem": problem}]
            raise InvalidRequest(f"The request is not valid. group: {problem}", details={"fields": fields})
        return [_for(user, request.launch) for user in people]

    # -- telling

    async def get(self, caller: Caller, batch: str) -> tuple[BatchRecord, dict[str, LaunchRecord]]:
        """A batch of the caller's, and its launches by id.

        Raises:
            NotFound: there is none.

        """
        record = await self._batches.get(batch)
        if not record or (record.caller != caller.label and caller.scopes.isdisjoint(READ)):
            raise NotFound("There is no such batch.", reason="batch_not_found")
        return record, {launch.id: launch for launch in await self._batches.launches_of(batch)}

    async def doing(self, caller: Caller, batch: str) -> Doing:
        """What each server of a batch is doing.

        Raises:
            NotFound: there is no such batch.

        """
        record, found = await self.get(caller, batch)
        starts = any(launch.state == "starting" for launch in found.values())
        progress = await self._batches.progress_of(batch) if starts else {}
        running = [launch for launch in found.values() if launch.state == "ready"]
        seen = [launch for launch in running if await self._access.reaches(caller, launch, READ)]
        return Doing(record, found, progress, await self._activity.latest(seen))

    async def find(
        self, caller: Caller, before: str | None, most: int
    ) -> tuple[list[tuple[BatchRecord, dict[str, int]]], str | None]:
        """A page of the caller's own batches, the newest first, each with its launches by state; and the next page.

        Args:
            caller: who asks.
            before: the last batch of the page before; None: the page begins with the newest.
            most: batches on the page.

        """
        found = await self._batches.find(caller.label, before, most + 1)
        page = found[:most]
        counts = await self._batches.counts([batch.id for batch in page])
        following = page[-1].id if len(found) > most else None
        return [(batch, counts.get(batch.id, {})) for batch in page], following

    async def is_told(self, batch: str, after: int) -> bool:
        """Whether nothing follows in a batch after the event with that number."""
        return await self._batches.is_over(batch) and not await self._batches.events_of(batch, after)

    def follow(self, batch: str, after: int = 0) -> AsyncGenerator[BatchEvent, None]:
        """To which states its launches come, and which get another end, until all have ended."""
        return self._feed.follow_batch(batch, after)

    # -- ending

    async def extend(
        self, caller: Caller, batch: str, seconds: float | None
    ) -> list[tuple[LaunchRecord, LauncherError | None]]:
        """Give all launches of a batch that have not ended so many seconds; each, and why it could not be.

        Args:
            caller: who asks.
            batch: which.
            seconds: from now on, or from ready; None: until somebody stops them.

        Raises:
            NotFound: there is no such batch.
            HubUnavailable, StoreUnavailable: try again.

        """
        _, found = await self.get(caller, batch)
        active = [launch for launch in found.values() if not launch.final]

        async def refusal(launch: LaunchRecord) -> LauncherError | None:
            try:
                await self._planner.check_lifetime(caller, launch, seconds)
            except CallerError as error:
                return error
            return None

        refusals = zip(active, await _each(refusal, active), strict=True)
        refused = {launch.id: error for launch, error in refusals if error}
        allowed = [launch.id for launch in active if launch.id not in refused]
        extended = dict(zip(allowed, await self._store.extend(allowed, seconds, caller.label), strict=True))
        became: dict[str, LaunchRecord | LauncherError] = {**refused, **extended}
        results = [(launch, became[launch.id]) for launch in active]
        return [(launch, result) if isinstance(result, LauncherError) else (result, None) for launch, result in results]

    async def end(self, caller: Caller, batch: str) -> bool:
        """End all launches of a batch; whether all have ended.

        Raises:
            NotFound: there is no such batch.
            Forbidden: the caller may not stop one of its servers; those before it are being ended.

        """
        _, found = await self.get(caller, batch)
        ended = [await self._launcher.end(caller, launch) for launch in found]
        return all(record.final for record in ended)


async def _each(work: Callable[[Item], Awaitable[Result]], items: Sequence[Item]) -> list[Result]:
    """The results of work on each item, some at a time.

    Raises:
        Exception: the first that one of them raises.

    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: Item) -> Result:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _for(user: str, launch: SharedLaunch) -> LaunchRequest:
    """What this user gets."""
    asked = {name: getattr(launch, name) for name in launch.model_fields_set}
    return LaunchRequest(username=user, **asked)
