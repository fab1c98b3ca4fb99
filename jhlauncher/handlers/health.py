"""``health``: this process answers. ``ready``: it can do its work. For probes, so open to all."""

from __future__ import annotations

from ..errors import LauncherError
from .base import BaseHandler


class HealthHandler(BaseHandler):
    """Whether the process is alive; asks nobody."""

    needs_caller = False

    async def get(self) -> None:
        """Answer 200."""
        self.answer({"status": "ok"})


class ReadyHandler(BaseHandler):
    """Whether launches can work: 200 if every check passes, else 503; each check is named."""

    needs_caller = False

    async def get(self) -> None:
        """Ask the Hub."""
        try:
            version = await self.services.hub.check()
            hub = {"ok": True, "message": f"JupyterHub {version} answers and accepts the launcher's token."}
        except LauncherError as error:
            hub = {"ok": False, "message": error.message}
        self.answer({"ready": hub["ok"], "checks": {"hub": hub}}, status=200 if hub["ok"] else 503)
