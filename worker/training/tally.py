"""The tally of a step: one small float64 vector whose all-reduce is the vote.

It carries all that the members must agree on before a commit: gradient norms, loss, counts, whether anything is
not finite, and which pending orders everybody has received. Who has the sum knows that every member had its
reduced gradients when it cast its vote. Pure layout and reading; the all-reduce is in `step.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

NOBODY = -1


class Pending(Enum):
    """Orders that are carried out at the step boundary at which every member has received them."""

    PLANNED_GENERATION = 0
    CHECKPOINT = 1
    STOP = 2
    SNAPSHOT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyLayout:
    """Where things are in the vector. `samples` is the number of samples in a step."""

    experts: int
    """Of all stages."""
    samples: int
    layers: int = 0
    """Of the whole model, for the load by layer; 0 leaves it out."""
    layer_experts: int = 0
    """In each layer."""

    @property
    def length(self) -> int:
        return self._layers_at + self.layers * self.layer_experts

    @property
    def _counts_at(self) -> int:
        return 2 * self.experts

    @property
    def _scalars_at(self) -> int:
        return self._counts_at + self.samples

    @property
    def _pending_at(self) -> int:
        return self._scalars_at + 7

    @property
    def _layers_at(self) -> int:
        return self._pending_at + 3 * len(Pending)

    def cast(self, vote: Vote) -> list[float]:
        """One member's addend."""
        pending: list[float] = []
        for kind in Pending:
            label = vote.pending.get(kind)
            number = float(fingerprint(label)) if label is not None else 0.0
            pending += [float(label is not None), number, number * number]
        counts = [0.0] * self.samples
        for index in vote.samples:
            counts[index] += 1.0
        culprit = 0.0 if vote.own_finite else float(vote.rank + 1)
        doubts = [float(not vote.own_finite), culprit, float(not vote.sums_finite)]
        scalars = [vote.dense_norm_squared, vote.loss, float(vote.tokens), *doubts, float(vote.unreadable)]
        values = [*vote.expert_norms_squared, *map(float, vote.expert_load), *counts, *scalars, *pending]
        values += [float(count) for layer in vote.layer_load for count in layer]
        assert len(values) == self.length, "a vote fills the layout"
        return values

    def read(self, values: Sequence[float]) -> Tally:
        """The sum over all members."""
        assert len(values) == self.length, "a tally fills the layout"
        at = self._scalars_at
        return Tally(
            norm=max(sum(values[: self.experts]) + values[at], 0.0) ** 0.5,
            loss=values[at + 1],
            tokens=round(values[at + 2]),
            not_finite=values[at + 3] != 0.0 or values[at + 5] != 0.0,
            unreadable=values[at + 6] != 0.0,
            culprit=round(values[at + 4]) - 1 if values[at + 3] == 1.0 else NOBODY,
            expert_load=tuple(round(value) for value in values[self.experts : self._counts_at]),
            sample_counts=tuple(round(value) for value in values[self._counts_at : at]),
            pending=tuple(
                (values[i], values[i + 1], values[i + 2]) for i in range(self._pending_at, self._layers_at, 3)
            ),
            layer_load=tuple(
                tuple(round(value) for value in values[i : i + self.layer_experts])
                for i in range(self._layers_at, self.length, self.layer_experts or 1)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one member puts in. Norms of an expert come from its primary, a dense norm from its stage's first rank; all
    stages' squares add up to the global norm's."""

    expert_norms_squared: Sequence[float]
    dense_norm_squared: float
    expert_load: Sequence[int]
    samples: Sequence[int]
    """Indices within the step of the samples that this member has computed."""
    loss: float
    tokens: int
    rank: int
    own_finite: bool
    """What this member computed, before it was summed with the others'."""
    sums_finite: bool
    """The norms that this member has worked out, of what was summed."""
    pending: dict[Pending, str]
    unreadable: bool = False
    """Some data of this member could not be read: what it computed is not of the samples."""
    layer_load: Sequence[Sequence[int]] = ()
    """By layer of the whole model, zeros for those of other stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What all members agree on for a step."""

    norm: float
    """Global gradient norm."""
    loss: float
    """Mean cross entropy per token, in nats."""
    tokens: int
    not_finite: bool
    unreadable: bool
    """Some member could not read its samples."""
    culprit: int
    """The one rank whose own numbers are not finite; `NOBODY` if there is none, or more than one."""
    expert_load: tuple[int, ...]
    """Token-expert pairs, over all layers."""
    sample_counts: tuple[int, ...]
    """How often each sample of the step was counted; all 1 in a sound step."""
    pending: tuple[tuple[float, float, float], ...]
    layer_load: tuple[tuple[int, ...], ...]
    """Token-expert pairs by layer and expert of the layer."""

    def agreed(self, kind: Pending, label: str | None, world: int) -> bool:
        """Whether all `world` members have received the very order `label`.

        Each adds (1, n, n^2) for its order's number n: a count of `world`, a sum of world * n and a square sum of
        world * n^2 leave no room for different numbers.
        """
        if label is None:
            return False
        number = float(fingerprint(label))
        return self.pending[kind.value] == (float(world), world * number, world * number * number)


def fingerprint(label: str) -> int:
    """A 20-bit number of an order: its square times any world size is exact in float64."""
    return zlib.crc32(label.encode()) & 0xFFFFF
