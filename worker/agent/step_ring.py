"""The last committed steps of a node, kept so that the ledger can be completed by whoever is left.

Pure. Steps are numbers that a restored checkpoint can take back: what an undone generation committed above the
restored step is forgotten, and refused when it arrives late. Next: `machine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.agent.messages import StepCommitted


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStep:
    """A record, and which trainer process handed it in."""

    trainer: str
    start: int
    record: StepCommitted


class StepRing:
    """At most `limit` records, one per step, in order of their steps."""

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self._limit = limit
        self._kept: dict[int, KeptStep] = {}
        self._restored_in = 0
        self._restored_step = 0

    def add(self, kept: KeptStep) -> bool:
        """Keep a record; False when it is known already, undone, or older than all that fit."""
        step, generation = kept.record.step, kept.record.generation
        if generation < self._restored_in and step > self._restored_step:
            return False
        if step in self._kept:
            return False
        if len(self._kept) >= self._limit:
            oldest = min(self._kept)
            if step < oldest:
                return False
            del self._kept[oldest]
        self._kept[step] = kept
        return True

    def after(self, step: int) -> tuple[KeptStep, ...]:
        """All records of steps above `step`, in order."""
        return tuple(self._kept[number] for number in sorted(self._kept) if number > step)

    def roll_back(self, step: int, generation: int) -> None:
        """`generation` starts from `step`: what older generations committed above it never happened."""
        self._restored_in = max(self._restored_in, generation)
        self._restored_step = step
        self._kept = {
            number: kept
            for number, kept in self._kept.items()
            if number <= step or kept.record.generation >= generation
        }

    def clear(self) -> None:
        """Forget all records: they belong to a membership that has ended, others hold what counts."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)
