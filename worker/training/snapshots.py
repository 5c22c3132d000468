"""Snapshots in host memory as the trainer sees them: a copy at an agreed boundary, hashed behind training, and back.

The training thread pays one memory copy into shared memory that the agent holds too, so that it outlives this process;
a thread of its own hashes it and looks for NaN. A failure is a report, never an exception in training. In a restore the
shards come from agents, through the reader of checkpoints with all its verification. Next: `saved_state.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.agent.messages import Assignment, CheckpointFailed, Report, SnapshotTaken, TakeSnapshot
from worker.checkpointing.errors import CheckpointDamaged, ManifestInvalid
from worker.checkpointing.manifest import (
    Piece,
    Shard,
    StoredPiece,
    shard_digest,
    shard_from_mapping,
    shard_to_mapping,
)
from worker.checkpointing.memory import MemoryStorage
from worker.checkpointing.names import KINDS, CheckpointId, shard_file
from worker.checkpointing.parts import all_finite, byte_view, precision_of
from worker.checkpointing.pinning import PinnedMemory
from worker.checkpointing.snapshot import copy_pieces
from worker.checkpointing.tensorfile import body_bytes, encode_header
from worker.hostmemory.client import Caller
from worker.hostmemory.identity import ShardId, SnapshotId, parse_snapshot
from worker.hostmemory.slots import MappedSlot, NoRoom
from worker.training.saved_state import Identity, Saved, fill, manifest_of, shares_of
from worker.training.state import TrainingState

_READY_SECONDS = 0.1
"""So long training waits for memory that is being made ready, at most; then the snapshot is left to the next order."""
_HASH_BYTES = 4 << 20
"""Hashed at once; between two of these other threads get their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copied:
    """A share in its slot, not hashed yet."""

    order: TakeSnapshot
    assignment: Assignment
    step: int
    shards: int
    pieces: tuple[Piece, ...]
    header: bytes
    body: Tensor
    stall_seconds: float


class Snapshots:
    """The host-memory snapshots of one trainer."""

    def __init__(
        self,
        *,
        slots: Sequence[int],
        identity: Identity,
        state: TrainingState,
        report: Callable[[Report], None],
        caller: Caller,
    ) -> None:
        self._slots = [MappedSlot(descriptor) for descriptor in slots]
        self._identity = identity
        self._state = state
        self._report = report
        self._caller = caller
        self._copied: queue.Queue[_Copied] = queue.Queue(maxsize=1)
        self._hashing = threading.Event()
        self._assignment: Assignment | None = None
        self._making_ready: threading.Thread | None = None
        self._pinned: dict[int, PinnedMemory] = {}
        """By slot, where the state lies on a GPU."""
        if self._slots:
            threading.Thread(target=self._hash_all, name="snapshot-hasher", daemon=True).start()

    def enter(self, assignment: Assignment) -> None:
        """The generation whose orders come from now on (training thread)."""
        self._assignment = assignment

    def foresee(self, order: TakeSnapshot) -> None:
        """Make the slot ready for a copy at the next boundary (reader thread).

        Fresh memory costs a page fault for every 4 KiB, eight times as much as the copy; training does not wait for it.
        """
        assignment, busy = self._assignment, self._making_ready
        if assignment is None or order.slot >= len(self._slots) or (busy is not None and busy.is_alive()):
            return
        pieces = shares_of(self._state, assignment)[assignment.rank]
        if pieces:
            precision = self._identity.precision
            size = len(encode_header(pieces, precision)) + body_bytes(pieces, precision)
            self._making_ready = threading.Thread(
                target=self._make_ready, args=(order.slot, size), name="snapshot-memory", daemon=True
            )
            self._making_ready.start()

    def _make_ready(self, slot: int, size: int) -> None:
        with contextlib.suppress(NoRoom, MemoryError):  # whoever takes it will be told
            device = self._state.dense_P.device
            view = self._slots[slot].view(size, populate=device.type != "cuda")
            if device.type != "cuda":
                return
            pinned = self._pinned.get(slot)
            if pinned is None or not pinned.holds(torch.frombuffer(view, dtype=torch.uint8)):
                if pinned is not None:
                    del self._pinned[slot]
                    pinned.release()
                self._pinned[slot] = PinnedMemory(view, device)

    def take(self, order: TakeSnapshot, assignment: Assignment, began: float) -> None:
        """Copy this rank's share at the current version (training thread). Training stands still since `began`."""
        shares = shares_of(self._state, assignment)
        pieces = shares[assignment.rank]
        if not pieces or order.generation != assignment.number:
            return  # the others' shards are the whole; an order of an older generation is everybody's to ignore
        reason = self._why_not(order)
        if not reason:
            try:
                self._copy(order, assignment, shares, began)
            except NoRoom as error:
                reason = str(error)
        if reason:
            failed = CheckpointFailed(request=order.request, reason=reason)
            self._report(failed)

    def _why_not(self, order: TakeSnapshot) -> str:
        if order.slot >= len(self._slots):
            return "this trainer was given no shared memory"
        if self._hashing.is_set():
            return "the snapshot before it is still being hashed"
        if self._making_ready is not None:
            self._making_ready.join(_READY_SECONDS)
            if self._making_ready.is_alive():
                return "its memory is still being made ready"
        return ""

    def _copy(
        self,
        order: TakeSnapshot,
        assignment: Assignment,
        shares: Sequence[Sequence[Piece]],
        began: float,
    ) -> None:
        state, pieces = self._state, tuple(shares[assignment.rank])
        states = {piece.part: state.part(state.numbers.number(piece.part)) for piece in pieces}
        dtype = state.dense_P.dtype
        precision = precision_of(dtype)
        header, size = encode_header(pieces, precision), body_bytes(pieces, precision)
        view = self._slots[order.slot].view(len(header) + size)
        view[: len(header)] = header
        body = torch.frombuffer(
            view[len(header) : len(header) + size], dtype=dtype, count=size // dtype.itemsize
        )
        copy_pieces(body, pieces, states, self._pinned.get(order.slot))
        self._hashing.set()
        self._copied.put_nowait(
            _Copied(
                order=order,
                assignment=assignment,
                step=state.version,
                shards=sum(bool(share) for share in shares),
                pieces=pieces,
                header=header,
                body=body,
                stall_seconds=time.monotonic() - began,
            )
        )

    # ---- the hashing thread ----

    def _hash_all(self) -> None:
        while True:
            copied = self._copied.get()
            report = _hashed(copied)
            self._hashing.clear()
            self._report(report)

    # ---- restoring ----

    def restore(
        self,
        assignment: Assignment,
        experts: Sequence[int],
        after_chunk: Callable[[int], None],
        *,
        stage: int = 0,
    ) -> None:
        """Fill the state from the agents that hold the snapshot which the assignment names.

        A holder that is gone, or gives what is damaged, is left out; raises CheckpointDamaged when a shard has no
        sound holder left, CheckpointMismatch, or what `after_chunk` raises.
        """
        snapshot = parse_snapshot(assignment.restore_name)
        assert snapshot is not None, f"{assignment.restore_name!r} is no snapshot"

        def given_up() -> bool:
            after_chunk(0)
            return False

        storage = self._storage(snapshot, assignment, given_up)
        checkpoint = CheckpointId(step=snapshot.step, generation=snapshot.generation)
        while True:
            try:
                saved = Saved(storage=storage, checkpoint=checkpoint, stage=stage)
                return fill(self._state, self._identity, saved, experts, after_chunk)
            except CheckpointDamaged as error:
                if not storage.distrust(error.shard):
                    raise CheckpointDamaged(
                        checkpoint=snapshot.name, shard=error.shard, reason=error.reason
                    ) from error

    def _storage(
        self, snapshot: SnapshotId, assignment: Assignment, given_up: Callable[[], bool]
    ) -> MemoryStorage:
        checkpoint = CheckpointId(step=snapshot.step, generation=snapshot.generation)
        sources = assignment.restore_shards
        try:
            shards = [shard_from_mapping(json.loads(source.entry)) for source in sources]
        except (ManifestInvalid, ValueError) as error:
            raise CheckpointDamaged(
                checkpoint=snapshot.name, shard="its entries", reason=str(error)
            ) from error
        return MemoryStorage(
            manifest_of(self._identity, self._state, checkpoint, shards),
            caller=self._caller,
            shards={
                shard_file(source.rank): ShardId(snapshot=snapshot, rank=source.rank) for source in sources
            },
            holders={
                shard_file(source.rank): _turned(source.addresses, assignment.rank) for source in sources
            },
            given_up=given_up,
        )


def _turned(addresses: Sequence[str], rank: int) -> Sequence[str]:
    """Each rank begins with another holder, so that all of them serve."""
    first = rank % max(1, len(addresses))
    return (*addresses[first:], *addresses[:first])


def _hashed(copied: _Copied) -> SnapshotTaken | CheckpointFailed:
    """The entry of a share; a share that holds NaN is none."""
    order = copied.order
    stored: list[StoredPiece] = []
    cuts = [len(KINDS) * piece.length for piece in copied.pieces]
    for piece, body in zip(copied.pieces, torch.split(copied.body, cuts), strict=True):
        digest = hashlib.sha256()
        for chunk in body.split(_HASH_BYTES // body.element_size()):
            digest.update(byte_view(chunk))
            if not all_finite(chunk):
                reason = f"{piece.part} holds NaN or infinity"
                return CheckpointFailed(request=order.request, reason=reason)
        stored.append(StoredPiece(piece=piece, sha256=digest.hexdigest()))
    rank = copied.assignment.rank
    size = len(copied.header) + copied.body.numel() * copied.body.element_size()
    shard = Shard(
        file=shard_file(rank),
        pieces=tuple(stored),
        bytes=size,
        sha256=shard_digest(copied.header, stored),
    )
    return SnapshotTaken(
        request=order.request,
        generation=copied.assignment.number,
        step=copied.step,
        rank=rank,
        shards=copied.shards,
        slot=order.slot,
        entry=json.dumps(shard_to_mapping(shard), separators=(",", ":")),
        bytes=size,
        stall_seconds=copied.stall_seconds,
    )
