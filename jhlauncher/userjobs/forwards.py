"""Forwards: this process listens, and what comes is taken to a node, over the way to its system.

The listening sockets are our own, and not asyncssh's, which end with the connection: so a port stays where it is while
the connection is made again, whoever comes meanwhile waits a little, and nobody else gets the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from traitlets import Float, Integer, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from ..errors import Temporary
from .errors import SystemUnavailable
from .gateway import Gateway, Link, Reader, Writer
from .rows import Forwarded, UserJob
from .systems import Owner

_CHUNK = 64 * 1024
_QUARANTINE = 3600
"""Seconds in which nobody else gets a port."""


class Forwards(LoggingConfigurable):
    """The forwards that are there."""

    ips = List(
        Unicode(),
        ["127.0.0.1"],
        help="""The addresses of this machine at which is listened: where users' servers reach it, and no others.

        Whoever reaches one of them reaches what users' jobs serve, which must ask for a password or token itself.
        """,
    ).tag(config=True, key="userjobs.ips")
    address = Unicode(
        help="How users' servers call this machine, where there is no cluster. Default: the first of `ips`."
    ).tag(config=True, key="userjobs.address")
    ports = Unicode("18000-18999", help="FIRST-LAST: the ports at which is listened.").tag(
        config=True, key="userjobs.ports"
    )
    max_connections = Integer(
        100, min=1, help="Connections that a forward has at once; as many more wait, and others are refused."
    ).tag(config=True)
    connect_timeout = Float(
        20, min=0.1, help="Seconds that whoever connects waits while the way to the system is made again."
    ).tag(config=True)
    retry_delay = Float(
        1, min=0.01, help="Seconds after which a connection that broke is made again; each time twice as long."
    ).tag(config=True)
    max_retry_delay = Float(60, min=0.01, help="The longest of these delays.").tag(config=True)

    @validate("ips")
    def _valid_ips(self, proposal: Any) -> list[str]:
        for ip in proposal.value:
            try:
                ipaddress.ip_address(ip)
            except ValueError:
                raise TraitError(f"Forwards.ips: {ip!r} is no IP address") from None
        if not proposal.value:
            raise TraitError("Forwards.ips needs an address")
        return list(proposal.value)

    @validate("ports")
    def _valid_ports(self, proposal: Any) -> str:
        first, _, last = proposal.value.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
            raise TraitError("Forwards.ports must be FIRST-LAST, from 1024 to 65535")
        return str(proposal.value)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._forwards: dict[str, _Forward] = {}
        self._refused: dict[str, str] = {}
        self._freed: dict[int, tuple[Owner, float]] = {}

    def check(self) -> None:
        """Refuse addresses that this machine does not have.

        Raises:
            TraitError: it can't listen at one.

        """
        for ip in self.ips:
            if not _is_free(ip, 0):
                raise TraitError(f"Forwards.ips: {ip} is no address of this machine")

    def choose(self, number: int, taken: set[int], owner: Owner) -> list[int]:
        """Ports at which nobody listens, for an owner: their own of before, and those that are nobody's.

        Whoever still has a page open that came through a port is not to send its token to the next one's job.

        Raises:
            Temporary: there are not so many.

        """
        first, last = map(int, self.ports.split("-"))
        chosen: list[int] = []
        now = time.monotonic()
        ports = random.sample(range(first, last + 1), last + 1 - first)
        others = {port for port, (of, when) in self._freed.items() if of != owner and now - when < _QUARANTINE}
        for port in sorted(ports, key=lambda port: self._freed.get(port, (None, 0))[0] != owner):
            if len(chosen) == number:
                break
            if port not in taken and port not in others and all(_is_free(ip, port) for ip in self.ips):
                chosen.append(port)
        if len(chosen) < number:
            raise Temporary("All ports for forwards are in use. Try again later.", reason="ports_in_use")
        return chosen

    async def open(self, job: UserJob, gateway: Gateway, changed: Callable[[], None]) -> None:
        """Forward the ports of a user job from now on; one that is forwarded already to that node goes on.

        Args:
            job: with a node.
            gateway: to its system.
            changed: is called when the connection comes or goes.

        """
        existing = self._forwards.get(job.key)
        if existing and existing.job.target_node != job.target_node:
            await self.close(job.key)
        self._refused.pop(job.key, None)
        if job.key not in self._forwards:
            self._forwards[job.key] = forward = _Forward(job, gateway, changed, self)
            forward.task = asyncio.create_task(forward.keep(), name=f"forward of {job.service}")

    def problem(self, job: UserJob) -> str | None:
        """What is in the way of a user job's forwards; "" if nothing is, None if there are none now."""
        forward = self._forwards.get(job.key)
        return forward.problem if forward else self._refused.get(job.key)

    def refuse(self, job: UserJob, problem: str) -> None:
        """Say why a user job's ports are not forwarded."""
        self._refused[job.key] = problem

    async def close(self, *keys: str) -> None:
        """End forwards; without a key, all of them."""
        forwards = [self._forwards.pop(key) for key in keys or list(self._forwards) if key in self._forwards]
        for key in keys:
            self._refused.pop(key, None)
        for forward in forwards:
            self._freed |= {each.local: (forward.job.owner, time.monotonic()) for each in forward.job.forwards}
        await asyncio.gather(*(forward.close() for forward in forwards))


class _Forward:
    """The ports of one user job."""

    def __init__(self, job: UserJob, gateway: Gateway, changed: Callable[[], None], settings: Forwards) -> None:
        self.job = job
        self.problem = "It is not connected yet."
        self.task: asyncio.Task[None] | None = None
        self._gateway = gateway
        self._changed = changed
        self._settings = settings
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(settings.max_connections)

    async def keep(self) -> None:
        """Listen, hold the connection, and make it again when it breaks."""
        delay = self._settings.retry_delay
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for forward in self.job.forwards:
                        await self._listen(stack, forward)
                    while True:
                        with contextlib.suppress(SystemUnavailable):
                            await self._hold()
                            delay = self._settings.retry_delay
                        await asyncio.sleep(delay)
                        delay = min(delay * 2, self._settings.max_retry_delay)
            except Exception as error:
                taken = isinstance(error, OSError)
                self._settings.log.error(
                    "%s can't be forwarded, and will be tried again: %s", self.job, error, exc_info=not taken
                )
                self._say("Its port is taken on our side." if taken else "It can't be forwarded.")
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._settings.max_retry_delay)

    async def _listen(self, stack: contextlib.AsyncExitStack, forward: Forwarded) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._connections) >= 2 * self._settings.max_connections:  # as many wait as are served
                writer.close()
                return
            _keep_alive(writer)
            task = asyncio.create_task(self._serve(forward, reader, writer), name="forwarded connection")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        for ip in self._settings.ips:
            server = await asyncio.start_server(accept, ip, forward.local)
            stack.callback(server.close)

    async def _hold(self) -> None:
        """Be connected, until the connection is lost.

        Raises:
            SystemUnavailable: there is none.

        """
        try:
            async with self._gateway.connected(self.job.account) as link:
                self._link = link
                self._linked.set()
                self._say("")
                await link.lost()
                self._settings.log.warning("The connection that %s is forwarded over has broken", self.job)
                self._say("The connection to the system has broken; it is made again.")
        except SystemUnavailable as error:
            self._say(error.message)
            raise
        finally:
            self._linked.clear()
            self._link = None

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._changed()

    async def _serve(self, forward: Forwarded, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection to the node."""
        try:
            async with self._room:
                async with asyncio.timeout(self._settings.connect_timeout):
                    await self._linked.wait()
                    link = self._link
                    if link is None or self.job.target_node is None:
                        return
                    there, back = await link.open(self.job.target_node, forward.remote)
                await _relay(reader, writer, there, back, link.errors)
        except (TimeoutError, SystemUnavailable):
            self._settings.log.info("A connection to %s found nobody at port %i", self.job, forward.remote)
        finally:
            writer.close()

    async def close(self) -> None:
        """End."""
        tasks: Iterable[asyncio.Task[None]] = [*filter(None, [self.task]), *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _relay(
    reader: Reader, writer: Writer, there: Reader, back: Writer, errors: tuple[type[Exception], ...]
) -> None:
    """Take bytes there and back, until both sides have said all, or one has gone."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, back))
            both.create_task(_pump(there, writer))
    except* errors:
        pass
    finally:
        back.close()


async def _pump(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, NotImplementedError):
        writer.write_eof()  # one way is done; the other may go on


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the system notice within some minutes that whoever has connected is gone."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _is_free(ip: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((ip, port))
        except OSError:
            return False
    return True
