"""Pulls images with the Docker Engine while telling how far it is: one pull per image, however many wait for it.

DockerSpawner has one thread for all its calls, which a pull would block for everybody; pulls have threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from docker.errors import APIError

Report = Callable[[float], None]
"""Is told how much is done, from 0 to 1."""

_pulls: dict[tuple[str, str], _Pull] = {}


class PullFailed(Exception):
    """In the words of the engine or the registry."""


async def pull(client: Any, image: str, credentials: dict[str, str] | None, report: Report) -> None:
    """Pull an image, or wait for a pull of it that is under way; the last who goes away ends it.

    Args:
        client: docker-py's APIClient.
        image: its reference.
        credentials: ``username`` and ``password`` at the registry; None: those of the client.
        report: is told how far it is.

    Raises:
        PullFailed: it could not be had.

    """
    key = (image, str(sorted(credentials.items())) if credentials else "")
    current = _pulls.get(key)
    if current is None:
        current = _pulls[key] = _Pull(client, image, credentials)
        current.result.add_done_callback(lambda _: _forget(key, current))
    current.listeners.add(report)
    report(current.done)
    try:
        await asyncio.shield(current.result)
    finally:
        current.listeners.discard(report)
        if not current.listeners:
            current.abandoned = True
            _forget(key, current)  # the next who wants the image begins anew


def _forget(key: tuple[str, str], pull: _Pull) -> None:
    if _pulls.get(key) is pull:
        del _pulls[key]


class _Pull:
    """One pull, in a thread."""

    def __init__(self, client: Any, image: str, credentials: dict[str, str] | None) -> None:
        self._client, self._image, self._credentials = client, image, credentials
        self._loop = asyncio.get_running_loop()
        self.listeners: set[Report] = set()
        self.abandoned = False
        self.done = 0.0
        self.result: asyncio.Future[None] = self._loop.create_future()
        self.result.add_done_callback(lambda future: future.cancelled() or future.exception())
        # a thread of its own: a registry that stalls would hold one of a pool's for as long as it likes
        threading.Thread(target=self._run, name=f"pull of {image}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self._in_loop(self._end, error)
        else:
            self._in_loop(self._end, None)

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the Hub has ended, and its loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    def _end(self, error: Exception | None) -> None:
        if self.result.done():
            return
        if error:
            self.result.set_exception(error)
        else:
            self.result.set_result(None)

    def _read(self) -> None:
        layers = Layers()
        try:
            stream = self._client.pull(self._image, stream=True, decode=True, auth_config=self._credentials)
            for event in stream:
                if self.abandoned:
                    stream.close()
                    return
                if "error" in event:
                    raise PullFailed(str(event["error"]))
                layers.take(event)
                if layers.done >= self.done + 0.01:
                    self._in_loop(self._tell, layers.done)
        except APIError as error:
            raise PullFailed(str(error.explanation or error)) from error

    def _tell(self, done: float) -> None:
        self.done = done
        for report in list(self.listeners):
            report(done)


class Layers:
    """How far a pull is, from the engine's events: each layer is downloaded, then unpacked."""

    _DOWNLOAD = 0.7
    """The part of a layer's time that its download takes, about."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._parts: dict[str, float] = {}

    def take(self, event: dict[str, Any]) -> None:
        """Take an event of the engine's into account."""
        layer, status = event.get("id"), event.get("status")
        if not layer:
            return
        detail = event.get("progressDetail") or {}
        current, total = detail.get("current") or 0, detail.get("total") or 0
        if status == "Pulling fs layer":
            self._parts.setdefault(layer, 0)
        elif status == "Downloading" and total > 0:
            self._sizes[layer] = total
            self._parts[layer] = self._DOWNLOAD * current / total
        elif status == "Extracting" and total > 0:
            self._sizes.setdefault(layer, total)
            self._parts[layer] = self._DOWNLOAD + (1 - self._DOWNLOAD) * current / total
        elif status == "Download complete":
            self._parts[layer] = max(self._parts.get(layer, 0), self._DOWNLOAD)
        elif status == "Pull complete":
            self._parts[layer] = 1

    @property
    def done(self) -> float:
        """From 0 to 1; a layer whose size is not known yet counts as an average one."""
        average = sum(self._sizes.values()) / len(self._sizes) if self._sizes else 1
        weights = {layer: self._sizes.get(layer, average) or 1 for layer in self._parts}
        total = sum(weights.values())
        return sum(weights[layer] * part for layer, part in self._parts.items()) / total if total else 0.0
