"""Which source a sample id comes from, and which of that source's samples it is. Pure arithmetic, no state.

Weights become whole numbers of samples in a block, exactly where they are fractions with a small common denominator,
else to one part in 65,536. Every block has the same order: the t-th sample of a source with n of the M places stands
where (2t + 1) * M / (2n) falls among all others. So after any number of samples a source is off its share p by at
most 1/2 + p * K/2 samples (K sources: rounding moves the ideal places by half a sample for each). Sample i of the job
is place i mod M of block i div M: nobody has to count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

LARGEST_BLOCK = 1 << 16

Numbers = npt.NDArray[np.int64]


class Mixture:
    """Sample ids dealt over sources by weight."""

    def __init__(self, weights: Sequence[float]) -> None:
        assert weights and all(weight > 0 for weight in weights), weights
        self.shares = block_shares(weights)
        """Samples of each source in a block."""
        self.block = sum(self.shares)
        self._source, self._rank = _order(self.shares)

    def locate(self, sample: int) -> tuple[int, int]:
        """The source of a sample id, and its number among all samples of that source, from 0."""
        assert sample >= 0, f"sample ids count from 0, not {sample}"
        block, place = divmod(sample, self.block)
        source = int(self._source[place])
        return source, block * self.shares[source] + int(self._rank[place])

    def counts(self, samples: int) -> tuple[int, ...]:
        """How many of the first `samples` ids each source gives."""
        blocks, rest = divmod(samples, self.block)
        begun = np.bincount(self._source[:rest], minlength=len(self.shares)).tolist()
        return tuple(blocks * share + more for share, more in zip(self.shares, begun, strict=True))


def block_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the proportion of the weights, as they are written; each at least 1."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scaled = [each * math.lcm(*(each.denominator for each in exact)) for each in exact]
    whole = [int(each) for each in scaled]
    whole = [each // math.gcd(*whole) for each in whole]
    if sum(whole) <= LARGEST_BLOCK:
        return tuple(whole)
    total = sum(exact)
    ideal = [each * LARGEST_BLOCK / total for each in exact]
    floors = [max(1, int(each)) for each in ideal]
    by_rest = sorted(range(len(ideal)), key=lambda i: (floors[i] - ideal[i], i))
    for source in by_rest[: max(0, LARGEST_BLOCK - sum(floors))]:
        floors[source] += 1
    return tuple(floors)


def _order(shares: Sequence[int]) -> tuple[Numbers, Numbers]:
    """By place in the block: the source, and how many places before it have the same one."""
    block = sum(shares)
    source = np.repeat(np.arange(len(shares), dtype=np.int64), shares)
    rank = np.concatenate([np.arange(share, dtype=np.int64) for share in shares])
    ideal = (2 * rank + 1) * block / (2 * np.asarray(shares, dtype=np.float64)[source])
    order = np.lexsort((source, ideal))
    return source[order], rank[order]
