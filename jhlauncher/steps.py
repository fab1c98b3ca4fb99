"""The steps of one start, as the Hub's progress stream shows them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from .bell import Bell
from .models import Phase

MILESTONES: dict[str, int] = {
    "starting": 5,
    "scheduling": 10,
    "pulling": 15,
    "creating": 55,
    "waiting": 75,
}
"""Per cent at which each phase begins; pulling, which takes longest, has the most room."""

MAX_STEPS = 500
"""Of one start; an engine that repeats itself for hours must not fill the Hub's memory."""


class Steps:
    """What a start has come to, for any number of listeners; each gets all of it."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._bell = Bell()
        self.ended = False

    def add(self, message: str, phase: Phase | None, done: float = 0) -> None:
        """Tell a step.

        Args:
            message: for a person.
            phase: where the start is; None: where it was.
            done: how much of the phase, from 0 to 1.

        """
        latest: dict[str, Any] = (
            self._events[-1] if self._events else {"progress": 0, "message": None, "phase": "starting"}
        )
        phase = phase or latest["phase"]
        begin = MILESTONES.get(phase or "", 0)
        end = min((start for start in MILESTONES.values() if start > begin), default=95)
        progress = max(int(begin + (end - begin) * min(max(done, 0), 1)), latest["progress"])
        if (message, progress) != (latest["message"], latest["progress"]) and len(self._events) < MAX_STEPS:
            self._events.append({"progress": progress, "message": message, "phase": phase})
            self._bell.ring()

    def prove(self, up: dict[str, Any]) -> None:
        """Tell that the server is up, with what proves it to the launcher under ``up``."""
        self._events.append({"progress": 99, "message": "The server is up", "phase": "waiting", "up": up})
        self._bell.ring()

    def end(self) -> None:
        """No step follows."""
        self.ended = True
        self._bell.ring()

    async def follow(self) -> AsyncGenerator[dict[str, Any], None]:
        """All steps, from the first one on."""
        seen = 0
        while True:
            rung = self._bell.listen()
            while seen < len(self._events):
                yield dict(self._events[seen])
                seen += 1
            if self.ended:
                return
            await rung.wait()
