"""Server-sent events, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jhlauncher import sse
from jhlauncher.handlers.streams import Keepalive
from jhlauncher.sse import Event

pytestmark = pytest.mark.asyncio


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b'data: {"a": 1}\n\n', [Event('{"a": 1}')]),
        (b"\n\n\n\ndata: x\n\n\n", [Event("x")]),
        (b"data: x\r\n\r\ndata: y\r\r", [Event("x"), Event("y")]),
        (b"data: x\rdata: y\r\r", [Event("x\ny")]),
        (b": comment\ndata:x\ndata:  y\n\n", [Event("x\n y")]),
        (b"event: ready\nid: 7\ndata: x\n\ndata: y\n\n", [Event("x", "ready", "7"), Event("y", "message", "7")]),
        (b"event: none\n\ndata\n\n", [Event("")]),
        ("\ufeffdata: ünï 🎈\n\n".encode(), [Event("ünï 🎈")]),
        (b"data: cut off\n", []),
        (b"data: cut off", []),
        (b"retry: 3\nunknown: x\ndata: y\n\n", [Event("y")]),
    ],
)
async def test_decode(data: bytes, events: list[Event], size: int):
    assert [event async for event in sse.decode(chunks(data, size))] == events


async def test_encode_is_decoded():
    text = sse.encode({"message": "two\nlines"}, name="progress") + sse.KEEPALIVE + sse.encode(1)
    events = [event async for event in sse.decode(chunks(text.encode(), 5))]
    assert events == [Event('{"message":"two\\nlines"}', "progress"), Event("1")]


@pytest.mark.parametrize("data", [b"x" * 1_100_000, b"data: " + b"x" * 1_000 + b"\n"])
async def test_endless_event_is_an_error(data: bytes):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2_000):
            yield data

    with pytest.raises(ValueError, match="too long"):
        [event async for event in sse.decode(endless())]


class Stream:
    """An open stream as the keepalive sees it."""

    def __init__(self) -> None:
        self.ended = False
        self.signs = 0

    def send_now(self, text: str) -> None:
        assert not self.ended, "Tornado would raise"
        self.signs += 1


@pytest.mark.asyncio
async def test_signs_of_life_go_on_while_streams_end():
    keepalive = Keepalive(0)
    streams = [Stream() for _ in range(200)]
    for stream in streams:
        keepalive.add(stream)  # type: ignore[arg-type]
    for stream in streams[1:]:
        await asyncio.sleep(0)  # in between two groups, too
        stream.ended = True
        keepalive.discard(stream)  # type: ignore[arg-type]
    signs = streams[0].signs
    async with asyncio.timeout(5):
        while streams[0].signs < signs + 3:
            await asyncio.sleep(0.001)
    await keepalive.stop()
