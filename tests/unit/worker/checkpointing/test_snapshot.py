"""A snapshot is a consistent copy in memory that is used again, and there is one at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.unit.worker.checkpointing.states import WAIT_SECONDS, part_state
from worker.checkpointing.manifest import Piece
from worker.checkpointing.parts import all_finite, byte_view
from worker.checkpointing.snapshot import Busy, Snapshot, SnapshotBuffer

PIECES = (Piece(part="dense", start=3, stop=8), Piece(part="expert-00001", start=0, stop=4))


def taken(answer: Snapshot | Busy) -> Snapshot:
    assert isinstance(answer, Snapshot)
    return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_snapshot_holds_the_slices_as_they_were(dtype: torch.dtype) -> None:
    states = {"dense": part_state(10, 1, dtype), "expert-00001": part_state(4, 2, dtype)}
    expected = [
        torch.cat([tensor[piece.start : piece.stop] for tensor in states[piece.part].in_order()])
        for piece in PIECES
    ]
    snapshot = taken(SnapshotBuffer().take(step=5, pieces=PIECES, states=states))
    for state in states.values():
        for tensor in state.in_order():
            tensor.zero_()  # training goes on
    assert all(map(torch.equal, snapshot.piece_bodies(), expected))
    assert snapshot.bytes == 27 * dtype.itemsize


def test_a_second_snapshot_is_answered_busy_until_the_first_is_given_back() -> None:
    states = {"dense": part_state(10, 1), "expert-00001": part_state(4, 2)}
    buffer = SnapshotBuffer()
    first = taken(buffer.take(step=5, pieces=PIECES, states=states))
    answer = buffer.take(step=6, pieces=PIECES, states=states)
    assert isinstance(answer, Busy)
    assert answer.step == 5
    assert answer.held_seconds >= 0
    buffer.give_back(first)
    assert taken(buffer.take(step=6, pieces=PIECES, states=states)).step == 6


def test_the_buffer_is_used_again() -> None:
    states = {"dense": part_state(10, 1), "expert-00001": part_state(4, 2)}
    buffer = SnapshotBuffer()
    buffer.reserve(100, torch.float32)
    places = set()
    for step in range(3):
        snapshot = taken(buffer.take(step=step, pieces=PIECES[: 1 + step % 2], states=states))
        places.add(snapshot.body.data_ptr())
        buffer.give_back(snapshot)
    assert len(places) == 1


def test_a_snapshot_does_not_wait_for_memory_that_is_made_ready() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(SnapshotBuffer):
        def _made_ready(self, elements: int, dtype: torch.dtype) -> tuple[torch.Tensor, None]:
            begun.set()
            assert go_on.wait(WAIT_SECONDS)
            return torch.full((elements,), 7, dtype=dtype), None

    states = {"dense": part_state(10, 1)}
    buffer = Slow()
    reserving = threading.Thread(target=buffer.reserve, args=(100, torch.float32))
    reserving.start()
    assert begun.wait(WAIT_SECONDS)
    snapshot = taken(buffer.take(step=1, pieces=PIECES[:1], states=states))
    go_on.set()
    reserving.join(WAIT_SECONDS)
    assert torch.equal(snapshot.body, torch.cat([each[3:8] for each in states["dense"].in_order()]))
    buffer.give_back(snapshot)


def test_memory_that_a_snapshot_lies_in_is_waited_for() -> None:
    """A larger one is wanted while the last checkpoint is written: it is there when that is done."""
    states = {"dense": part_state(10, 1)}
    buffer = SnapshotBuffer()
    snapshot = taken(buffer.take(step=1, pieces=PIECES[:1], states=states))
    reserving = threading.Thread(target=buffer.reserve, args=(100, torch.float32))
    reserving.start()
    assert reserving.is_alive() and not buffer._ready(100, torch.float32)
    buffer.give_back(snapshot)
    reserving.join(WAIT_SECONDS)
    assert buffer._ready(100, torch.float32)


def test_pinned_memory_that_is_too_small_is_let_go_by_another_thread() -> None:
    """It takes its time, and training stands still meanwhile."""
    releasers: list[threading.Thread] = []
    released = threading.Event()

    class Pinned:
        def release(self) -> None:
            releasers.append(threading.current_thread())
            released.set()

        def holds(self, tensor: torch.Tensor) -> bool:
            return False

    class Small(SnapshotBuffer):
        def _made_ready(self, elements: int, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
            return torch.empty(elements, dtype=dtype), Pinned()

    buffer = Small()
    buffer.reserve(3, torch.float32)
    snapshot = taken(buffer.take(step=1, pieces=PIECES[:1], states={"dense": part_state(10, 1)}))
    assert snapshot.body.numel() == 15
    assert released.wait(WAIT_SECONDS)
    assert releasers != [threading.current_thread()]


def test_no_room_for_the_copy_is_a_memory_error_and_holds_nothing() -> None:
    buffer = SnapshotBuffer()
    with pytest.raises(MemoryError, match="no room for a snapshot"):
        buffer.reserve(1 << 60, torch.float32)
    states = {"dense": part_state(10, 1)}
    assert taken(buffer.take(step=1, pieces=PIECES[:1], states=states)).step == 1


def test_a_byte_view_is_no_copy() -> None:
    tensor = torch.zeros(2)
    byte_view(tensor)[:] = b"\x00\x00\x80\x3f" * 2
    assert tensor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_seen_and_large_ones_are_not_mistaken_for_them(value: float) -> None:
    tensor = torch.full((1000,), 3e38)
    assert all_finite(tensor)
    tensor[777] = value
    assert not all_finite(tensor)
