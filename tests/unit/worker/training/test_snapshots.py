"""A state goes through the memory of agents and comes back in every bit; what is damaged is told by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from tests.waiting import wait_until
from worker.agent.messages import (
    Assignment,
    CheckpointFailed,
    Member,
    Report,
    ShardSource,
    SnapshotTaken,
    TakeSnapshot,
)
from worker.checkpointing.errors import CheckpointDamaged
from worker.hostmemory import slots as host_slots
from worker.hostmemory.client import Caller
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId
from worker.hostmemory.room import Room
from worker.hostmemory.server import MemoryServer, Secret
from worker.hostmemory.slots import MappedSlot, make_slot, read_at, write_at
from worker.hostmemory.stock import Stock
from worker.model.config import ModelConfig, Precision
from worker.training.saved_state import Identity
from worker.training.snapshots import Snapshots
from worker.training.state import TrainingState

MODEL = ModelConfig(
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    experts=4,
    top_k=2,
    expert_width=8,
    sequence_length=8,
    vocabulary=256,
    rope_theta=10000.0,
    norm_eps=1e-5,
    aux_loss=0.01,
    router_temperature=1.0,
    router_noise=0.0,
    precision=Precision.FLOAT32,
)
SECRET = Secret(job="job-1", token="secret")
PLACEMENT = ((0, 1), (1, 0), (0, 1), (1, 0))
NAME = SnapshotId(step=12, generation=3)


def identity_of(state: TrainingState) -> Identity:
    """Of the job that saves and reads here."""
    return Identity(
        job="job-1",
        config={"seed": 5, "batch": {}, "model": {}, "optimizer": {}},
        data_fingerprint="text",
        layout=state.layout_id,
        precision="float32",
    )


class Node:
    """An agent's memory, with a trainer that has two slots in it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.stock = Stock()
        self.server = MemoryServer(host="127.0.0.1", stock=self.stock, arrived=lambda record, source: None)
        self.server.secret = SECRET
        self.slots = [make_slot(f"rank {rank}") for _ in range(2)]
        self.reports: list[Report] = []
        self.state = TrainingState(MODEL, 5, torch.device("cpu"))
        self.snapshots = self.trainer(self.state)

    def trainer(self, state: TrainingState) -> Snapshots:
        return Snapshots(
            slots=self.slots,
            identity=identity_of(state),
            state=state,
            report=self.reports.append,
            caller=Caller(name=f"node-{self.rank}/0", secret=SECRET),
        )

    def take(self, slot: int = 0) -> None:
        order = TakeSnapshot(request="snap-1", generation=3, slot=slot)
        self.snapshots.take(order, assignment(self.rank), 0.0)

    def taken(self) -> SnapshotTaken:
        """The report of the hashing thread; the shard is listed, as the agent does."""
        wait_until(lambda: bool(self.reports), within_seconds=20, what="a report")
        report = self.reports.pop()
        assert isinstance(report, SnapshotTaken), report
        record = ShardRecord(
            id=ShardId(snapshot=NAME, rank=self.rank), shards=2, bytes=report.bytes, entry=report.entry
        )
        self.stock.list_own(record, self.slots[report.slot])
        return report

    def close(self) -> None:
        self.server.close(5.0)
        for slot in self.slots:
            os.close(slot)


def assignment(rank: int, shards: tuple[ShardSource, ...] = ()) -> Assignment:
    members = tuple(
        Member(trainer=f"node-{each}/0", start=1, rank=each, store_address="", peer_address="")
        for each in range(2)
    )
    return Assignment(
        number=3,
        kind="restore" if shards else "immediate",
        rank=rank,
        members=members,
        placement=PLACEMENT,
        deal=((0,), (1,)),
        restore_name=NAME.name if shards else "",
        restore_step=12,
        restore_shards=shards,
        reason="",
    )


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes whose trainers hold everything at step 12."""
    made = [Node(rank) for rank in range(2)]
    for node in made:
        node.state.initialise((0, 1, 2, 3))
        node.state.version = 12
        for part in range(5):
            for number, tensor in enumerate(node.state.part(part).in_order()):
                source = torch.Generator().manual_seed(10 * part + number)
                tensor.copy_(torch.randn(tensor.numel(), generator=source))
    yield made
    for node in made:
        node.close()


def sources(
    nodes: list[Node], reports: list[SnapshotTaken], *, twice: bool = False
) -> tuple[ShardSource, ...]:
    addresses = [node.server.address for node in nodes]
    return tuple(
        ShardSource(
            rank=report.rank,
            entry=report.entry,
            addresses=(addresses[1 - report.rank], addresses[report.rank])
            if twice
            else (addresses[report.rank],),
        )
        for report in reports
    )


def restore(node: Node, shards: tuple[ShardSource, ...], experts: tuple[int, ...]) -> TrainingState:
    """A fresh trainer, as after a restart, reads the snapshot."""
    state = TrainingState(MODEL, 5, torch.device("cpu"))
    node.trainer(state).restore(assignment(node.rank, shards), experts, lambda _count: None)
    return state


def same(one: TrainingState, other: TrainingState, experts: tuple[int, ...]) -> bool:
    return all(
        torch.equal(mine, theirs)
        for part in (0, *(expert + 1 for expert in experts))
        for mine, theirs in zip(one.part(part).in_order(), other.part(part).in_order(), strict=True)
    )


@pytest.mark.parametrize("experts", [(0, 1, 2, 3), (2,)])
def test_what_was_taken_comes_back_in_every_bit(nodes: list[Node], experts: tuple[int, ...]) -> None:
    """On other trainers, which hold other experts than those that took it."""
    for node in nodes:
        node.take()
    reports = [node.taken() for node in nodes]
    assert all(report.shards == 2 and report.step == 12 for report in reports)
    state = restore(nodes[0], sources(nodes, reports), experts)
    assert state.version == 12 and same(state, nodes[0].state, experts)


def test_training_may_write_as_soon_as_the_copy_is_made(nodes: list[Node]) -> None:
    """The hashing thread looks at the copy, not at the state."""
    before = nodes[0].state.part(0).weights.clone()
    for node in nodes:
        node.take()
        node.state.part(0).weights.zero_()
    reports = [node.taken() for node in nodes]
    state = restore(nodes[0], sources(nodes, reports), ())
    assert torch.equal(state.part(0).weights, before)


def test_a_damaged_shard_is_read_from_the_other_holder(nodes: list[Node]) -> None:
    for node in nodes:
        node.take()
    reports = [node.taken() for node in nodes]
    for report in reports:  # each also at the other one, and the copy that is asked first is rotten
        other = nodes[1 - report.rank]
        content = bytearray(read_at(nodes[report.rank].slots[0], 0, report.bytes))
        content[len(content) // 2] ^= 1
        write_at(other.slots[1], 0, memoryview(bytes(content)))
        shard = ShardId(snapshot=NAME, rank=report.rank)
        record = ShardRecord(id=shard, shards=2, bytes=report.bytes, entry=report.entry)
        other.stock.list_own(record, other.slots[1])
    state = restore(nodes[0], sources(nodes, reports, twice=True), (0, 1, 2, 3))
    assert same(state, nodes[0].state, (0, 1, 2, 3))


def test_a_shard_without_a_sound_holder_is_refused_by_name(nodes: list[Node]) -> None:
    for node in nodes:
        node.take()
    reports = [node.taken() for node in nodes]
    write_at(nodes[1].slots[0], reports[1].bytes - 8, memoryview(b"rotten!!"))
    with pytest.raises(CheckpointDamaged, match=r"rank-00001\.safetensors") as refused:
        restore(nodes[0], sources(nodes, reports), (0, 1, 2, 3))
    assert refused.value.checkpoint == NAME.name
    nodes[1].server.close(5.0)
    with pytest.raises(CheckpointDamaged, match=r"rank-00001\.safetensors"):
        restore(nodes[0], sources(nodes, reports), (0, 1, 2, 3))


def test_entries_that_are_no_entries_are_refused(nodes: list[Node]) -> None:
    shards = (ShardSource(rank=0, entry="{}", addresses=(nodes[0].server.address,)),)
    with pytest.raises(CheckpointDamaged, match="its entries"):
        restore(nodes[0], shards, (0,))


def refusal(node: Node) -> str:
    wait_until(lambda: bool(node.reports), within_seconds=20, what="a report")
    report = node.reports.pop()
    assert isinstance(report, CheckpointFailed) and report.request == "snap-1"
    return report.reason


def test_a_state_with_nan_makes_no_snapshot(nodes: list[Node]) -> None:
    nodes[0].state.part(1).v[0] = float("nan")
    nodes[0].take()
    assert "holds NaN or infinity" in refusal(nodes[0])


def test_without_room_there_is_none_and_training_goes_on(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_slots, "room_now", lambda: Room(available_bytes=1000, total_bytes=10_000))
    nodes[0].take()
    assert "no room for" in refusal(nodes[0])


def test_memory_is_made_ready_when_the_order_comes(nodes: list[Node]) -> None:
    """By another thread, and as much as the copy takes."""
    node = nodes[0]
    node.snapshots.foresee(TakeSnapshot(request="snap-0", generation=2, slot=1))
    assert os.fstat(node.slots[1]).st_size == 0, "nothing is known of the generation yet"
    node.snapshots.enter(assignment(0))
    node.snapshots.foresee(TakeSnapshot(request="snap-1", generation=3, slot=1))
    wait_until(lambda: os.fstat(node.slots[1]).st_size > 0, within_seconds=20, what="memory")
    ready = os.fstat(node.slots[1]).st_size
    node.take(slot=1)
    assert node.taken().bytes == ready == os.fstat(node.slots[1]).st_size


def test_training_does_not_wait_long_for_memory(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    held_back = threading.Event()
    monkeypatch.setattr(MappedSlot, "view", lambda slot, size, populate: held_back.wait(20))
    nodes[0].snapshots.enter(assignment(0))
    nodes[0].snapshots.foresee(TakeSnapshot(request="snap-1", generation=3, slot=0))
    nodes[0].take()
    assert "still being made ready" in refusal(nodes[0])
    held_back.set()


def test_without_shared_memory_there_is_none(nodes: list[Node]) -> None:
    nodes[0].take(slot=7)
    assert "no shared memory" in refusal(nodes[0])


def test_an_order_of_another_generation_is_left(nodes: list[Node]) -> None:
    order = TakeSnapshot(request="snap-0", generation=2, slot=0)
    nodes[0].snapshots.take(order, assignment(0), 0.0)
    nodes[0].take()
    assert nodes[0].taken().request == "snap-1"


def test_giving_up_is_possible_at_any_time(nodes: list[Node]) -> None:
    """A newer generation ends a restore, whatever it waits for."""

    class Over(Exception):
        pass

    def over(_count: int) -> None:
        raise Over

    for node in nodes:
        node.take()
    shards = sources(nodes, [node.taken() for node in nodes])
    check: Callable[[int], None] = over
    with pytest.raises(Over):
        nodes[0].snapshots.restore(replace(assignment(0, shards)), (0,), check)
