"""Shards between agents and trainers: taken when whole, given in pieces, and nothing for strangers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.worker.hostmemory.shards import SNAPSHOT, shard
from worker.hostmemory import stock as stocks
from worker.hostmemory.client import Caller, Copy, MemoryRefused, RemoteShard, offer
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId, parse_snapshot
from worker.hostmemory.messages import VOCABULARY, Message, Read
from worker.hostmemory.server import MemoryServer, Secret
from worker.hostmemory.slots import make_slot, write_at
from worker.hostmemory.stock import Stock
from worker.transfer.frames import ChannelError
from worker.transfer.pace import Pace

SECRET = Secret(job="job-1", token="secret")
CALLER = Caller(name="node-9", secret=SECRET)


@dataclass
class Place:
    """An agent's memory with its server."""

    stock: Stock = field(default_factory=Stock)
    arrived: list[tuple[ShardRecord, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = MemoryServer(
            host="127.0.0.1", stock=self.stock, arrived=lambda *what: self.arrived.append(what)
        )
        self.server.secret = SECRET

    def send(self, record: ShardRecord, content: bytes, caller: Caller = CALLER) -> None:
        copy = Copy(
            record=record, source="node-9/0", read=lambda offset, length: content[offset : offset + length]
        )
        offer(caller, self.server.address, copy, Pace(None), threading.Event())

    def read(self, shard: ShardId, caller: Caller = CALLER) -> bytes:
        with RemoteShard(caller, self.server.address, shard, lambda: False) as remote:
            target = bytearray(remote.bytes + 10)
            got = remote.read_into(0, memoryview(target))
            return bytes(target[:got])


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.server.close(5.0)


def test_a_copy_is_taken_and_given_back_in_every_byte(place: Place) -> None:
    record, content = shard(lengths=(70_000, 300_000))
    place.send(record, content)
    assert place.arrived == [(record, "node-9/0")]
    assert place.read(record.id) == content


def test_a_shard_in_a_slot_is_given_to_its_end_and_no_further(place: Place) -> None:
    record, content = shard()
    slot = make_slot("test")
    write_at(slot, 0, memoryview(content + b"of nobody"))
    place.stock.list_own(record, slot)
    assert place.read(record.id) == content
    other, _ = shard(snapshot=SnapshotId(step=41, generation=3))
    place.stock.list_own(other, slot)
    with pytest.raises(MemoryRefused, match="not held here"):
        place.read(record.id)
    os.close(slot)


def test_what_arrives_damaged_is_not_kept(place: Place) -> None:
    record, content = shard()
    torn = bytearray(content)
    torn[-1] ^= 1
    with pytest.raises(MemoryRefused, match="arrived damaged: piece 1"):
        place.send(record, bytes(torn))
    assert not place.arrived and place.stock.open(record.id) is None
    place.send(record, content)


def test_what_does_not_fit_its_entry_is_refused_before_it_is_sent(place: Place) -> None:
    record, content = shard()
    with pytest.raises((MemoryRefused, ChannelError)):
        place.send(replace(record, bytes=record.bytes - 1), content)
    with pytest.raises((MemoryRefused, ChannelError), match="not the entry of a shard"):
        place.send(replace(record, entry="{}"), content)
    assert not place.arrived


@pytest.mark.parametrize(
    "secret, reason",
    [
        (Secret(job="job-1", token="wrong"), "the token is not this job's"),
        (Secret(job="job-2", token="secret"), "this is job job-1"),
    ],
)
def test_strangers_get_nothing_and_leave_nothing(place: Place, secret: Secret, reason: str) -> None:
    record, content = shard()
    place.send(record, content)
    stranger = Caller(name="x", secret=secret)
    with pytest.raises(MemoryRefused, match=reason):
        place.read(record.id, stranger)
    other, more = shard(rank=1)
    with pytest.raises((MemoryRefused, ChannelError)):
        place.send(other, more, stranger)
    assert len(place.arrived) == 1


def test_an_agent_that_has_not_been_told_its_job_admits_nobody(place: Place) -> None:
    place.server.secret = None
    with pytest.raises(MemoryRefused, match="has not been told its job"):
        place.read(shard()[0].id)


def test_the_number_of_copies_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stocks, "COPIES_LIMIT", 2)
    for rank in range(2):
        place.send(*shard(rank))
    with pytest.raises((MemoryRefused, ChannelError), match="the limit"):
        place.send(*shard(2))
    place.stock.forget([shard(0)[0].id])
    place.send(*shard(2))


def test_a_shard_that_is_being_read_stays_until_it_is_read(place: Place) -> None:
    record, content = shard()
    place.send(record, content)
    reading = place.stock.open(record.id)
    assert reading is not None
    place.stock.forget([record.id])
    assert place.stock.open(record.id) is None
    assert reading.at(0, len(content)) == content
    reading.close()


def test_nonsense_costs_its_connection_and_no_other(place: Place) -> None:
    record, content = shard()
    place.send(record, content)
    channel = CALLER.connect(place.server.address, lambda: False)
    asked: Message = Read(offset=0, length=10)
    channel.send(asked)
    answer, _ = channel.receive()
    assert "Read before Ask" in str(answer)
    channel.close()
    channel = CALLER.connect(place.server.address, lambda: False)
    channel.send_raw(memoryview(b"\xff" * 64))
    with pytest.raises(ChannelError):
        channel.receive()
    channel.close()
    assert place.read(record.id) == content


def test_names_of_snapshots_are_read_back_exactly() -> None:
    assert parse_snapshot(SNAPSHOT.name) == SNAPSHOT
    for name in ("snapshot-40.g0003", "step-00000040.g0003", "snapshot-00000040.g0003.x", ""):
        assert parse_snapshot(name) is None


def test_the_vocabulary_is_complete() -> None:
    assert set(VOCABULARY.kinds.values()) == set(Message.__args__)
