"""States, trainers and checkpoints for the tests of this folder; deterministic from their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.waiting import wait_until
from worker.checkpointing.donation import Donations
from worker.checkpointing.fetch import ReplayEntry
from worker.checkpointing.manifest import Manifest, PartEntry, Shard
from worker.checkpointing.names import DENSE, CheckpointId, expert_part
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import (
    Accepted,
    CheckpointWriter,
    Outcome,
    SaveRequest,
    ShardFailed,
    ShardSaved,
    WriteLimits,
)

WAIT_SECONDS = 60.0
LIMITS = WriteLimits(chunk_bytes=1 << 16)
CONFIG: Mapping[str, object] = {"model": {"experts": 4, "width": 8}, "precision": "float32"}


def part_state(length: int, seed: int, dtype: torch.dtype = torch.float32) -> PartTensors:
    """Random but repeatable tensors."""
    source = torch.Generator().manual_seed(seed)
    weights, m, v = (torch.randn(length, generator=source, dtype=dtype) for _ in range(3))
    return PartTensors(weights=weights, m=m, v=v)


def blank_like(state: PartTensors) -> PartTensors:
    """Tensors of the same shape that hold nothing of it."""
    return PartTensors.of([torch.full_like(tensor, -7.0) for tensor in state.in_order()])


def same_bits(one: PartTensors, other: PartTensors) -> bool:
    """Whether all tensors agree in each bit."""
    integer = torch.int32 if one.weights.dtype == torch.float32 else torch.int64
    pairs = zip(one.in_order(), other.in_order(), strict=True)
    return all(torch.equal(a.view(integer), b.view(integer)) for a, b in pairs)


def gradient_of(part: str, version: int, length: int, dtype: torch.dtype) -> Tensor:
    """The gradient that makes `version` of the part."""
    source = torch.Generator().manual_seed(version * 1000 + len(part) + sum(part.encode()))
    return torch.randn(length, generator=source, dtype=dtype)


def apply_gradient(state: PartTensors, gradient: Tensor, clip: float, learning_rate: float) -> None:
    """AdamW without its frills: enough that one missed or doubled gradient shows in every tensor."""
    if state.frozen:
        assert gradient.numel() == 0, "what is frozen has no gradient"
        return
    clipped = gradient * clip
    state.m.mul_(0.9).add_(clipped, alpha=0.1)
    state.v.mul_(0.99).addcmul_(clipped, clipped, value=0.01)
    state.weights.addcdiv_(state.m, state.v.abs().sqrt().add_(1e-8), value=-learning_rate)


class Trainer:
    """A trainer as its donations see it: parts at a version, and commits."""

    def __init__(self, lengths: Mapping[str, int], dtype: torch.dtype = torch.float32) -> None:
        self.version = 0
        self.parts = {
            part: part_state(length, seed, dtype)
            for seed, (part, length) in enumerate(sorted(lengths.items()))
        }

    def commit(self, donations: Donations) -> None:
        """One step: gradients, optimizer, and the two calls that every training loop makes."""
        self.version += 1
        clip, learning_rate = 1.0 / self.version, 0.1 / self.version
        gradients = {
            part: gradient_of(part, self.version, 0 if state.frozen else state.length, state.weights.dtype)
            for part, state in self.parts.items()
        }
        for part, state in self.parts.items():
            apply_gradient(state, gradients[part], clip, learning_rate)
        donations.after_commit(self.version, gradients.get, clip=clip, learning_rate=learning_rate)
        donations.at_boundary(self.version, self.parts.get)
        for gradient in gradients.values():
            gradient.zero_()  # what a real trainer does next: a copy that was not made would show

    def blank(self) -> dict[str, PartTensors]:
        """Staging for a newcomer."""
        return {part: blank_like(state) for part, state in self.parts.items()}


def replay_into(staging: Mapping[str, PartTensors], entry: ReplayEntry) -> None:
    """What a newcomer does with an entry of the log."""
    apply_gradient(staging[entry.part], entry.gradient, entry.clip, entry.learning_rate)


PLACEMENT = {0: (0, 1), 1: (1, 2), 2: (2, 0), 3: (0, 1)}
LENGTHS = {DENSE: 30_001} | {expert_part(expert): 7_003 for expert in PLACEMENT}


def full_state(step: int, dtype: torch.dtype = torch.float32) -> dict[str, PartTensors]:
    """Every part of a small model at a step."""
    return {
        part: part_state(length, step * 100 + index, dtype)
        for index, (part, length) in enumerate(sorted(LENGTHS.items()))
    }


def manifest_of(checkpoint: CheckpointId, shards: tuple[Shard, ...], precision: str = "float32") -> Manifest:
    """The manifest of a checkpoint of `full_state`."""
    return Manifest(
        job="job-1",
        step=checkpoint.step,
        generation=checkpoint.generation,
        created=1_700_000_000.5,
        config=CONFIG,
        data_fingerprint="data-1",
        layout="layout-1",
        precision=precision,
        parts={part: PartEntry(version=checkpoint.step, length=length) for part, length in LENGTHS.items()},
        shards=shards,
    )


def save_shard(
    writer: CheckpointWriter, request: SaveRequest, states: Mapping[str, PartTensors]
) -> ShardSaved | ShardFailed:
    """Saves and waits for the outcome."""
    outcomes: list[Outcome] = []
    answer = writer.save(request, states, outcomes.append)
    assert isinstance(answer, Accepted), answer
    wait_until(lambda: outcomes, within_seconds=WAIT_SECONDS, what="the shard")
    return outcomes[0]


def write_shards(
    root: Path, checkpoint: CheckpointId, states: Mapping[str, PartTensors], world: int = 3
) -> tuple[Shard, ...]:
    """All ranks' shards of a checkpoint, written one after the other."""
    writer = CheckpointWriter(storage=FileStorage(root), buffer=SnapshotBuffer(), limits=LIMITS)
    shards = []
    for rank, pieces in enumerate(plan_shards(PLACEMENT, world, LENGTHS)):
        request = SaveRequest(checkpoint=checkpoint, rank=rank, pieces=pieces)
        outcome = save_shard(writer, request, states)
        assert isinstance(outcome, ShardSaved), outcome
        shards.append(outcome.shard)
    assert writer.close(WAIT_SECONDS)
    return tuple(shards)


def seal_checkpoint(root: Path, step: int, dtype: torch.dtype = torch.float32) -> CheckpointId:
    """A whole sealed checkpoint of `full_state(step)`."""
    checkpoint = CheckpointId(step=step, generation=4)
    shards = write_shards(root, checkpoint, full_state(step, dtype))
    seal(FileStorage(root), manifest_of(checkpoint, shards, str(dtype).removeprefix("torch.")))
    return checkpoint
