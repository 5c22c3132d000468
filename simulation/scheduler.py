"""Virtual time: a queue of what happens next. Time jumps from one happening to the next and never runs backwards.

Two happenings at the same moment come in the order in which they were scheduled, so that a run repeats. Whoever
schedules something checks, when it happens, that it still makes sense; nothing is ever cancelled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Scheduler:
    """The clock of a simulated world, in seconds since the epoch."""

    def __init__(self, begin: float) -> None:
        self.now = begin
        self._order = 0
        self._queue: list[tuple[float, int, Action]] = []

    def after(self, seconds: float, action: Action) -> None:
        """Have something happen in `seconds` from now."""
        assert seconds >= 0.0, f"nothing happens {seconds} s ago"
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, action))

    def every(self, seconds: float, action: Callable[[], bool]) -> None:
        """Have something happen again and again, until it says False."""

        def turn() -> None:
            if action():
                self.after(seconds, turn)

        self.after(seconds, turn)

    def run_until(self, end: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until `end`, or until something is true: then True."""
        while self._queue and self._queue[0][0] <= end:
            if done():
                return True
            self.now, _, action = heapq.heappop(self._queue)
            action()
        if done():
            return True
        self.now = max(self.now, end)
        return False
