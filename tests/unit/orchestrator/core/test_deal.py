"""Microbatches to ranks: each one once, none left over, nearly the same for everybody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.deal import deal


@given(st.integers(1, 100), st.integers(1, 40))
def test_every_microbatch_is_dealt_once_and_evenly(microbatches: int, ranks: int) -> None:
    """L1: a sample counts exactly once, however many are left to compute it."""
    shares = deal(microbatches, ranks)
    assert sorted(index for share in shares for index in share) == list(range(microbatches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_microbatch_goes_to_its_index_modulo_the_ranks() -> None:
    """The rule that trainers rely on."""
    assert deal(7, 3) == ((0, 3, 6), (1, 4), (2, 5))


def test_more_ranks_than_microbatches_leaves_some_without() -> None:
    """They still serve their experts."""
    assert deal(2, 4) == ((0,), (1,), (), ())


def test_nobody_gets_nothing() -> None:
    """The generation without members, while everybody is waited for."""
    assert deal(3, 0) == ()
