"""The ends of servers that the launcher did not bring about: heard of from the Hub, or found out by looking there."""

from __future__ import annotations

import asyncio
from typing import Any

from traitlets import Float
from traitlets.config import LoggingConfigurable

from .errors import HubRefused, HubUnavailable, LaunchFailed, StoreUnavailable
from .failures import Failure
from .hub import Hub
from .records import FINAL, LaunchRecord, title_of
from .starting import launch_id
from .store import Store


class Reconciler(LoggingConfigurable):
    """Keeps the launches in step with the Hub's servers."""

    reconcile_interval = Float(
        300,
        min=1,
        help="""Seconds between two looks at which servers the Hub has, in case the end of one was not heard of.

        The spawner tells the launcher when a server has ended; this is for what gets lost.
        """,
    ).tag(config=True)

    def __init__(self, hub: Hub, store: Store, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._hub = hub
        self._store = store
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look now, and again and again."""
        self._looking = asyncio.create_task(self._look(), name="servers that have ended")

    async def stop(self) -> None:
        """Look no more."""
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def warn(self, launch: str, message: str) -> None:
        """The Hub's spawner says that there is trouble with the server of a launch, which goes on."""
        await self._store.warn(launch, {"message": message, "reason": "out_of_memory"})

    async def hear(self, launch: str, failure: Failure | None = None) -> None:
        """The Hub's spawner says that the server of a launch has ended; believed if the Hub does not show it running.

        Args:
            launch: its id.
            failure: why, if it ended by itself.

        Raises:
            HubUnavailable: it can't be asked.

        """
        record = await self._store.get(launch)
        if record and record.state == "ready":
            server = await self._hub.active_server(record.username, record.server_name)
            if not server or server["pending"] == "stop" or launch_id(server) != launch:
                await self.server_ended(launch, failure)

    async def server_ended(self, launch: str, failure: Failure | None = None) -> None:
        """The server of a launch has ended, whoever stopped it; by itself, if there is a failure."""
        record = await self._store.get(launch)
        if record and record.state == "ready" and not record.stop_by:  # what we stop ends when the Hub is through
            error = failure and _error(record, failure)
            data = {"message": error["error"] if error else "The server has ended"}
            await self._store.change(launch, "stopped", data, unless=(*FINAL, "queued", "starting"), error=error)

    async def _look(self) -> None:
        """Notice the end of servers that nobody told us of."""
        while True:
            try:
                await self._reconcile()
            except (HubUnavailable, StoreUnavailable) as error:
                self.log.warning("Could not look for servers that have ended: %s", error.message)
            except HubRefused as error:
                self.log.error("Could not look for servers that have ended: %s", error.message)
            except Exception:
                self.log.exception("Could not look for servers that have ended")
            await asyncio.sleep(self.reconcile_interval)

    async def _reconcile(self) -> None:
        ready = await self._store.ready_launches()
        if not ready:
            return
        await self._hub.reachable()
        servers = await self._hub.active_servers()
        for record in ready:
            server = servers.get((record.username, record.server_name))
            if server and launch_id(server) == record.id:
                continue
            server = await self._hub.active_server(record.username, record.server_name)  # pages may have shifted
            if not server or launch_id(server) != record.id:
                await self._hub.revoke_tokens(record.username, record.server_name, record.id)
                await self.server_ended(record.id)


def _error(record: LaunchRecord, failure: Failure) -> dict[str, Any]:
    """What there is to say of a server that was up and ended by itself."""
    message = f"{title_of(record.username, record.server_name)} has ended: {failure.message}"
    return LaunchFailed(message, reason=failure.reason, details=failure.details()).as_dict()
