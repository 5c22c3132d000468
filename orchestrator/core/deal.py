"""Which rank computes which microbatch of a step. Pure; the number of microbatches never changes with the members.

Next: `stages.py`, which deals to the members of each stage; `generations.py`, which puts a deal into every generation.
"""

from __future__ import annotations


def deal(microbatches: int, ranks: int) -> tuple[tuple[int, ...], ...]:
    """Rank -> indices of its microbatches: dealt in turn, so that no rank has two more than another."""
    assert microbatches >= 1 and ranks >= 0, (microbatches, ranks)
    return tuple(tuple(range(rank, microbatches, ranks)) for rank in range(ranks))
