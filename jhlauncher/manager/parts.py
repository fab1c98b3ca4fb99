"""The parts of the manager, wired together, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from traitlets import TraitError
from traitlets.config import Configurable

from ..database import Database
from ..hub import Hub
from ..userjobs.parts import CONFIGURABLE as USERJOBS
from ..userjobs.parts import UserJobParts
from .cluster import Cluster
from .credentials import Credentials
from .descriptions import Descriptions
from .errors import KubernetesRefused
from .forwarded import ClusterServices
from .homes import Userhomes
from .logs import LogHandlers
from .reaper import Reaper
from .reports import Reports
from .rows import Rows
from .service_secrets import ServiceSecrets
from .services import ServiceManager
from .settings import ConfigFile
from .status import StatusTexts
from .tunnels import Tunnels
from .watching import Watching

CONFIGURABLE: list[type[Configurable]] = [
    ConfigFile, Credentials, Descriptions, ServiceSecrets, Userhomes, StatusTexts, Cluster, Watching, Reports,
    ServiceManager, Reaper, Tunnels, LogHandlers, *USERJOBS,
]  # fmt: skip


class ManagerParts:
    """All parts of the manager.

    Args:
        parent: whose configuration they have.
        database: where services are kept.
        hub: the manager's own, whose tokens may be let in; None: it has none.
        service_name: at that Hub.
        settings: files with the configuration of this process.

    Raises:
        TraitError: a setting is wrong.

    """

    def __init__(
        self,
        parent: Configurable,
        database: Database,
        hub: Hub | None = None,
        service_name: str = "",
        settings: Iterable[Path] = (),
    ) -> None:
        self.credentials = Credentials(parent=parent)
        self.credentials.hub, self.credentials.service_name = hub, service_name
        self.secrets = ServiceSecrets(parent=parent)
        self._config = ConfigFile(parent=parent)
        self._cluster = Cluster(parent=parent)
        self._reports = Reports(parent=parent)
        self._descriptions = descriptions = Descriptions(parent=parent)
        texts, homes = StatusTexts(parent=parent), Userhomes(parent=parent)
        self._tunnels = Tunnels(parent=parent, stage=descriptions.stage)
        rows = Rows(database)

        def protected() -> list[Path]:
            folders: list[str | Path] = [descriptions.base, descriptions.descriptions, homes.base, homes.skel]
            files: list[str | Path] = [self._config.path, database.file, *settings]
            return [Path(path) for path in (*folders, *files) if path]

        self.logs = LogHandlers(parent=parent, database=database, protected=protected)
        self._watching = Watching(
            parent=parent, cluster=self._cluster, descriptions=descriptions, texts=texts, reports=self._reports
        )
        self.services = ServiceManager(
            parent=parent, rows=rows, cluster=self._cluster, descriptions=descriptions, secrets=self.secrets,
            homes=homes, watching=self._watching,
        )  # fmt: skip
        self._reaper = Reaper(
            parent=parent, rows=rows, manager=self.services, watching=self._watching, reports=self._reports
        )
        self.userjobs = UserJobParts(parent, database, partial(ClusterServices, self._cluster))
        configured = [self.credentials, self.secrets, descriptions, homes, texts, self.services, self._tunnels]
        self._config.load([*configured, self._cluster, *self.userjobs.settings])
        self.credentials.load()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What requests need is there, and what was left is taken up; the database is open before.

        Raises:
            TraitError: the cluster is not known, or does not let us.

        """
        async with AsyncExitStack() as stack:
            await self.logs.start()
            stack.push_async_callback(self.logs.stop)
            try:
                for part in (self._cluster, self._reports, self._watching):
                    await part.start()
                    stack.push_async_callback(part.stop)
            except KubernetesRefused as error:
                where = f"{self._cluster.namespace} of {self._cluster.address}"
                raise TraitError(
                    f"the manager can't look after services in the namespace {where}; "
                    f"etc/manager/rbac.yaml has the rights that it needs ({error.message})"
                ) from None
            await asyncio.to_thread(self._descriptions.look)
            stack.push_async_callback(self.services.close)
            await self.services.recover()
            await self.userjobs.start()
            stack.push_async_callback(self.userjobs.stop)
            yield

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """What ends is cleaned up, and Hubs know that we are here."""
        async with AsyncExitStack() as stack:
            for part in (self._config, self._reaper, self._tunnels):
                await part.start()
                stack.push_async_callback(part.stop)
            yield
