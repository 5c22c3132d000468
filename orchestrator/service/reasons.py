"""Follows the event log for its words: the newest reasons of the core, for live views. Reads, never writes.

Each look asks only for what was logged since the last one, however many people watch. Next: `views.py`.
"""

from __future__ import annotations

import threading
from collections import deque

from orchestrator.store.queries import Queries

FIRST_LOOK_EVENTS = 200
"""How far back the first look goes."""
LOOK_EVENTS = 2000
"""Events taken at one look; what is left comes with the next."""


class ReasonsFollower:
    """One reader of a growing log. `look` may be called from any thread, and asks the database."""

    def __init__(self, queries: Queries, *, limit: int) -> None:
        self._queries = queries
        self._recent: deque[str] = deque(maxlen=limit)
        self._sequence: int | None = None
        self._guard = threading.Lock()

    def look(self) -> tuple[str, ...]:
        """The newest reasons, oldest first. Raises StoreError."""
        with self._guard:
            if self._sequence is None:
                found = self._queries.newest_events(limit=FIRST_LOOK_EVENTS)
                self._sequence = 0
            else:
                found = self._queries.events(after=self._sequence, limit=LOOK_EVENTS)
            for event in found:
                self._sequence = event.sequence
                self._recent.extend(event.reasons)
            return tuple(self._recent)
