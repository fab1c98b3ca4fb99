"""``batches``: many launches in one request, with one id to follow."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing

from ..models import BatchRequest, NoQuery
from ..records import BatchRecord, LaunchRecord
from .launches import EventsHandler, EventsQuery, LaunchHandler
from .streams import EventStream
from .views import BatchItemView, BatchView, ErrorView, iso, moment


class BatchHandler(LaunchHandler):
    """What the handlers of batches share."""

    async def batch_view(self, batch: BatchRecord, found: dict[str, LaunchRecord]) -> BatchView:
        """The batch as its caller sees it."""
        items = []
        for item in batch.items:
            record = found.get(item.get("launch", ""))
            view = await self.view(record, with_position=False) if record else None
            error = ErrorView(**item["error"]) if "error" in item else None
            items.append(BatchItemView(launch=view, error=error))
        counts: Counter[str] = Counter(record.state for record in found.values())
        refused = {"refused": sum("error" in item for item in batch.items)}
        base = f"{self.services.prefix}batches/{batch.id}"
        created = moment(batch.created)
        assert created  # noqa: S101  (for mypy: it always is)
        return BatchView(
            id=batch.id,
            created=created,
            caller=batch.caller,
            counts={**counts, **refused},
            items=items,
            links={"self": base, "events": f"{base}/events"},
        )


class BatchesHandler(BatchHandler):
    """All batches."""

    async def post(self) -> None:
        """Accept many launches."""
        self.query(NoQuery)
        request = self.body(BatchRequest)
        launcher = self.services.parts.launcher
        batch = await launcher.submit_batch(self.caller, request, self.idempotency_key())
        _, found = await launcher.get_batch(self.caller, batch.id)
        self.set_header("Location", f"{self.services.prefix}batches/{batch.id}")
        self.answer((await self.batch_view(batch, found)).model_dump(mode="json"), status=202)


class OneBatchHandler(BatchHandler):
    """One batch."""

    async def get(self, batch: str) -> None:
        """Tell about it."""
        self.query(NoQuery)
        record, found = await self.services.parts.launcher.get_batch(self.caller, batch)
        self.answer((await self.batch_view(record, found)).model_dump(mode="json"))

    async def delete(self, batch: str) -> None:
        """End all its launches: 204 when that is done, 202 while it is being done."""
        self.query(NoQuery)
        if await self.services.parts.launcher.end_batch(self.caller, batch):
            self.clear_header("Content-Type")
            self.set_status(204)
            await self.finish()
        else:
            record, found = await self.services.parts.launcher.get_batch(self.caller, batch)
            self.answer((await self.batch_view(record, found)).model_dump(mode="json"), status=202)


class BatchEventsHandler(EventsHandler):
    """To which states the launches of a batch come."""

    async def get(self, batch: str) -> None:
        """Send what has happened since ``Last-Event-ID``, and what happens, until all have ended."""
        after = self.last_event_id(self.query(EventsQuery))
        await self.services.parts.launcher.get_batch(self.caller, batch)
        if after and await self.services.parts.launcher.is_told(batch, after):
            return await self.answer_nothing()

        async def send(stream: EventStream) -> None:
            async with aclosing(self.services.parts.launcher.follow_batch(batch, after)) as events:
                async for event in events:
                    about = {"launch": event.launch, "username": event.username, "server_name": event.server_name}
                    await stream.send({"time": iso(event.time), **about, **event.data}, name=event.name, id=event.seq)

        return await self.stream(send)
