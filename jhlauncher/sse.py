"""Server-sent events, as the WHATWG specifies them (HTML standard, section 9.2): writing and reading.

Knows nothing of what the events mean.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, NamedTuple

KEEPALIVE = ": keepalive\n\n"
"""A comment, which readers skip; sent so that proxies do not close a quiet stream."""

MAX_EVENT_CHARS = 1_000_000
"""An event longer than this is a broken or hostile sender."""


class Event(NamedTuple):
    """One received event: its ``data`` lines joined, its ``event`` name ("message" if none), its last ``id``."""

    data: str
    name: str = "message"
    id: str = ""


def encode(data: Any, *, name: str = "", id: int | None = None) -> str:
    """One event with ``data`` as JSON, ready to be written. Readers send the latest ``id`` when they come back."""
    head = f"id: {id}\n" if id is not None else ""
    head += f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n"


async def lines(chunks: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """Split a byte stream at LF, CR LF or CR; an unfinished last line is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    pending = ""
    after_cr = False  # a CR ended the last chunk, so that an LF at the beginning of this one is its second half
    async for chunk in chunks:
        text = decoder.decode(chunk)
        if not text:
            continue
        if after_cr:
            text = text.removeprefix("\n")
        after_cr = chunk.endswith(b"\r")
        *complete, pending = (pending + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(pending) > MAX_EVENT_CHARS:
            raise ValueError("a line of the event stream is too long")
        for line in complete:
            yield line


async def decode(chunks: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The events of a byte stream, until it ends; an event that was cut off is not reported.

    Raises:
        ValueError: an event is longer than `MAX_EVENT_CHARS`.

    """
    data: list[str] = []
    size = 0
    name = last_id = ""
    async for line in lines(chunks):
        if not line:
            if data:
                yield Event("\n".join(data), name or "message", last_id)
            data, size, name = [], 0, ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
            size += len(value) + 1
            if size > MAX_EVENT_CHARS:
                raise ValueError("an event of the stream is too long")
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value
