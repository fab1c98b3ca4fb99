"""The way to a system with SSH: asyncssh, keys from files, and no host but those that are known.

SSH has a command run by the account's login shell, whatever that is (RFC 4254, 6.5). So the command is always the same,
`_COMMAND`: a small program that reads from its standard input what is to be run. Nothing that anybody has said is ever
a part of what a shell reads, nor of a list of processes, but for a command's arguments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncssh

from .errors import AnswerLost, SystemUnavailable
from .gateway import AT_ONCE, MOST_OUTPUT, NOT_FOUND, Done, Reader, Writer
from .systems import Ssh

_PROGRAM = (
    "import json, os, shutil, subprocess, sys; "
    # what login scripts print ends here; what is asked for is sent now, and comes to no other program
    "print(end=chr(0), flush=True); "
    "asked = json.load(sys.stdin); "
    # an account's own options for sbatch are not what was found allowed
    "kept = {name: value for name, value in os.environ.items() if not name.startswith('SBATCH_')}; "
    f"shutil.which(asked['argv'][0]) or sys.exit({NOT_FOUND}); "
    "options = dict(input=asked['text'].encode(), env=dict(kept, **asked['environment']), timeout=asked['timeout']); "
    "sys.exit(subprocess.run(asked['argv'], **options).returncode)"
)
"""For Python 3.6 and later."""
_MOST_NOISE = 64 * 1024
"""Characters that login scripts print at most."""
_KEPT = 60
"""Seconds for which a connection is kept that nobody uses."""
_LOG = logging.getLogger("jhlauncher")


class SshLink:
    """A connection as an account; whoever wants one shares it."""

    errors: tuple[type[Exception], ...] = (OSError, asyncssh.Error)

    def __init__(self, connection: asyncssh.SSHClientConnection, timeout: float) -> None:
        self.connection = connection
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.users = 0
        self.closing: asyncio.TimerHandle | None = None
        self._timeout = timeout

    async def open(self, host: str, port: int) -> tuple[Reader, Writer]:
        """Connect to a port of a node, from the system."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self.connection.open_connection(host, port)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise SystemUnavailable(f"{host}:{port} does not answer.") from error

    async def lost(self) -> None:
        """Return when the connection is no more."""
        await self.connection.wait_closed()


class SshGateway:
    """Commands and connections through a login node.

    Args:
        name: what the system is called.
        settings: how it is reached.
        timeout: seconds for a connection, and for a command.

    """

    def __init__(self, name: str, settings: Ssh, timeout: float) -> None:
        self._name = name
        self._settings = settings
        self._timeout = timeout
        self._links: dict[str, SshLink] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._command = shlex.join([settings.python, "-c", _PROGRAM])

    async def run(
        self,
        account: str,
        argv: Sequence[str],
        *,
        text: str = "",
        environment: Mapping[str, str] | None = None,
        most: int = MOST_OUTPUT,
    ) -> Done:
        """Run a command as an account."""
        asked = {"argv": list(argv), "text": text, "environment": dict(environment or {})}
        begun = False
        try:
            async with asyncio.timeout(self._timeout), self.connected(account) as link, link.turns:
                begun = True
                # ended there before we give up here, so that nothing is left of it
                return await self._run(link, account, json.dumps({**asked, "timeout": self._timeout * 0.8}), most)
        except asyncssh.ChannelOpenError as error:
            raise SystemUnavailable(f"{self._name} runs no commands: {error.reason}") from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            if not begun:
                raise SystemUnavailable(f"{self._name} does not answer in time.") from error
            raise AnswerLost(f"The connection to {self._name} broke while it worked.") from error

    async def _run(self, link: SshLink, account: str, asked: str, most: int) -> Done:
        async with link.connection.create_process(self._command, encoding="utf-8", errors="replace") as process:
            errors = asyncio.ensure_future(_read(process.stderr, most))
            try:
                begun = await _begun(process.stdout)
                if begun:
                    process.stdin.write(asked)
                    process.stdin.write_eof()
                stdout = await _read(process.stdout, most)
                stderr = await errors
            finally:
                errors.cancel()
                await asyncio.gather(errors, return_exceptions=True)
            await process.wait_closed()
        done = Done(-1 if process.exit_status is None else process.exit_status, stdout, stderr)
        if not begun:
            _LOG.error("Commands can't be run as %s on %s: %r", account, self._name, done.complaint)
            raise SystemUnavailable(f"{self._name} runs no commands: {self._settings.python} does not start there.")
        if process.exit_status is None:
            raise AnswerLost(f"The connection to {self._name} broke while it worked.")
        return done

    @asynccontextmanager
    async def connected(self, account: str) -> AsyncIterator[SshLink]:
        """A connection as an account."""
        async with self._locks.setdefault(account, asyncio.Lock()):
            link = self._links.get(account)
            if link is None or link.connection.is_closed():
                link = self._links[account] = SshLink(await self._connect(account), self._timeout)
            link.users += 1
            if link.closing:
                link.closing.cancel()
        try:
            yield link
        finally:
            link.users -= 1
            if not link.users:
                link.closing = asyncio.get_running_loop().call_later(_KEPT, self._let_go, account, link)

    def _let_go(self, account: str, link: SshLink) -> None:
        if self._links.get(account) is link:
            del self._links[account]
        link.connection.close()

    async def _connect(self, account: str) -> asyncssh.SSHClientConnection:
        where = self._settings
        try:
            key = await asyncio.to_thread(asyncssh.read_private_key, where.key.replace("{account}", account))
            known = await asyncio.to_thread(asyncssh.read_known_hosts, where.known_hosts)
        except (asyncssh.KeyImportError, OSError, ValueError) as error:
            _LOG.error("%s can't be reached as %s: %s", self._name, account, error)
            raise SystemUnavailable(
                f"{self._name} can't be reached: the key for your account can't be read."
            ) from error
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncssh.connect(
                    where.address,
                    where.port,
                    username=account,
                    client_keys=[key],
                    known_hosts=known,
                    config=None,
                    agent_path=None,
                    preferred_auth="publickey",
                    keepalive_interval=15,
                    keepalive_count_max=3,
                )
        except (asyncssh.Error, OSError, ValueError, TimeoutError) as error:
            _LOG.error("%s can't be reached as %s: %s", self._name, account, error or type(error).__name__)
            raise SystemUnavailable(f"{self._name} can't be reached: {_why(error)}.") from error

    async def close(self) -> None:
        """Close all connections."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            if link.closing:
                link.closing.cancel()
            link.connection.close()
        await asyncio.gather(*(link.connection.wait_closed() for link in links))


async def _begun(reader: asyncssh.SSHReader[str]) -> bool:
    """Whether the program begins, after what login scripts print, which is not kept."""
    for _ in range(_MOST_NOISE):
        character = await reader.read(1)
        if character in ("", "\0"):
            return bool(character)
    return False


async def _read(reader: asyncssh.SSHReader[str], most: int) -> str:
    """All that comes; an account's own ``python3`` could print for ever."""
    parts, length = [], 0
    while part := await reader.read(64 * 1024):
        parts.append(part)
        length += len(part)
        if length > most:
            raise AnswerLost("The system says too much.")
    return "".join(parts)


def _why(error: BaseException) -> str:
    """For the caller, who need not know where our files are."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return "its host key is not the one that is known"
    if isinstance(error, asyncssh.PermissionDenied):
        return "it does not accept the key for your account"
    return "it does not answer"
