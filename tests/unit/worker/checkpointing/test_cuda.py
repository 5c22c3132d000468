"""The same promises where the state lives on a GPU and host buffers are pinned."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from tests.unit.worker.checkpointing.states import (
    LENGTHS,
    LIMITS,
    PLACEMENT,
    WAIT_SECONDS,
    apply_gradient,
    blank_like,
    gradient_of,
    manifest_of,
    part_state,
    replay_into,
    same_bits,
    save_shard,
)
from tests.waiting import wait_until
from worker.checkpointing import pinning
from worker.checkpointing.donation import DonationLimits, Donations
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, PeerIdentity
from worker.checkpointing.names import KINDS, CheckpointId
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.peer import PeerServer, ServerLimits
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.reader import CheckpointReader
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import Snapshot, SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import CheckpointWriter, SaveRequest, ShardSaved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
IDENTITY = PeerIdentity(job="job-1", token="secret", generation=1, newcomer="node-9/0")


def on_gpu(state: PartTensors) -> PartTensors:
    weights, m, v = (tensor.cuda() for tensor in state.in_order())
    return PartTensors(weights=weights, m=m, v=v)


def gpu_states() -> dict[str, PartTensors]:
    return {part: on_gpu(part_state(length, seed)) for seed, (part, length) in enumerate(LENGTHS.items())}


def test_a_checkpoint_goes_from_gpu_to_disk_and_back(tmp_path: Path) -> None:
    states = gpu_states()
    storage = FileStorage(tmp_path)
    buffer = SnapshotBuffer(device=torch.device("cuda"))
    writer = CheckpointWriter(storage=storage, buffer=buffer, limits=LIMITS)
    (pieces,) = plan_shards(dict.fromkeys(PLACEMENT, (0,)), 1, LENGTHS)
    checkpoint = CheckpointId(step=3, generation=4)
    buffer.reserve(sum(len(KINDS) * piece.length for piece in pieces), torch.float32)
    outcome = save_shard(writer, SaveRequest(checkpoint=checkpoint, rank=0, pieces=pieces), states)
    assert isinstance(outcome, ShardSaved)
    assert buffer._buffer is not None
    assert buffer._buffer.is_pinned()
    assert writer.close(WAIT_SECONDS)
    seal(storage, manifest_of(checkpoint, (outcome.shard,)))
    found = {part: blank_like(state) for part, state in states.items()}
    with CheckpointReader(storage, checkpoint, refuse_non_finite=True) as reader:
        reader.read(found)
    assert all(same_bits(found[part], states[part]) for part in states)


def test_a_large_copy_crosses_the_edges_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "CHUNK_BYTES", 1 << 12)
    states = gpu_states()
    (pieces,) = plan_shards(dict.fromkeys(PLACEMENT, (0,)), 1, LENGTHS)
    plain = SnapshotBuffer().take(step=1, pieces=pieces, states=states)
    buffer = SnapshotBuffer(device=torch.device("cuda"))
    buffer.reserve(sum(len(KINDS) * piece.length for piece in pieces), torch.float32)
    pinned = buffer.take(step=1, pieces=pieces, states=states)
    assert isinstance(plain, Snapshot) and isinstance(pinned, Snapshot)
    assert pinned.body.is_pinned()
    assert torch.equal(plain.body, pinned.body)


def test_a_newcomer_copies_from_gpu_to_gpu_and_replays_there() -> None:
    states = gpu_states()
    donations = Donations(limits=DonationLimits(), pinned=True)
    server = PeerServer(
        host="127.0.0.1",
        job="job-1",
        token="secret",
        donor="node-1/0",
        donations=donations,
        limits=ServerLimits(beat_seconds=0.02),
    )
    server.enter_generation(1, states)
    share = DonorShare(donor="node-1/0", address=server.address, parts=tuple(states))
    staging = {part: blank_like(state) for part, state in states.items()}
    fetch = PeerFetch(
        identity=IDENTITY,
        staging=staging,
        apply=lambda entry: replay_into(staging, entry),
        limits=FetchLimits(),
        abandoned=threading.Event(),
    )
    fetch.begin([share])
    wait_until(lambda: donations._donations, within_seconds=WAIT_SECONDS, what="the newcomer")
    for version in range(1, 6):
        gradients = {
            part: gradient_of(part, version, state.length, torch.float32).cuda()
            for part, state in states.items()
        }
        for part, state in states.items():
            apply_gradient(state, gradients[part], 0.5, 0.1)
        donations.after_commit(version, gradients.get, clip=0.5, learning_rate=0.1)
        donations.at_boundary(version, states.get)
        for gradient in gradients.values():
            gradient.zero_()
    fetch.advance_to(5, WAIT_SECONDS)
    assert all(same_bits(staging[part], states[part]) for part in states)
    assert fetch.finish(WAIT_SECONDS)
    assert server.close(WAIT_SECONDS)
