"""Whether the controller hears this agent: now and then a heartbeat has a number, and the controller names that one.

A stream that looks open proves nothing: the controller may be stopped, or stuck, or cut off in one direction. Pure; the
stream that goes unheard for too long is given up by `client.py`, and training does not notice. Time comes from outside.
"""

from __future__ import annotations

import math
from collections import deque

UNHEARD_SECONDS = 10.0
"""A heartbeat that is not answered for this long: the stream is given up. A controller is never busy for so long."""
ASK_SECONDS = 5.0
"""Between two heartbeats that ask for an answer: answers to all would cost the controller of a large job most of its
time, and say no more."""
UNHEARD_LIMIT = 1024
"""Heartbeats whose answers are waited for; the time above is over long before."""


class Hearing:
    """The heartbeats of one stream."""

    def __init__(self) -> None:
        self._sent = 0
        self._asked_at = -math.inf
        self._unheard: deque[tuple[int, float]] = deque(maxlen=UNHEARD_LIMIT)
        self._answers = False

    def number(self, at: float) -> int:
        """The number of the heartbeat that is sent at this time; 0 for one that asks for no answer."""
        if at - self._asked_at < ASK_SECONDS:
            return 0
        self._asked_at = at
        self._sent += 1
        self._unheard.append((self._sent, at))
        return self._sent

    def heard(self, sequence: int) -> None:
        """The controller has taken in this heartbeat, and with it all before it."""
        self._answers = True
        while self._unheard and self._unheard[0][0] <= sequence:
            self._unheard.popleft()

    def unheard_seconds(self, at: float) -> float:
        """For how long the controller has answered nothing; 0 for one that never does, being older than this agent."""
        return at - self._unheard[0][1] if self._answers and self._unheard else 0.0
