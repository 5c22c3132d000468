"""What a node holds of snapshots: the right slot is filled, what must be kept is kept, everything is told whole."""

from __future__ import annotations

import pytest

from tests.unit.worker.agent.stories import FIRST, Story, generation, seats
from worker.agent import messages
from worker.agent.controller_messages import DropSnapshots, Registration, SnapshotsHeld, TakeSnapshot
from worker.agent.events import CopyArrived, CopyEnded
from worker.agent.instructions import AdmitCallers, ForgetShards, ListShard, Note, SendShard
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId


def order(number: int, *, keep: int = 0, in_generation: int = 1, buddy: str = "node-2") -> TakeSnapshot:
    name = SnapshotId(step=keep, generation=1).name if keep else ""
    address = f"{buddy}:9" if buddy else ""
    return TakeSnapshot(
        request=f"snap-{number}", generation=in_generation, keep=name, buddy=buddy, buddy_address=address
    )


def taken(number: int, step: int, slot: int, in_generation: int = 1) -> messages.SnapshotTaken:
    return messages.SnapshotTaken(
        request=f"snap-{number}",
        generation=in_generation,
        step=step,
        rank=0,
        shards=2,
        slot=slot,
        entry="{}",
        bytes=100,
        stall_seconds=0.02,
    )


def copy(step: int, *, source: str = "node-2/0", rank: int = 1, at: float = 1000.0) -> CopyArrived:
    shard = ShardId(snapshot=SnapshotId(step=step, generation=1), rank=rank)
    record = ShardRecord(id=shard, shards=2, bytes=100, entry="{}")
    return CopyArrived(at=at, record=record, source=source)


def held(story: Story) -> list[tuple[int, int]]:
    """Steps and ranks of what was last told, whole."""
    (told,) = [each for each in story.told_controller() if isinstance(each, SnapshotsHeld)]
    return [(each.step, each.rank) for each in told.held]


def slot(story: Story) -> int:
    (asked,) = [each for each in story.orders() if isinstance(each, messages.TakeSnapshot)]
    return asked.slot


@pytest.fixture
def training(story: Story) -> Story:
    story.trains(number=1)
    return story


def test_callers_are_admitted_once_the_job_is_known(story: Story) -> None:
    story.is_welcomed()
    assert [each.job for each in story.given(AdmitCallers)] == [story.config["name"]]


def test_a_share_is_listed_told_and_sent_to_the_buddy(training: Story) -> None:
    training.hears(order(1))
    assert slot(training) == 0
    training.says(taken(1, step=10, slot=0))
    assert held(training) == [(10, 0)]
    assert [(each.trainer, each.slot) for each in training.given(ListShard)] == [(FIRST, 0)]
    (sent,) = training.given(SendShard)
    assert (sent.buddy, sent.address) == ("node-2", "node-2:9")


def test_without_a_buddy_nothing_is_sent(training: Story) -> None:
    training.hears(order(1, buddy=""))
    training.says(taken(1, step=10, slot=0))
    assert held(training) == [(10, 0)] and not training.given(SendShard)


def test_the_kept_snapshot_is_never_overwritten(training: Story) -> None:
    """The second one fails twice at the controller, and is taken into the same slot again."""
    training.hears(order(1))
    training.says(taken(1, step=10, slot=0))
    for number in (2, 3):
        training.hears(order(number, keep=10))
        assert slot(training) == 1
        training.says(taken(number, step=10 * number, slot=1))
        assert (10, 0) in held(training)
    training.hears(order(4, keep=30))
    assert slot(training) == 0
    assert held(training) == [(30, 0)]


def test_what_is_overwritten_is_not_told_any_more(training: Story) -> None:
    training.hears(order(1))
    training.says(taken(1, step=10, slot=0))
    training.hears(order(2))
    training.says(taken(2, step=20, slot=slot_of(training)))
    training.hears(order(3))
    assert held(training) == [(20, 0)], "the older of two that nobody needs"
    assert training.given(ForgetShards)


def slot_of(story: Story) -> int:
    return slot(story)


def test_a_late_share_of_another_order_counts_for_nothing(training: Story) -> None:
    training.hears(order(1))
    training.hears(order(2))
    training.says(taken(1, step=10, slot=0))
    assert not training.given(ListShard) and training.given(Note)


def test_a_share_of_a_generation_that_is_over_counts_for_nothing(training: Story) -> None:
    training.hears(order(1))
    training.is_assigned(generation(2, seats=seats(0)))
    training.joins(2)
    training.says(taken(1, step=10, slot=0))
    assert not training.given(ListShard)
    training.hears(order(2, in_generation=1))
    assert not training.orders(), "nor does an order of it"


def test_a_snapshot_outlives_its_trainer_and_is_told_again(training: Story) -> None:
    """The process is killed, the link breaks: the next registration says what is held."""
    training.hears(order(1))
    training.says(taken(1, step=10, slot=0))
    training.exits(signal=9)
    training.loses_controller()
    training.connects()
    (registration,) = [each for each in training.told_controller() if isinstance(each, Registration)]
    assert [(each.step, each.stall_seconds) for each in registration.held] == [(10, 0.02)]


def test_copies_are_held_two_for_each_trainer(training: Story) -> None:
    """The kept one and the newest: others stand in line for nothing."""
    training.hears(order(1, keep=10))
    for step in (10, 20, 30):
        training.happens(copy(step))
    assert held(training) == [(10, 1), (30, 1)]
    assert [each.snapshot.step for given in training.given(ForgetShards) for each in given.shards] == [20]
    training.happens(copy(30, source="node-3/0", rank=2))
    assert held(training) == [(10, 1), (30, 1), (30, 2)], "another trainer's are its own"


def test_older_copies_go_when_a_newer_snapshot_is_kept(training: Story) -> None:
    training.happens(copy(10))
    training.happens(copy(20))
    training.hears(order(1, keep=20))
    assert held(training) == [(20, 1)]


def test_what_is_dropped_is_forgotten_and_told(training: Story) -> None:
    training.hears(order(1))
    training.says(taken(1, step=10, slot=0))
    training.happens(copy(10))
    names = (SnapshotId(step=10, generation=1).name,)
    training.hears(DropSnapshots(names=names, reason="it is not sound"))
    assert held(training) == []
    training.hears(DropSnapshots(names=names, reason="it is not sound"))
    assert not training.told_controller(), "once is enough"


def test_a_copy_that_the_buddy_does_not_hold_is_noted(training: Story) -> None:
    record = copy(10).record
    training.happens(CopyEnded(at=training.at, record=record, buddy="node-2", reason="no room"))
    assert any("no room" in each.text for each in training.given(Note))
    training.happens(CopyEnded(at=training.at, record=record, buddy="node-2", reason=""))
    assert not training.out
