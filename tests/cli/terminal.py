"""The command as people and scripts run it: in a terminal (a pty), and piped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fcntl import ioctl
from typing import Any, NamedTuple

import pyte

from tests.conftest import Service
from tests.fake_hub import PLATFORM_TOKEN

COMMAND = [sys.executable, "-W", "error", "-m", "jhlauncher"]
HANGS = 120.0
"""Seconds for a command to show something, or to end: where disks are busy, the imports alone were seen to take 30."""


def environment(service: Service | None = None, token: str = PLATFORM_TOKEN, **more: str) -> dict[str, str]:
    """What a shell has that is set up for this service."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    settings = {"JHLAUNCHER_URL": service.url, "JHLAUNCHER_TOKEN": token} if service else {}
    return {**keep, **settings, "XDG_CONFIG_HOME": "/nonexistent", "TERM": "xterm-256color", "COLUMNS": "100", **more}


class Answer(NamedTuple):
    """What a command has said."""

    status: int
    out: str
    err: str


async def piped(service: Service | None, *arguments: str, stdin: bytes = b"", **more: Any) -> Answer:
    """Run a command whose output is read by a program."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(service, **more),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), HANGS)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), err.decode())


class Terminal:
    """A terminal of 100 columns with a command in it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.received = b""
        """All that the command has written."""
        self._screen = pyte.Screen(100, 40)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = asyncio.Event()

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def receive(self, data: bytes) -> None:
        self.received += data
        self._stream.feed(data)
        self._changed.set()

    async def shows(self, condition: str | Callable[[str], bool]) -> str:
        """The screen when it has this text."""
        fits = condition if callable(condition) else lambda text: condition in text
        try:
            async with asyncio.timeout(HANGS):
                while not fits(self.text):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{condition!r} is not on the screen:\n{self.text}") from None
        return self.text

    async def status(self) -> int:
        """The exit status, when it has ended."""
        return await asyncio.wait_for(self.process.wait(), HANGS)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


@asynccontextmanager
async def terminal(service: Service | None, *arguments: str, **more: str) -> AsyncIterator[Terminal]:
    """Run a command in a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(service, **more), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    screen = Terminal(process)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            data = b""
        if data:
            screen.receive(data)
        else:
            loop.remove_reader(ours)

    loop.add_reader(ours, read)
    try:
        yield screen
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        loop.remove_reader(ours)
        os.close(ours)
