"""The way to a system that is this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from .errors import AnswerLost, SystemUnavailable
from .gateway import AT_ONCE, MOST_OUTPUT, PATH, Done, Reader, Writer

_LOG = logging.getLogger("jhlauncher")


class LocalLink:
    """Nodes are reached from here."""

    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def open(self, host: str, port: int) -> tuple[Reader, Writer]:
        """Connect to a port of a node."""
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise SystemUnavailable(f"{host}:{port} does not answer.") from error

    async def lost(self) -> None:
        """Never return: there is nothing to lose."""
        await asyncio.Event().wait()


class LocalGateway:
    """Commands are run here, as the account if the service is root's, and else by the one account that it has.

    Args:
        timeout: seconds for a command, and for a connection.

    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def run(
        self,
        account: str,
        argv: Sequence[str],
        *,
        text: str = "",
        environment: Mapping[str, str] | None = None,
        most: int = MOST_OUTPUT,
    ) -> Done:
        """Run a command as an account; what it prints is not bounded, since it is a program of this machine's."""
        process = None
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._turns.setdefault(account, asyncio.Semaphore(AT_ONCE)),
            ):
                process = await self._begin(account, argv, environment or {})
                stdout, stderr = await process.communicate(text.encode())
        except TimeoutError:
            if process is None:
                raise SystemUnavailable("Other commands of your account have not ended.") from None
            raise AnswerLost(f"{argv[0]} did not end in {self._timeout:g} s.") from None
        finally:
            if process and process.returncode is None:
                process.kill()
                await process.wait()
        return Done(process.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace"))

    async def _begin(self, account: str, argv: Sequence[str], environment: Mapping[str, str]) -> Process:
        try:
            identity = await asyncio.to_thread(_identity, account)
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                **identity | {"env": identity["env"] | dict(environment)},
            )
        except (OSError, KeyError, ValueError) as error:
            _LOG.error("%s can't be run here as %s: %s", argv[0], account, error)
            raise SystemUnavailable("Commands can't be run with your account.") from error

    @asynccontextmanager
    async def connected(self, account: str) -> AsyncIterator[LocalLink]:
        """What there always is."""
        yield LocalLink(self._timeout)

    async def close(self) -> None:
        """Nothing is open."""


def _identity(account: str) -> dict[str, Any]:
    """As whom, where, and with what environment a command is run."""
    entry = pwd.getpwnam(account)
    if entry.pw_uid == 0:
        raise ValueError("root runs no jobs for others")
    names = {"HOME": entry.pw_dir, "USER": account, "LOGNAME": account, "SHELL": entry.pw_shell, "PATH": PATH}
    locale = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "SLURM_CONF")}
    place: dict[str, Any] = {"env": {**locale, **names}, "cwd": entry.pw_dir}
    if os.geteuid() != 0:
        return place
    groups = os.getgrouplist(account, entry.pw_gid)
    return {**place, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
