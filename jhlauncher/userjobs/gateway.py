"""What is needed of a way to a system: commands are run there, and ports of its nodes are reached through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where commands are looked for, if nobody says otherwise."""
AT_ONCE = 4
"""Commands of an account at once: sshd admits 10 sessions on a connection (MaxSessions)."""
NOT_FOUND = 127
"""Status of a command that is not there, as shells have it."""
MOST_OUTPUT = 1024**2
"""Characters that a command prints, if nobody says otherwise."""


class Writer(Protocol):
    """The writing half of a stream, of asyncio's or of asyncssh's."""

    def write(self, data: bytes, /) -> None:
        """Send."""

    async def drain(self) -> None:
        """Wait until there is room for more."""

    def write_eof(self) -> None:
        """Send no more."""

    def close(self) -> None:
        """Close."""


class Reader(Protocol):
    """The reading half."""

    async def read(self, n: int, /) -> bytes:
        """At most so many bytes; none: the end."""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The last line that it complained with, without the names of commands and options in front."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line] or lines
        return errors[-1].rpartition("error: ")[2][:500] if errors else f"exit status {self.status}"


class Link(Protocol):
    """A connection that holds."""

    errors: tuple[type[Exception], ...]
    """What its streams raise when they break."""

    async def open(self, host: str, port: int) -> tuple[Reader, Writer]:
        """Connect to a port of a node.

        Raises:
            SystemUnavailable: it does not answer.

        """

    async def lost(self) -> None:
        """Return when the connection is no more."""


class Gateway(Protocol):
    """A way to a system."""

    async def run(
        self,
        account: str,
        argv: Sequence[str],
        *,
        text: str = "",
        environment: Mapping[str, str] | None = None,
        most: int = MOST_OUTPUT,
    ) -> Done:
        """Run a command as an account; no shell has a part in it.

        Args:
            account: whose command it is.
            argv: the program and its arguments.
            text: its standard input.
            environment: variables beside those that the account has.
            most: characters that it may print.

        Raises:
            SystemUnavailable: it was not begun.
            AnswerLost: it was begun, and may have done its work.

        """

    def connected(self, account: str) -> AbstractAsyncContextManager[Link]:
        """A connection as an account, kept as long as somebody is inside.

        Raises:
            SystemUnavailable: there is none.

        """

    async def close(self) -> None:
        """Close all connections."""
