"""What is the same for every saved state, wherever it lies: whose it is, who saves what, and how it is read back.

Shared by checkpoints (`saving.py`) and by snapshots in host memory (`snapshots.py`); no storage is opened here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from worker.agent.messages import Assignment
from worker.checkpointing.errors import CheckpointMismatch
from worker.checkpointing.manifest import Manifest, PartEntry, Piece, Shard
from worker.checkpointing.names import CheckpointId
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.reader import CheckpointReader, Expected
from worker.checkpointing.storage import Readable
from worker.training.base_checkpoint import Base
from worker.training.state import TrainingState

_MUST_AGREE = ("seed", "batch", "model", "optimizer")
"""Sections of the job that decide what a step is: a saved state of other values is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a saved state is of; a restore refuses another's."""

    job: str
    config: Mapping[str, object]
    data_fingerprint: str
    layout: str
    precision: str
    base: Base | None = None
    """What training began with; where only some experts are trained, everything else stays there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Where a saved state is found."""

    storage: Readable
    checkpoint: CheckpointId
    stage: int = 0
    """Whose dense part is read."""


def shares_of(state: TrainingState, assignment: Assignment) -> tuple[tuple[Piece, ...], ...]:
    """The pieces that each rank saves, by rank."""
    numbers = state.numbers
    trained = {
        expert: ranks
        for expert, ranks in enumerate(assignment.placement)
        if not state.frozen(numbers.expert(expert))
    }
    lengths = {numbers.name(part): state.length(part) for part in saved_parts(state)}
    stages = tuple(member.stage for member in assignment.members)
    return plan_shards(trained, len(stages), lengths, stages)


def saved_parts(state: TrainingState) -> list[int]:
    """The parts that are saved: those that are trained."""
    return [part for part in range(state.parts) if not state.frozen(part)]


def manifest_of(
    identity: Identity, state: TrainingState, checkpoint: CheckpointId, shards: Sequence[Shard]
) -> Manifest:
    """What is known of a saved state whose shards are these."""
    return Manifest(
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
            for part in saved_parts(state)
        },
        shards=tuple(shards),
        base=identity.base.entry if identity.base and len(saved_parts(state)) < state.parts else None,
    )


def fill(
    state: TrainingState,
    identity: Identity,
    saved: Saved,
    experts: Sequence[int],
    after_chunk: Callable[[int], None],
) -> None:
    """Fill the state with `experts` and the dense part of a saved one, verified first.

    What is frozen comes from the base. Raises CheckpointDamaged, CheckpointMismatch, or what `after_chunk` raises (to
    give up).
    """
    expected = Expected(
        job=identity.job,
        config={field: identity.config[field] for field in _MUST_AGREE},
        data_fingerprint=identity.data_fingerprint,
        layout=identity.layout,
        precision=identity.precision,
    )
    with CheckpointReader(
        saved.storage, saved.checkpoint, refuse_non_finite=True, after_chunk=after_chunk
    ) as reader:
        reader.require(expected)
        _require_base(state, identity, saved.checkpoint.folder, reader.manifest)
        numbers = state.numbers
        parts = (numbers.dense(saved.stage), *map(numbers.expert, sorted(experts)))
        stored = [part for part in parts if not state.frozen(part)]
        reader.verify([numbers.name(part) for part in stored])
        state.load(experts, saved.checkpoint.step, stage=saved.stage)
        reader.read({numbers.name(part): state.part(part) for part in stored})
    read_base(state, identity, [part for part in parts if state.frozen(part)], after_chunk)


def read_base(
    state: TrainingState, identity: Identity, parts: Sequence[int], after_chunk: Callable[[int], None]
) -> None:
    """The weights of parts that come from what training began with."""
    if parts:
        assert identity.base is not None, "what is frozen comes from somewhere"
        weights = {state.numbers.name(part): state.part(part).weights for part in parts}
        identity.base.read(weights, after_chunk)


def _require_base(state: TrainingState, identity: Identity, name: str, manifest: Manifest) -> None:
    """Trained experts fit the base that they were trained in, and no other."""
    base = identity.base
    wanted = base.digest if base and len(saved_parts(state)) < state.parts else None
    found = manifest.base.sha256 if manifest.base else None
    if wanted != found:
        raise CheckpointMismatch(checkpoint=name, field="base", wanted=wanted, found=found)
    parts = [state.numbers.name(part) for part in saved_parts(state)]
    if set(parts) != set(manifest.parts):
        found_parts = sorted(manifest.parts)
        raise CheckpointMismatch(checkpoint=name, field="parts", wanted=parts, found=found_parts)
