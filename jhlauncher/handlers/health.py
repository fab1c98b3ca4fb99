"""``health``: this process answers. ``ready``: it can do its work. For probes, so open to all."""

from __future__ import annotations

from typing import Any

from ..errors import LauncherError
from .callers import HubHandler


class HealthHandler(HubHandler):
    """Whether the process is alive; asks nobody."""

    needs_caller = False

    async def get(self) -> None:
        """Answer 200."""
        self.answer({"status": "ok"})


class ReadyHandler(HubHandler):
    """Whether launches can work: 200 if every check passes, else 503; each check is named."""

    needs_caller = False

    async def get(self) -> None:
        """Ask the Hub."""
        checks = {}
        try:
            missing = await self.services.parts.hub.check()
            checks["hub"] = _check(True, "JupyterHub answers and accepts the launcher's token.")
            lacks = f"The launcher's role lacks {', '.join(sorted(missing))}."
            checks["scopes"] = _check(not missing, lacks if missing else "The launcher's role has what it needs.")
        except LauncherError as error:
            checks["hub"] = _check(False, error.message)
        ready = all(check["ok"] for check in checks.values())
        self.answer({"ready": ready, "checks": checks}, status=200 if ready else 503)


def _check(ok: bool, message: str) -> dict[str, Any]:
    return {"ok": ok, "message": message}
