"""Checkpoints as the trainer sees them: snapshot at an agreed boundary, write behind training, seal, delete, restore.

The training thread pays one memory copy (`CheckpointWriter.save`); shards are written by the writer's thread,
sealing and deleting by a second one. A failure is a report, never an exception in training. The formats live in
`worker/checkpointing`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from worker.agent.messages import (
    Assignment,
    CheckpointBegun,
    CheckpointFailed,
    CheckpointSealed,
    DeleteCheckpoint,
    Report,
    SealCheckpoint,
    ShardWritten,
    TakeCheckpoint,
)
from worker.checkpointing.errors import CheckpointError
from worker.checkpointing.manifest import shard_from_mapping, shard_to_mapping
from worker.checkpointing.names import KINDS, CheckpointId, parse_sealed, shard_file, temporary
from worker.checkpointing.sealing import delete, seal, sweep
from worker.checkpointing.snapshot import Busy, SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import (
    CheckpointWriter,
    Outcome,
    SaveRequest,
    ShardFailed,
    ShardSaved,
    WriteLimits,
)
from worker.training.saved_state import Identity, Saved, fill, manifest_of, read_base, shares_of
from worker.training.state import TrainingState

_CHORES_LIMIT = 64
"""Seal and delete orders that may wait; the controller repeats what is lost."""


class Saves:
    """The checkpoints of one trainer."""

    def __init__(
        self,
        root: Path,
        identity: Identity,
        state: TrainingState,
        report: Callable[[Report], None],
        before_shard: Callable[[int, Path], None],
    ) -> None:
        """`before_shard` hears of each shard, by step and file, before it is written (fault injection)."""
        self._storage = FileStorage(root)
        self._root = root
        self._identity = identity
        self._state = state
        self._report = report
        self._before_shard = before_shard
        buffer = SnapshotBuffer(device=state.dense_P.device)
        self._buffer = buffer
        self._room = threading.Lock()
        self._wanted = 0
        """Elements that this rank's share has."""
        self._making_room = False
        self._writer = CheckpointWriter(storage=self._storage, buffer=buffer, limits=WriteLimits())
        self._chores: queue.Queue[SealCheckpoint | DeleteCheckpoint] = queue.Queue(_CHORES_LIMIT)
        threading.Thread(target=self._do_chores, name="checkpoint-chores", daemon=True).start()

    def enter(self, assignment: Assignment) -> None:
        """A generation begins: memory for this rank's share is made ready behind training (training thread).

        Fresh memory costs many times as much as the copy, pinned memory most of all (0.6 s per GiB).
        """
        pieces = shares_of(self._state, assignment)[assignment.rank]
        with self._room:
            self._wanted = sum(len(KINDS) * piece.length for piece in pieces)
            if self._making_room:
                return
            self._making_room = True
        threading.Thread(target=self._make_room, name="checkpoint-memory", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether there is memory for a copy. Made on the spot it holds training up for many times as long."""
        return not self._making_room

    def _make_room(self) -> None:
        made = 0
        while True:
            with self._room:
                if self._wanted == made:
                    self._making_room = False
                    return
                made = self._wanted
            try:
                with contextlib.suppress(MemoryError):  # the checkpoint will say so
                    self._buffer.reserve(made, self._state.dense_P.dtype)
            except BaseException:
                self._making_room = False  # else no checkpoint would ever be taken again
                raise

    def take(self, order: TakeCheckpoint, assignment: Assignment, stalled_seconds: float = 0.0) -> None:
        """Snapshot this rank's share at the current version and have it written (training thread).

        Training has stood still for `stalled_seconds` already, for this checkpoint.
        """
        state = self._state
        checkpoint = CheckpointId(step=state.version, generation=assignment.number)
        pieces = shares_of(state, assignment)[assignment.rank]
        names = {piece.part for piece in pieces}
        request = SaveRequest(checkpoint=checkpoint, rank=assignment.rank, pieces=pieces)
        if not pieces:
            written = self._written(order.request, checkpoint, assignment.rank)
            self._report(replace(written, stall_seconds=stalled_seconds))
            return
        states = {name: state.part(state.numbers.number(name)) for name in names}
        self._before_shard(
            checkpoint.step, self._root / checkpoint.partial / temporary(shard_file(assignment.rank))
        )
        answer = self._writer.save(
            request, states, lambda outcome: self._finished(order.request, outcome, stalled_seconds)
        )
        if isinstance(answer, Busy):
            reason = f"step {answer.step} is still being written after {answer.held_seconds:.1f} s"
            self._report(CheckpointFailed(request=order.request, reason=reason))
        elif isinstance(answer, ShardFailed):
            self._report(CheckpointFailed(request=order.request, reason=str(answer.error)))
        else:
            begun = CheckpointBegun(
                request=order.request,
                generation=checkpoint.generation,
                step=checkpoint.step,
                name=checkpoint.folder,
            )
            self._report(begun)

    def _finished(self, request: str, outcome: Outcome, stalled_seconds: float) -> None:
        match outcome:
            case ShardSaved():
                written = self._written(request, outcome.request.checkpoint, outcome.request.rank)
                self._report(
                    replace(
                        written,
                        shard=json.dumps(shard_to_mapping(outcome.shard)),
                        bytes=outcome.shard.bytes,
                        stall_seconds=stalled_seconds + outcome.blocked_seconds,
                    )
                )
            case ShardFailed():
                self._report(CheckpointFailed(request=request, reason=str(outcome.error)))

    @staticmethod
    def _written(request: str, checkpoint: CheckpointId, rank: int) -> ShardWritten:
        """Of a rank that had nothing to write."""
        return ShardWritten(
            request=request,
            generation=checkpoint.generation,
            step=checkpoint.step,
            name=checkpoint.folder,
            rank=rank,
            shard="",
            bytes=0,
            stall_seconds=0.0,
        )

    def enqueue(self, order: SealCheckpoint | DeleteCheckpoint) -> None:
        """Take a chore (reader thread)."""
        try:
            self._chores.put_nowait(order)
        except queue.Full:
            if isinstance(order, SealCheckpoint):
                self._report(
                    CheckpointFailed(request=order.request, reason="too many checkpoint chores wait")
                )

    def _do_chores(self) -> None:
        while True:
            order = self._chores.get()
            try:
                match order:
                    case SealCheckpoint():
                        self._seal(order)
                    case DeleteCheckpoint():
                        self._delete(order)
            except (CheckpointError, OSError, ValueError) as error:
                request = order.request if isinstance(order, SealCheckpoint) else order.name
                self._report(CheckpointFailed(request=request, reason=str(error)))

    def _seal(self, order: SealCheckpoint) -> None:
        checkpoint = parse_sealed(order.name)
        if checkpoint is None:
            raise ValueError(f"{order.name!r} is no checkpoint name")
        shards = tuple(shard_from_mapping(json.loads(text)) for text in order.shards if text)
        manifest = manifest_of(self._identity, self._state, checkpoint, shards)
        seal(self._storage, manifest)
        sweep(self._storage, keep=())  # one checkpoint is written at a time: what is partial now was given up
        self._report(
            CheckpointSealed(
                request=order.request,
                step=checkpoint.step,
                name=order.name,
                path=str(self._root / order.name),
                bytes=sum(shard.bytes for shard in shards),
            )
        )

    def _delete(self, order: DeleteCheckpoint) -> None:
        checkpoint = parse_sealed(order.name)
        if checkpoint is not None:
            delete(self._storage, checkpoint)

    def restore(
        self, name: str, experts: Sequence[int], after_chunk: Callable[[int], None], *, stage: int = 0
    ) -> None:
        """Fill the state with `experts` and the dense part of a stage from a sealed checkpoint, verified first.

        What is frozen comes from the base. Raises CheckpointDamaged, CheckpointMismatch, or what `after_chunk` raises
        (to give up).
        """
        checkpoint = parse_sealed(name)
        assert checkpoint is not None, f"{name!r} is no checkpoint name"
        source = Saved(storage=self._storage, checkpoint=checkpoint, stage=stage)
        fill(self._state, self._identity, source, experts, after_chunk)

    def begin(self, experts: Sequence[int], after_chunk: Callable[[int], None], *, stage: int = 0) -> None:
        """Version 0 of `experts` and the dense part: the weights of the base, or those that the seed gives.

        Raises as `restore` does.
        """
        if self._identity.base is None:
            self._state.initialise(experts, stage=stage)
            return
        numbers = self._state.numbers
        self._state.load(experts, 0, stage=stage)
        parts = [numbers.dense(stage), *map(numbers.expert, sorted(experts))]
        read_base(self._state, self._identity, parts, after_chunk)
