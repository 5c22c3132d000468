"""Checkpoints as the trainer sees them: snapshot at an agreed boundary, write behind training, seal, delete, restore.

The training thread pays one memory copy (`CheckpointWriter.save`); shards are written by the writer's thread,
sealing and deleting by a second one. A failure is a report, never an exception in training. The formats live in
`worker/checkpointing`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.agent.messages import (
    Assignment,
    CheckpointFailed,
    CheckpointSealed,
    DeleteCheckpoint,
    Report,
    SealCheckpoint,
    ShardWritten,
    TakeCheckpoint,
)
from worker.checkpointing.errors import CheckpointError, CheckpointMismatch
from worker.checkpointing.manifest import Manifest, PartEntry, Piece, shard_from_mapping, shard_to_mapping
from worker.checkpointing.names import CheckpointId, parse_sealed, shard_file, temporary
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.reader import CheckpointReader, Expected
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
from worker.training.base_checkpoint import Base
from worker.training.state import TrainingState

_CHORES_LIMIT = 64
"""Seal and delete orders that may wait; the controller repeats what is lost."""
_MUST_AGREE = ("seed", "batch", "model", "optimizer")
"""Sections of the job that decide what a step is: a checkpoint of other values is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a checkpoint is of; a restore refuses another's."""

    job: str
    config: Mapping[str, object]
    data_fingerprint: str
    layout: str
    precision: str
    base: Base | None = None
    """What training began with; where only some experts are trained, everything else stays there."""


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
        buffer = SnapshotBuffer(pinned=state.dense_P.is_cuda)
        self._writer = CheckpointWriter(storage=self._storage, buffer=buffer, limits=WriteLimits())
        self._chores: queue.Queue[SealCheckpoint | DeleteCheckpoint] = queue.Queue(_CHORES_LIMIT)
        threading.Thread(target=self._do_chores, name="checkpoint-chores", daemon=True).start()

    def take(self, order: TakeCheckpoint, assignment: Assignment) -> None:
        """Snapshot this rank's share at the current version and have it written (training thread)."""
        state = self._state
        checkpoint = CheckpointId(step=state.version, generation=assignment.number)
        pieces = self._row(assignment)
        names = {piece.part for piece in pieces}
        request = SaveRequest(checkpoint=checkpoint, rank=assignment.rank, pieces=pieces)
        if not pieces:
            self._report(self._written(order.request, checkpoint, assignment.rank, "", 0))
            return
        states = {name: state.part(state.numbers.number(name)) for name in names}
        self._before_shard(
            checkpoint.step, self._root / checkpoint.partial / temporary(shard_file(assignment.rank))
        )
        answer = self._writer.save(request, states, lambda outcome: self._finished(order.request, outcome))
        if isinstance(answer, Busy):
            reason = f"step {answer.step} is still being written after {answer.held_seconds:.1f} s"
            self._report(CheckpointFailed(request=order.request, reason=reason))
        elif isinstance(answer, ShardFailed):
            self._report(CheckpointFailed(request=order.request, reason=str(answer.error)))

    def _row(self, assignment: Assignment) -> tuple[Piece, ...]:
        state, numbers = self._state, self._state.numbers
        trained = {
            expert: ranks
            for expert, ranks in enumerate(assignment.placement)
            if not state.frozen(numbers.expert(expert))
        }
        lengths = {numbers.name(part): state.length(part) for part in self._saved()}
        stages = tuple(member.stage for member in assignment.members)
        return plan_shards(trained, len(stages), lengths, stages)[assignment.rank]

    def _saved(self) -> list[int]:
        """The parts that a checkpoint holds: those that are trained."""
        return [part for part in range(self._state.parts) if not self._state.frozen(part)]

    def _finished(self, request: str, outcome: Outcome) -> None:
        match outcome:
            case ShardSaved():
                text = json.dumps(shard_to_mapping(outcome.shard))
                saved = outcome.request
                self._report(self._written(request, saved.checkpoint, saved.rank, text, outcome.shard.bytes))
            case ShardFailed():
                self._report(CheckpointFailed(request=request, reason=str(outcome.error)))

    @staticmethod
    def _written(request: str, checkpoint: CheckpointId, rank: int, shard: str, size: int) -> ShardWritten:
        return ShardWritten(
            request=request,
            generation=checkpoint.generation,
            step=checkpoint.step,
            name=checkpoint.folder,
            rank=rank,
            shard=shard,
            bytes=size,
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
        state, identity = self._state, self._identity
        manifest = Manifest(
            job=identity.job,
            step=checkpoint.step,
            generation=checkpoint.generation,
            created=time.time(),
            config=identity.config,
            data_fingerprint=identity.data_fingerprint,
            layout=identity.layout,
            precision=identity.precision,
            parts={
                state.numbers.name(part): PartEntry(version=checkpoint.step, length=state.length(part))
                for part in self._saved()
            },
            shards=shards,
            base=identity.base.entry if identity.base and len(self._saved()) < state.parts else None,
        )
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
        identity, state = self._identity, self._state
        expected = Expected(
            job=identity.job,
            config={field: identity.config[field] for field in _MUST_AGREE},
            data_fingerprint=identity.data_fingerprint,
            layout=identity.layout,
            precision=identity.precision,
        )
        with CheckpointReader(
            self._storage, checkpoint, refuse_non_finite=True, after_chunk=after_chunk
        ) as reader:
            reader.require(expected)
            self._require_base(name, reader.manifest)
            numbers = state.numbers
            parts = (numbers.dense(stage), *map(numbers.expert, sorted(experts)))
            stored = [part for part in parts if not state.frozen(part)]
            reader.verify([numbers.name(part) for part in stored])
            state.load(experts, checkpoint.step, stage=stage)
            reader.read({numbers.name(part): state.part(part) for part in stored})
        self._read_base([part for part in parts if state.frozen(part)], after_chunk)

    def begin(self, experts: Sequence[int], after_chunk: Callable[[int], None], *, stage: int = 0) -> None:
        """Version 0 of `experts` and the dense part: the weights of the base, or those that the seed gives.

        Raises as `restore` does.
        """
        if self._identity.base is None:
            self._state.initialise(experts, stage=stage)
            return
        numbers = self._state.numbers
        self._state.load(experts, 0, stage=stage)
        self._read_base([numbers.dense(stage), *map(numbers.expert, sorted(experts))], after_chunk)

    def _read_base(self, parts: Sequence[int], after_chunk: Callable[[int], None]) -> None:
        if parts:
            assert self._identity.base is not None, "what is frozen comes from somewhere"
            weights = {self._state.numbers.name(part): self._state.part(part).weights for part in parts}
            self._identity.base.read(weights, after_chunk)

    def _require_base(self, name: str, manifest: Manifest) -> None:
        """Trained experts fit the base that they were trained in, and no other."""
        base = self._identity.base
        wanted = base.digest if base and len(self._saved()) < self._state.parts else None
        found = manifest.base.sha256 if manifest.base else None
        if wanted != found:
            raise CheckpointMismatch(checkpoint=name, field="base", wanted=wanted, found=found)
        parts = [self._state.numbers.name(part) for part in self._saved()]
        if set(parts) != set(manifest.parts):
            found_parts = sorted(manifest.parts)
            raise CheckpointMismatch(checkpoint=name, field="parts", wanted=parts, found=found_parts)
