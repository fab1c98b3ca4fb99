"""``batches``: many launches in one request, with one id to follow."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import Any

from ..classes import Classes, Doing
from ..models import BatchRequest, ExtendRequest, Model, NoQuery
from .launches import EventsHandler, EventsQuery, Id, LaunchHandler, Limit
from .streams import EventStream
from .views import (
    BatchItemView,
    BatchList,
    BatchView,
    ErrorView,
    ExtendedItem,
    ExtendedList,
    ProgressView,
    batch_summary,
    event_data,
)


class BatchesQuery(Model):
    """The query of ``GET batches``."""

    limit: Limit = 50
    """How many at most."""
    cursor: Id | None = None
    """``next`` of the page before."""


class BatchHandler(LaunchHandler):
    """What the handlers of batches share."""

    @property
    def classes(self) -> Classes:
        """The use cases."""
        return self.services.parts.classes

    async def answer_batch(self, batch: str, status: int = 200) -> None:
        """Answer with the batch as its caller sees it."""
        doing = await self.classes.doing(self.caller, batch)
        items = [await self._item(item, doing) for item in doing.batch.items]
        counts: Counter[str] = Counter(record.state for record in doing.launches.values())
        summary = batch_summary(doing.batch, dict(counts), self.services.prefix)
        view = BatchView(**summary.model_dump(), items=items)
        self.answer(view.model_dump(mode="json"), status)

    async def _item(self, item: dict[str, Any], doing: Doing) -> BatchItemView:
        launch = item.get("launch", "")
        record, progress = doing.launches.get(launch), doing.progress.get(launch)
        return BatchItemView(
            username=record.username if record else item.get("username"),
            launch=await self.view(record, with_position=False) if record else None,
            error=ErrorView(**item["error"]) if "error" in item else None,
            progress=ProgressView(**progress) if progress else None,
            last_activity=doing.activity.get(launch),
        )


class BatchesHandler(BatchHandler):
    """All batches."""

    async def get(self) -> None:
        """List the caller's own, the newest first."""
        query = self.query(BatchesQuery)
        found, following = await self.classes.find(self.caller, query.cursor, query.limit)
        items = [batch_summary(batch, counts, self.services.prefix) for batch, counts in found]
        self.answer(BatchList(items=items, next=following).model_dump(mode="json"))

    async def post(self) -> None:
        """Accept many launches."""
        self.query(NoQuery)
        batch = await self.classes.submit(self.caller, self.body(BatchRequest), self.idempotency_key())
        self.set_header("Location", f"{self.services.prefix}batches/{batch.id}")
        await self.answer_batch(batch.id, status=202)


class OneBatchHandler(BatchHandler):
    """One batch."""

    async def get(self, batch: str) -> None:
        """Tell what each of its launches is doing."""
        self.query(NoQuery)
        await self.answer_batch(batch)

    async def patch(self, batch: str) -> None:
        """Give all its launches another end; each is told, and one that is refused does not stop the others."""
        self.query(NoQuery)
        results = await self.classes.extend(self.caller, batch, self.body(ExtendRequest).lifetime)
        items = [
            ExtendedItem(
                launch=await self.view(record, with_position=False),
                error=ErrorView(**error.as_dict()) if error else None,
            )
            for record, error in results
        ]
        self.answer(ExtendedList(items=items).model_dump(mode="json"))

    async def delete(self, batch: str) -> None:
        """End all its launches: 204 when that is done, 202 while it is being done."""
        self.query(NoQuery)
        if await self.classes.end(self.caller, batch):
            self.nothing()
        else:
            await self.answer_batch(batch, status=202)


class BatchEventsHandler(EventsHandler):
    """To which states the launches of a batch come, and which get another end."""

    async def get(self, batch: str) -> None:
        """Send what has happened since ``Last-Event-ID``, and what happens, until all have ended."""
        classes = self.services.parts.classes
        after = self.last_event_id(self.query(EventsQuery))
        await classes.get(self.caller, batch)
        if after and await classes.is_told(batch, after):
            return self.nothing()  # which tells a browser not to come back

        async def send(stream: EventStream) -> None:
            async with aclosing(classes.follow(batch, after)) as events:
                async for event in events:
                    about = {"launch": event.launch, "username": event.username, "server_name": event.server_name}
                    await stream.send(about | event_data(event), name=event.name, id=event.seq)

        return await self.stream(send)
