"""Copies into pinned memory are cut at the edges of its chunks; the memory itself needs a GPU (`test_cuda.py`)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.checkpointing.pinning import CHUNK_BYTES, cuts


@given(st.integers(0, 5 * CHUNK_BYTES), st.integers(0, 3 * CHUNK_BYTES))
def test_the_cuts_are_the_whole_and_none_crosses_an_edge(start: int, length: int) -> None:
    parts = list(cuts(start, start + length))
    assert [stop for _, stop in parts[:-1]] == [begin for begin, _ in parts[1:]]
    assert (parts[0][0], parts[-1][1]) == (start, start + length) if length else not parts
    assert all(begin // CHUNK_BYTES == (stop - 1) // CHUNK_BYTES for begin, stop in parts)
