"""Checksums of replicas: any flipped bit changes them, and nothing else does; all holders tell what is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.worker.training.test_faults import TINY
from worker.checkpointing.numbering import PartNumbers
from worker.training.fault_effects import flip_bit
from worker.training.integrity import BLOCK_WORDS, Mark, checksums, findings, row_checksums
from worker.training.state import TrainingState

DTYPES = {torch.float32: 32, torch.float64: 64}


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    length=st.one_of(st.integers(1, 9), st.sampled_from([BLOCK_WORDS - 1, BLOCK_WORDS, 4 * BLOCK_WORDS + 5])),
    data=st.data(),
)
def test_the_flip_of_any_single_bit_changes_the_checksum(
    dtype: torch.dtype, length: int, data: st.DataObject
) -> None:
    """Of its row, and of no other row."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows_RN = torch.randn(2, length, dtype=dtype, generator=generator)
    before = row_checksums(rows_RN)
    row = data.draw(st.integers(0, 1))
    flip_bit(
        rows_RN[row], data.draw(st.integers(0, DTYPES[dtype] - 1)), data.draw(st.integers(0, length - 1))
    )
    after = row_checksums(rows_RN)
    assert after[row] != before[row]
    assert after[1 - row] == before[1 - row]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [7, 2 * BLOCK_WORDS, 2 * BLOCK_WORDS + 3])
def test_a_row_has_the_same_checksum_wherever_it_lies(dtype: torch.dtype, length: int) -> None:
    """Replicas lie in other rows on each rank, and a row of an odd length begins within a word."""
    rows_RN = torch.randn(5, length, dtype=dtype)
    sums = row_checksums(rows_RN)
    for row in range(5):
        assert row_checksums(rows_RN[row : row + 1].clone())[0] == sums[row]


def test_blocks_that_change_places_are_seen() -> None:
    """A plain sum would not see a page that was written to another address."""
    rows_RN = torch.randn(1, 6 * BLOCK_WORDS)
    swapped = torch.cat([rows_RN[:, 2 * BLOCK_WORDS :], rows_RN[:, : 2 * BLOCK_WORDS]], 1).contiguous()
    assert row_checksums(rows_RN) != row_checksums(swapped)


@pytest.mark.parametrize("tensor", range(3))
def test_each_tensor_of_each_part_counts(tensor: int) -> None:
    """Weights and both moments, of experts and of the dense part; a part is not changed by what others hold."""
    state = TrainingState(TINY, 5, torch.device("cpu"))
    state.initialise((1, 3))
    other = TrainingState(TINY, 5, torch.device("cpu"))
    other.initialise((0, 1, 2, 3))
    before, wide = checksums(state).tolist(), checksums(other).tolist()
    assert [sum_ for sum_ in before if sum_] == [wide[0], wide[2], wide[4]]
    for part in (0, 2, 4):
        flip_bit(state.part(part).in_order()[tensor], 3)
        after = checksums(state).tolist()
        assert [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [part]
        before = after


H, C, A = Mark.HELD, Mark.CHANGED, Mark.ABSENT


@pytest.mark.parametrize(
    "told, found",
    [
        ([((H, H), (5, 6)), ((H, A), (5, 0))], []),
        ([((H, H), (5, 6)), ((H, H), (5, 7))], [("expert-00000", 0, "6"), ("expert-00000", 1, "7")]),
        ([((H, C), (5, 6)), ((H, H), (5, 6))], [("expert-00000", 0, "6!"), ("expert-00000", 1, "6")]),
        ([((C, A), (5, 0))], [("dense", 0, "5!")]),
        ([((H, A), (-1, 0)), ((H, H), (-2, 1))], [("dense", 0, "f" * 16), ("dense", 1, "f" * 15 + "e")]),
    ],
)
def test_all_holders_of_an_unsound_part_are_told(
    told: list[tuple[tuple[int, ...], ...]], found: list[tuple[str, int, str]]
) -> None:
    """Marks and checksums by part, for each rank; `!` for what has changed by itself."""
    shown = [
        (each.part, each.rank, each.checksum.lstrip("0") + "!" * each.changed)
        for each in findings(told, PartNumbers(stages=1, experts=len(told[0][0]) - 1))
    ]
    assert shown == found
