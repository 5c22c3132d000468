"""A consistent copy of chosen pieces of the state in host memory, made while training stands between two commits.

One buffer, kept and reused: after the first call nothing is allocated. The copy lies in memory exactly as it will lie
in the shard file (see `tensorfile`), so the writer has nothing left to arrange. Nothing here writes files or waits:
a second request while the buffer is in use is answered `Busy`, and the step that holds it is named.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpointing.manifest import Piece
from worker.checkpointing.names import KINDS
from worker.checkpointing.parts import PartTensors, byte_view, precision_of


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

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._lock = threading.Lock()
        self._buffer: Tensor | None = None
        self._out: int | None = None
        self._out_since = 0.0

    def reserve(self, elements: int, dtype: torch.dtype) -> None:
        """Makes the buffer beforehand and touches each page, so that the first snapshot costs what the others do."""
        with self._lock:
            assert self._out is None
            self._storage(elements, dtype).fill_(0)

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
        copy_pieces(body, pieces, states)
        return Snapshot(step=step, pieces=tuple(pieces), precision=precision_of(dtype), body=body)

    def give_back(self, snapshot: Snapshot) -> None:
        """Frees the buffer for the next snapshot; `snapshot` must not be read any more."""
        with self._lock:
            assert self._out == snapshot.step
            self._out = None

    def _storage(self, elements: int, dtype: torch.dtype) -> Tensor:
        if self._buffer is None or self._buffer.dtype != dtype or self._buffer.numel() < elements:
            self._buffer = None  # freed first: old and new together may be more than the host has
            try:
                self._buffer = torch.empty(elements, dtype=dtype, pin_memory=self._pinned)
            except RuntimeError as error:  # what torch raises when an allocation fails
                raise MemoryError(f"no room for a snapshot of {elements} elements: {error}") from error
        return self._buffer[:elements]


def copy_pieces(body: Tensor, pieces: Sequence[Piece], states: Mapping[str, PartTensors]) -> None:
    """Copy the pieces, one after the other, each as weights, m and v; returns when the state may be written again."""
    offset = 0
    pinned = body.is_pinned()
    devices: set[torch.device] = set()
    for piece in pieces:
        state = states[piece.part]
        assert 0 <= piece.start < piece.stop <= state.length and state.weights.dtype == body.dtype
        for tensor in state.in_order():
            target = body[offset : offset + piece.length]
            target.copy_(tensor.detach()[piece.start : piece.stop], non_blocking=pinned)
            offset += piece.length
        devices.add(state.weights.device)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
