"""What was observed of a running job, and the time-outs that follow: values, and a bounded memory of maxima.

A silence counts once it is over: of who never speaks again nothing can be learned, and its last silence must not
lengthen the limit that is to find it. Kept as the longest of each of the last spans of time, so that a heartbeat costs
one comparison, and a rare pause is remembered for minutes. Next: `patience.py`, which decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.ids import GenerationNumber

SPAN_SECONDS = 30.0
SPANS = 20
"""Ten minutes are remembered."""


@dataclass(slots=True, kw_only=True)
class Longest:
    """The longest of something, of late."""

    newest: float = 0.0
    """Of the span that is running."""
    _until: float = 0.0
    _before: list[float] = field(default_factory=list)
    """Of the spans before it, oldest first."""

    def note(self, at: float, seconds: float) -> None:
        """One more, that ended at `at`."""
        if at >= self._until:
            if self._until:
                self._before = [*self._before, self.newest][-(SPANS - 1) :]
            self._until, self.newest = at + SPAN_SECONDS, 0.0
        self.newest = max(self.newest, seconds)

    @property
    def seconds(self) -> float:
        return max(self.newest, max(self._before, default=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The time-outs that follow, for one generation: the next one begins with those that the job gives."""

    generation: GenerationNumber
    hang_seconds: float
    lease_seconds: float
    stall_seconds: float
    why: str
