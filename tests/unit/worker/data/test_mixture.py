"""Sample ids dealt over sources: exact shares, every source's samples in order and once, no counting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.mixture import LARGEST_BLOCK, Mixture, block_shares

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@pytest.mark.parametrize(
    "weights, shares",
    [
        ([1.0], (1,)),
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([2, 6], (1, 3)),
        ([0.5, 0.25, 0.125], (4, 2, 1)),
        ([1e-3, 0.999], (1, 999)),
    ],
)
def test_weights_that_are_fractions_are_exact(weights: list[float], shares: tuple[int, ...]) -> None:
    assert block_shares(weights) == shares


def test_other_weights_are_exact_to_one_in_a_large_block() -> None:
    weights = [2**0.5, 3.14159265358979, 1e-9]
    shares = block_shares(weights)
    assert sum(shares) == LARGEST_BLOCK and shares[2] == 1
    for share, weight in zip(shares[:2], weights, strict=False):
        assert abs(share - LARGEST_BLOCK * weight / sum(weights)) <= 1


@given(WEIGHTS)
def test_each_sample_of_a_source_comes_once_and_in_order(weights: list[int]) -> None:
    mixture = Mixture(weights)
    seen: dict[int, list[int]] = {source: [] for source in range(len(weights))}
    for sample in range(3 * mixture.block + mixture.block // 2):
        source, number = mixture.locate(sample)
        seen[source].append(number)
    assert all(numbers == list(range(len(numbers))) for numbers in seen.values())
    assert mixture.counts(3 * mixture.block + mixture.block // 2) == tuple(map(len, seen.values()))
    assert mixture.counts(mixture.block) == mixture.shares


@given(WEIGHTS)
def test_no_source_is_ever_far_off_its_share(weights: list[int]) -> None:
    mixture = Mixture(weights)
    counts = [0] * len(weights)
    for sample in range(2 * mixture.block):
        counts[mixture.locate(sample)[0]] += 1
        for count, share in zip(counts, mixture.shares, strict=True):
            part = share / mixture.block
            assert abs(count - (sample + 1) * part) <= 0.5 + part * len(weights) / 2 + 1e-9
