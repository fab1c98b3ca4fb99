"""Tells when a container of a Docker Engine ends or runs out of memory: one event stream for all servers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..bell import Bell


class ContainerEvents:
    """The events ``die`` and ``oom`` of an engine.

    A bell says "look", not what happened: it also rings when the stream was opened (again), since something may have
    happened before. The thread that reads the stream lives as long as the process.

    Args:
        client: docker-py's APIClient.
        log: is told when the stream breaks.

    """

    def __init__(self, client: Any, log: logging.Logger) -> None:
        self._client = client
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._bells: dict[str, Bell] = {}
        self._out_of_memory: dict[str, Callable[[], None]] = {}
        threading.Thread(target=self._read, name="docker-events", daemon=True).start()

    @contextmanager
    def bell(self, name: str) -> Iterator[Bell]:
        """The bell of the container with this name."""
        bell = self._bells[name] = Bell()
        try:
            yield bell
        finally:
            self._bells.pop(name, None)

    def on_out_of_memory(self, name: str, tell: Callable[[], None]) -> None:
        """Have it told when a process of the container with this name is ended for its memory, until `forget`."""
        self._out_of_memory[name] = tell

    def forget(self, name: str) -> None:
        """Tell no more of the container with this name."""
        self._out_of_memory.pop(name, None)

    def _read(self) -> None:
        while not self._loop.is_closed():
            try:
                stream = self._client.events(decode=True, filters={"type": ["container"], "event": ["die", "oom"]})
                self._tell(self._ring, None)
                for event in stream:
                    act = self._ran_out if event["Action"] == "oom" else self._ring
                    self._tell(act, event["Actor"]["Attributes"].get("name", ""))
            except Exception as error:
                self._log.warning("Docker's event stream broke, opening it again: %s", error)
            time.sleep(1)

    def _tell(self, act: Callable[[Any], None], name: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act, name)

    def _ran_out(self, name: str) -> None:
        if name in self._out_of_memory:
            self._out_of_memory[name]()

    def _ring(self, name: str | None) -> None:
        for key, bell in list(self._bells.items()):
            if name in (None, key):
                bell.ring()
