"""Free ports for servers of our own."""

from __future__ import annotations

import contextlib
import random
import socket
import time

_RESERVED_FOR = 60
"""Seconds for which a port that was handed out is not handed out again: its server may not listen yet."""

_handed_out: dict[int, float] = {}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now.

    Not one that the system gives to outgoing connections (from 32768 on, on Linux): those might take it before the
    server listens, or while it is restarted.
    """
    now = time.monotonic()
    for port in [port for port, since in _handed_out.items() if now - since > _RESERVED_FOR]:
        del _handed_out[port]
    for port in random.sample(range(20_000, 32_768), 1000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            if port not in _handed_out:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
                _handed_out[port] = now
                return port
    raise OSError("no port from 20000 to 32767 is free")
