"""A consistent copy of chosen pieces of the state in host memory, made while training stands between two commits.

One buffer, kept and reused: after the first call nothing is allocated. The copy lies in memory exactly as it will lie
in the shard file (see `tensorfile`), so the writer has nothing left to arrange. Nothing here writes files or waits:
a second request while the buffer is in use is answered `Busy`, and the step that holds it is named.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpointing.manifest import Piece
from worker.checkpointing.names import KINDS
from worker.checkpointing.parts import PartTensors, byte_view, precision_of
from worker.checkpointing.pinning import PinnedMemory, cuts

RETURN_SECONDS = 900.0
"""How long memory that a snapshot lies in is waited for; a disk that takes longer does not write checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pieces at one step. `body` is valid until the snapshot is given back."""

    step: int
    pieces: tuple[Piece, ...]
    precision: str
    body: Tensor

    def piece_bodies(self) -> tuple[Tensor, ...]:
        """The body cut by piece; each holds weights, m and v one after the other."""
        cuts = [len(KINDS) * piece.length for piece in self.pieces]
        return torch.split(self.body, cuts)

    @property
    def bytes(self) -> int:
        """Bytes of the copy."""
        return len(byte_view(self.body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """No buffer is free: the snapshot of `step` has been in writing for `held_seconds`."""

    step: int
    held_seconds: float


class SnapshotBuffer:
    """The host buffer of one trainer; at most one snapshot is out at a time."""

    def __init__(self, *, device: torch.device | None = None) -> None:
        """For the copies of a GPU, `device`, what `reserve` makes is pinned."""
        self._device = device if device is not None and device.type == "cuda" else None
        self._lock = threading.Condition()
        self._buffer: Tensor | None = None
        self._pinned: PinnedMemory | None = None
        self._out: int | None = None
        self._out_since = 0.0

    def reserve(self, elements: int, dtype: torch.dtype) -> None:
        """Makes the buffer beforehand and touches each page, so that the first snapshot costs what the others do.

        Takes its time, and no other call waits for it: a snapshot that is wanted meanwhile is made in fresh memory.
        While a snapshot is out it waits, `RETURN_SECONDS` at most. Raises MemoryError.
        """
        with self._lock:
            back = self._lock.wait_for(lambda: self._out is None, RETURN_SECONDS)
            if not back or self._ready(elements, dtype):
                return
            old = self._pinned
            self._buffer = self._pinned = None  # freed first: old and new together may be more than there is
        if old is not None:
            old.release()
        made, pinned = self._made_ready(elements, dtype)
        if not self._adopt(made, pinned) and pinned is not None:
            pinned.release()

    def take(
        self, *, step: int, pieces: Sequence[Piece], states: Mapping[str, PartTensors]
    ) -> Snapshot | Busy:
        """Copies the pieces; returns when the state may be written again. Blocks for the time of the copy only.

        Raises MemoryError where the host has no room for the buffer; nothing is held then.
        """
        assert pieces
        dtype = states[pieces[0].part].weights.dtype
        with self._lock:
            if self._out is not None:
                return Busy(step=self._out, held_seconds=time.monotonic() - self._out_since)
            body = self._storage(sum(len(KINDS) * piece.length for piece in pieces), dtype)
            self._out, self._out_since = step, time.monotonic()
        copy_pieces(body, pieces, states, self._pinned)
        return Snapshot(step=step, pieces=tuple(pieces), precision=precision_of(dtype), body=body)

    def give_back(self, snapshot: Snapshot) -> None:
        """Frees the buffer for the next snapshot; `snapshot` must not be read any more."""
        with self._lock:
            assert self._out == snapshot.step
            self._out = None
            self._lock.notify_all()

    def _adopt(self, made: Tensor, pinned: PinnedMemory | None) -> bool:
        with self._lock:
            if self._out is not None or self._ready(made.numel(), made.dtype):
                return False
            self._buffer, self._pinned = made, pinned
            return True

    def _fits(self, elements: int, dtype: torch.dtype) -> bool:
        held = self._buffer
        return held is not None and held.dtype == dtype and held.numel() >= elements

    def _ready(self, elements: int, dtype: torch.dtype) -> bool:
        return self._fits(elements, dtype) and (self._device is None or self._pinned is not None)

    def _storage(self, elements: int, dtype: torch.dtype) -> Tensor:
        if not self._fits(elements, dtype):
            old = self._pinned
            self._buffer = self._pinned = (
                None  # freed first: old and new together may be more than the host has
            )
            if old is not None:  # its pauses are not for the training thread
                threading.Thread(target=old.release, name="unpin", daemon=True).start()
            self._buffer = _fresh(elements, dtype)
        assert self._buffer is not None
        return self._buffer[:elements]

    def _made_ready(self, elements: int, dtype: torch.dtype) -> tuple[Tensor, PinnedMemory | None]:
        if self._device is None:
            return _fresh(elements, dtype).fill_(0), None
        try:
            memory = memoryview(mmap.mmap(-1, elements * dtype.itemsize))
        except OSError as error:
            raise MemoryError(f"no room for a snapshot of {elements} elements: {error}") from error
        pinned = PinnedMemory(memory, self._device)
        return torch.frombuffer(memory, dtype=dtype), pinned


def _fresh(elements: int, dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(elements, dtype=dtype)
    except RuntimeError as error:  # what torch raises when an allocation fails
        raise MemoryError(f"no room for a snapshot of {elements} elements: {error}") from error


def copy_pieces(
    body: Tensor,
    pieces: Sequence[Piece],
    states: Mapping[str, PartTensors],
    pinned: PinnedMemory | None = None,
) -> None:
    """Copy the pieces, one after the other, each as weights, m and v; returns when the state may be written again.

    Where `body` lies in pinned memory the copies from a GPU run at the speed of its link.
    """
    offset = 0
    into_pinned = pinned is not None and pinned.holds(body)
    size = body.element_size()
    devices: set[torch.device] = set()
    for piece in pieces:
        state = states[piece.part]
        assert 0 <= piece.start < piece.stop <= state.length and state.weights.dtype == body.dtype
        for tensor in state.in_order():
            target, source = body[offset : offset + piece.length], tensor.detach()[piece.start : piece.stop]
            if into_pinned:
                assert pinned is not None
                begin = target.data_ptr() - pinned.address
                for start, stop in cuts(begin, begin + piece.length * size):
                    part = slice((start - begin) // size, (stop - begin) // size)
                    target[part].copy_(source[part], non_blocking=True)
            else:
                target.copy_(source)
            offset += piece.length
        devices.add(state.weights.device)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
