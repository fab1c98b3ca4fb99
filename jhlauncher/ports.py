"""Free ports for servers of our own."""

from __future__ import annotations

import contextlib
import random
import socket
import time

_RESERVED_FOR = 60
"""Seconds for which a port that was handed out is not handed out again: its server may not listen yet."""

SERVERS = range(20_000, 32_768)
"""For single-user servers. The system gives those from 32768 on to outgoing connections (on Linux), which might take
one before its server listens, or while it is restarted."""
SERVICES = range(10_000, 20_000)
"""For what keeps its port over a restart, in which no server that starts may take it."""

_handed_out: dict[int, float] = {}


def free_port(of: range) -> int:
    """A port of 127.0.0.1 that nobody listens on now: one of `SERVERS` or of `SERVICES`."""
    now = time.monotonic()
    for port in [port for port, since in _handed_out.items() if now - since > _RESERVED_FOR]:
        del _handed_out[port]
    for port in random.sample(of, 1000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            if port not in _handed_out:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
                _handed_out[port] = now
                return port
    raise OSError(f"no port from {of.start} to {of.stop - 1} is free")
