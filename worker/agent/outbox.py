"""Messages to the controller that must not be lost, kept until they are known to have arrived.

Pure. The stream has no acknowledgements: a message may be written and yet be lost with the connection. So each is
kept for a while after it was sent, and sent again after the next registration; the controller knows duplicates by
trainer, start and generation. What a later event has made pointless is dropped. Next: `machine.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from worker.agent.controller_messages import (
    AgentMessage,
    TrainerExited,
    TrainerFellSilent,
    TrainerReady,
    TrainerSaid,
)
from worker.agent.messages import (
    AcquisitionFailed,
    CommunicationFailed,
    GenerationJoined,
    PairChecked,
    PartsAcquired,
    ReplicasDiffered,
    StateRefused,
    TrainingEnded,
)

_OF_ONE_GENERATION = (CommunicationFailed, GenerationJoined, StateRefused, ReplicasDiffered, TrainingEnded)
_OF_ONE_PROCESS = (CommunicationFailed, GenerationJoined, PartsAcquired, AcquisitionFailed, PairChecked)

Kept = TrainerReady | TrainerExited | TrainerFellSilent | TrainerSaid


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    message: Kept
    posted_at: float
    sent_at: float | None
    """None while it waits for a controller."""


class Outbox:
    """At most `limit` messages, oldest first."""

    def __init__(self, *, limit: int, settled_seconds: float) -> None:
        assert limit > 0
        self._limit = limit
        self._settled_seconds = settled_seconds
        self._entries: deque[_Entry] = deque()

    def add(self, message: Kept, at: float, *, sent: bool) -> Kept | None:
        """Keep a message, which was sent or waits; returns the oldest one when that had to make room."""
        dropped = self._entries.popleft().message if len(self._entries) >= self._limit else None
        self._entries.append(_Entry(message=message, posted_at=at, sent_at=at if sent else None))
        return dropped

    def resend(self, at: float) -> tuple[AgentMessage, ...]:
        """All that is kept, in order, with its age, counted as sent now: for a controller that has just answered."""
        self._entries = deque(replace(entry, sent_at=at) for entry in self._entries)
        return tuple(replace(entry.message, age_seconds=at - entry.posted_at) for entry in self._entries)

    def settle(self, at: float) -> None:
        """Forget what was sent long enough ago on the stream that is open now."""
        while self._entries:
            sent_at = self._entries[0].sent_at
            if sent_at is None or at - sent_at < self._settled_seconds:
                return
            self._entries.popleft()

    def forget_generations_below(self, generation: int) -> None:
        """A newer generation runs: what failed, was joined or ended in older ones is of no interest any more."""
        self._keep_if(
            lambda message: (
                not (
                    isinstance(message, TrainerSaid)
                    and isinstance(message.report, _OF_ONE_GENERATION)
                    and message.report.generation < generation
                )
            )
        )

    def forget_process(self, trainer: str, start: int) -> None:
        """A process has ended: that it was ready, silent or had joined is true no more. What it wrote remains."""

        def outlives(message: Kept) -> bool:
            if (message.trainer, message.start) != (trainer, start):
                return True
            if isinstance(message, TrainerSaid):
                return not isinstance(message.report, _OF_ONE_PROCESS)
            return isinstance(message, TrainerExited)

        self._keep_if(outlives)

    def forget_readiness(self, trainer: str) -> None:
        """A trainer has a seat, so the controller knows that it was ready; told again later it would undo a fence."""
        self._keep_if(lambda message: not (isinstance(message, TrainerReady) and message.trainer == trainer))

    def forget_silence(self, trainer: str) -> None:
        """A trainer gives signs of life again."""
        self._keep_if(
            lambda message: not (isinstance(message, TrainerFellSilent) and message.trainer == trainer)
        )

    def _keep_if(self, wanted: Callable[[Kept], bool]) -> None:
        self._entries = deque(entry for entry in self._entries if wanted(entry.message))

    def __len__(self) -> int:
        return len(self._entries)
