"""``metrics``: for Prometheus, guarded as JupyterHub guards its own."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST

from ..errors import Forbidden
from .callers import HubHandler


class MetricsHandler(HubHandler):
    """What this replica has measured."""

    needs_caller = False

    async def get(self) -> None:
        """Answer in Prometheus' text format."""
        services = self.services
        if services.authenticate_prometheus:
            caller = await self.authenticate()
            if "read:metrics" not in caller.scopes:
                raise Forbidden("Metrics need the scope read:metrics.", details={"needs": "read:metrics"})
        body = services.parts.metrics.render(await services.parts.store.counts(), services.parts.bound.current)
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        await self.finish(body)
