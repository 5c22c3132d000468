"""How long a collective waits: as the job says, and twice as long after each one that waited in vain.

A member may compute for long while the others wait in a collective: the first step on a cold device, the shares of
all who are gone. When they wait in vain nobody is dead, and the step is redone. With the same limit it would end the
same way again and again; with twice the limit it is committed after a few. Failures are found by other means
(heartbeats, signs of life, broken connections) and wait for none of this. Pure. Next: `groups.py`, which waits.
"""

from __future__ import annotations

DOUBLINGS_AT_MOST = 4
"""Sixteen times what the job says."""


class Patience:
    """Of one trainer, from its start to its end: what took long once may again."""

    def __init__(self) -> None:
        self._doublings = 0

    def seconds(self, given_seconds: float) -> float:
        """What a collective of the next generation may take, where the job says `given_seconds`."""
        return given_seconds * 2.0**self._doublings

    def heed(self, *, timed_out: bool) -> None:
        """A generation is over; `timed_out`: one of its collectives was waited for in vain."""
        if timed_out:
            self._doublings = min(self._doublings + 1, DOUBLINGS_AT_MOST)
