"""The end of a server at the Hub: stopped once for all who ask for it, and its tokens revoked."""

from __future__ import annotations

import asyncio

from traitlets.config import LoggingConfigurable

from .errors import StopFailed
from .hub import Hub
from .records import title_of
from .starting import launch_id


class Stopper(LoggingConfigurable):
    """Stops servers."""

    def __init__(self, hub: Hub, timeout: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._timeout = timeout
        self._stops: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Let stops under way come to their end for a moment."""
        if self._stops:
            await asyncio.wait(self._stops.values(), timeout=5)
        for task in self._stops.values():
            task.cancel()

    async def stop(self, user: str, server: str, launch: str | None = None) -> None:
        """Stop a server and revoke its tokens; that goes on even if whoever asked goes away.

        Args:
            user: whose it is.
            server: its name.
            launch: the id of its launch: another one's is left alone.

        Raises:
            StopFailed: it has not stopped in time.
            HubUnavailable: it is not known whether it has.

        """
        key = (user, server)
        task = self._stops.get(key)
        if task is None:
            task = self._stops[key] = asyncio.create_task(
                self._stop_and_revoke(user, server, launch), name=f"stop {key}"
            )
            task.add_done_callback(lambda task: (self._stops.pop(key), task.cancelled() or task.exception()))
        await asyncio.shield(task)

    async def _stop_and_revoke(self, user: str, server: str, launch: str | None) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                delay = 0.1
                await self._hub.stop_server(user, server)
                await self._hub.revoke_tokens(user, server)
                # the Hub has no event for it, and of a start that was cancelled early it may keep an empty shell
                while model := await self._hub.active_server(user, server):
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 5)
                    if launch is not None and launch_id(model) != launch:
                        break  # the next start of this server
                    if model["pending"] != "stop":
                        await self._hub.stop_server(user, server)
        except TimeoutError:
            raise StopFailed(
                f"{title_of(user, server)} has not stopped within {self._timeout:g} seconds; "
                "the Hub goes on trying. Ask for its status."
            ) from None
