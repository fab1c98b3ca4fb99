"""The audit trail: an event through jupyter_events for whatever happens to a launch.

Configured as JupyterHub's own: ``c.EventLogger.handlers = [logging.FileHandler("launches.jsonl")]``. Without handlers,
nothing is made. The schema is ``schemas/launch.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .records import LaunchRecord

SCHEMA = Path(__file__).parent / "schemas" / "launch.yaml"
SCHEMA_ID = "https://schema.jupyter.org/jhlauncher/events/launch"

_ACTIONS = {"queued": "accepted", "starting": "started"}


class Audit:
    """Emits events.

    Args:
        parent: the application, whose configuration has the handlers.

    """

    def __init__(self, parent: Any) -> None:
        self._events: Any = None
        if parent.config.EventLogger.get("handlers"):
            from jupyter_events import EventLogger  # takes seconds to import, so only for those who want it

            self._events = EventLogger(parent=parent)
            self._events.register_event_schema(SCHEMA)

    def changed(self, record: LaunchRecord) -> None:
        """A launch is in a new state."""
        if self._events is None:
            return
        self._events.emit(
            schema_id=SCHEMA_ID,
            data={
                "action": _ACTIONS.get(record.state, record.state),
                "launch": record.id,
                "username": record.username,
                "server_name": record.server_name,
                "caller": record.caller,
                "by": record.stop_by,
                "reason": record.error["reason"] if record.error else None,
                "image": record.spec.image,
                "template": record.template,
                "batch": record.batch,
                "rule": record.rule,
            },
        )
