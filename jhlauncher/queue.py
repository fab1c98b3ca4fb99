"""The queue as those who wait in it see it, and how many may start at a time. Who is next, the store decides.

The bound on concurrent starts is learned: JupyterHub refuses a start with 429 when it has its
``concurrent_spawn_limit`` under way, and what it has then is what it can take. From time to time one more is tried.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable


class StartBound(LoggingConfigurable):
    """How many servers may be starting at a time."""

    concurrent_starts = Integer(
        64,
        min=1,
        help="""Servers that may be starting at a time, in all replicas together; more wait in the queue.

        Keep it below JupyterHub's concurrent_spawn_limit (100), so that people at the Hub's own pages get their turn.
        Where the Hub takes fewer, that is learned.
        """,
    ).tag(config=True)
    throttle_delay = Float(
        10, min=0.01, help="Seconds before more is asked of a Hub that was too busy, where the Hub does not say."
    ).tag(config=True)

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._bound = self.concurrent_starts
        self._raised_at = math.inf
        self._delay = self.throttle_delay

    @property
    def current(self) -> int:
        """The bound now."""
        return self._bound

    def rise(self) -> int:
        """The bound, raised by one if the Hub may take more again."""
        if time.monotonic() >= self._raised_at:
            self._bound += 1
            more = self._bound < self.concurrent_starts
            self._raised_at = time.monotonic() + self._delay if more else math.inf
        return self._bound

    def throttled(self, under_way: int, retry_after: float | None) -> float:
        """The Hub took no more than ``under_way``; the seconds until more is tried."""
        self._delay = max(0.01, self.throttle_delay if retry_after is None else retry_after)
        self._bound = min(under_way, self._bound)
        self._raised_at = time.monotonic() + self._delay
        return self._delay

    @property
    def rises_in(self) -> float:
        """Seconds until the bound may rise; infinite if it won't."""
        return max(0.0, self._raised_at - time.monotonic())


class Pace:
    """How long a start takes these days, for estimates."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def add(self, seconds: float) -> None:
        """A start took so long."""
        self._seconds = seconds if self._seconds is None else 0.8 * self._seconds + 0.2 * seconds

    def wait(self, position: int, at_a_time: int) -> float | None:
        """Seconds until who is at this position starts, with all slots taken; None before anything has started."""
        return None if self._seconds is None else position / max(1, at_a_time) * self._seconds


@dataclass
class Line:
    """The positions in the queue, as they were told to those who listen."""

    order: dict[str, int]
    """Launch -> position, 1 for the next."""
    told: dict[str, int]

    @classmethod
    def empty(cls) -> Line:
        """Nobody waits."""
        return cls({}, {})

    def news(self, order: list[str]) -> list[str]:
        """Take the new order; those whose position has changed by more than a tenth since they were told.

        So each is told a number of times that grows with the logarithm of the queue only, and every step at its end.
        """
        self.order = {launch: position for position, launch in enumerate(order, start=1)}
        self.told = {launch: position for launch, position in self.told.items() if launch in self.order}
        return [launch for launch, told in self.told.items() if abs(told - self.order[launch]) > told / 10]
