"""The state of a simulated trainer: which parts it holds, at which version, and the gradients of the step in flight.

The same fields and rules as `worker/training/state.py`, with a digest in the place of tensors. Next: `truth.py`, for
what a digest means; `trainer.py`, whose state it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulation.truth import LawBroken, Truth, next_digest, seed_digest
from worker.checkpointing.numbering import PartNumbers
from worker.parallel.handshake import ABSENT


class Holdings:
    """Parts of one stage by number, all at `version`."""

    def __init__(self, who: str, numbers: PartNumbers, truth: Truth) -> None:
        self._who = who
        self.numbers = numbers
        self._truth = truth
        self.digests: dict[int, int] = {}
        self.version = ABSENT
        self.ready = ABSENT
        self.counts: tuple[int, ...] = ()
        """The reduced gradients of step `ready`: all that matters of them is which samples they hold."""
        self.tally_step = ABSENT
        self.tally: tuple[float, ...] = ()
        self.voted_in = 0
        """The generation in which the gradients of step `ready` were reduced."""
        self.voters: frozenset[str] = frozenset()
        """Its processes."""

    def versions(self) -> tuple[int, ...]:
        return tuple(self.version if part in self.digests else ABSENT for part in range(self.numbers.count))

    def zero_gradients(self) -> None:
        self.ready, self.counts = ABSENT, ()

    def commit(self, step: int) -> None:
        """Apply the gradients that are held."""
        assert self.ready == step == self.version + 1, "a commit follows the vote of the next step"
        for part in self.digests:
            self.digests[part] = next_digest(self.digests[part], step, self.counts)
            self._truth.check_state(self._who, part, step, self.digests[part])
        self.version = step

    def wanted(self, experts: Sequence[int], stage: int) -> tuple[int, ...]:
        """The parts of a seat in a stage that is given these experts."""
        return (self.numbers.dense(stage), *sorted(map(self.numbers.expert, experts)))

    def initialise(self, experts: Sequence[int], stage: int) -> None:
        """Version 0, from the seed."""
        self.load({part: seed_digest(part) for part in self.wanted(experts, stage)}, 0)

    def load(self, digests: Mapping[int, int], version: int) -> None:
        """A state that was read, or made from the seed."""
        for part, digest in digests.items():
            self._truth.check_state(self._who, part, version, digest)
        self.digests, self.version = dict(digests), version
        self.ready = self.tally_step = ABSENT
        self.tally, self.counts = (), ()

    def adopt(self, experts: Sequence[int], stage: int, received: Mapping[int, int], version: int) -> None:
        """Hold exactly `experts` and the dense part of a stage from now on; what is new comes from `received`.

        Law L3, as a trainer sees it: no generation but one that restores takes a commit back.
        """
        if version < self.version:
            raise LawBroken(
                f"L3: {self._who} had committed step {self.version} and is taken back to {version}"
            )
        wanted = self.wanted(experts, stage)
        changed = set(wanted) != set(self.digests) or any(
            not self.numbers.is_dense(part) for part in received
        )
        self.digests = {part: received.get(part, self.digests.get(part, 0)) for part in wanted}
        if changed:
            self.ready = ABSENT
        self.version = version
        for part, digest in self.digests.items():
            self._truth.check_state(self._who, part, version, digest)
