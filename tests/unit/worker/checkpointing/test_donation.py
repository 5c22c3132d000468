"""Snapshot at v, then v+1, v+2, ... without a gap, or a named end; within the bounds; for nothing while nobody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tests.unit.worker.checkpointing.states import (
    WAIT_SECONDS,
    Trainer,
    apply_gradient,
    same_bits,
)
from tests.waiting import wait_until
from worker.checkpointing.donation import (
    LOG_FULL,
    Donation,
    DonationLimits,
    Donations,
    GradientCopy,
    Item,
    PartCopy,
    Refusal,
)
from worker.checkpointing.errors import RefusalCode
from worker.checkpointing.parts import PartTensors

LENGTHS = {"dense": 50, "expert-00000": 20, "expert-00001": 20}
EXPERTS = ("expert-00000", "expert-00001")
EXPERT_BYTES = 20 * 3 * 4


def donations_of(**limits: int) -> Donations:
    return Donations(limits=DonationLimits(**limits), pinned=False)


def drain(donations: Donations, donation: Donation) -> Iterator[Item]:
    """What the server would send now."""
    while (item := donations.next_item(donation, 0.0)) is not None:
        yield item
        donations.sent(item)


class Newcomer:
    """Applies what it gets, and insists on the order of versions."""

    def __init__(self) -> None:
        self.parts: dict[str, PartTensors] = {}
        self.versions: dict[str, int] = {}

    def take(self, item: Item) -> None:
        match item:
            case PartCopy():
                assert item.part not in self.parts
                weights, m, v = (tensor.clone() for tensor in item.state.in_order())
                self.parts[item.part] = PartTensors(weights=weights, m=m, v=v)
            case GradientCopy():
                assert item.version == self.versions[item.part] + 1
                apply_gradient(self.parts[item.part], item.gradient, item.clip, item.learning_rate)
        self.versions[item.part] = item.version


def never(part: str) -> None:
    raise AssertionError(f"{part} was read although nobody asked for it")


def test_nothing_is_read_while_nobody_asks() -> None:
    donations = donations_of()
    donations.after_commit(1, never, clip=1.0, learning_rate=0.1)
    donations.at_boundary(1, never)
    donation = donations.open(("dense",))
    donations.close(donation)
    donations.after_commit(2, never, clip=1.0, learning_rate=0.1)
    donations.at_boundary(2, never)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_newcomer_that_replays_is_bitwise_equal(dtype: torch.dtype) -> None:
    trainer, donations, newcomer = Trainer(LENGTHS, dtype), donations_of(), Newcomer()
    trainer.commit(donations)
    donation = donations.open(tuple(LENGTHS))
    for _ in range(7):
        trainer.commit(donations)
        if trainer.version % 3 == 0:
            for item in drain(donations, donation):
                newcomer.take(item)
    for item in drain(donations, donation):
        newcomer.take(item)
    assert newcomer.versions == dict.fromkeys(LENGTHS, 8)
    assert all(same_bits(newcomer.parts[part], trainer.parts[part]) for part in LENGTHS)


def test_parts_are_copied_over_several_boundaries_and_follow_from_their_own_version() -> None:
    trainer, newcomer = Trainer(LENGTHS), Newcomer()
    donations = donations_of(boundary_bytes_max=EXPERT_BYTES)
    donation = donations.open((*EXPERTS, "dense"))
    for _ in range(5):
        trainer.commit(donations)
    items = list(drain(donations, donation))
    assert [(item.part, item.version) for item in items if isinstance(item, PartCopy)] == [
        ("expert-00000", 1),
        ("expert-00001", 2),
        ("dense", 3),  # more than the bound by itself: one part is always copied
    ]
    for item in items:
        newcomer.take(item)
    assert all(same_bits(newcomer.parts[part], trainer.parts[part]) for part in LENGTHS)


def test_snapshot_memory_is_bounded_and_later_parts_wait_for_it() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of(snapshot_bytes_max=EXPERT_BYTES)
    donation = donations.open(EXPERTS)
    for _ in range(3):
        trainer.commit(donations)
    first = donations.next_item(donation, 0.0)
    assert isinstance(first, PartCopy)
    trainer.commit(donations)  # still being sent: its memory is not free
    assert all(isinstance(item, GradientCopy) for item in drain(donations, donation))
    donations.sent(first)
    trainer.commit(donations)
    later = [item for item in drain(donations, donation) if isinstance(item, PartCopy)]
    assert [(item.part, item.version) for item in later] == [("expert-00001", 5)]


def test_a_large_part_is_copied_once_its_memory_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first boundary orders the memory, so that the training thread pays for the copy alone."""
    trainer, newcomer = Trainer(LENGTHS), Newcomer()
    donations = donations_of(unprepared_bytes_max=0, boundary_bytes_max=EXPERT_BYTES)
    looked, make = threading.Event(), donations._pool._fresh

    def make_after_the_look(length: int, dtype: torch.dtype) -> torch.Tensor:
        assert looked.wait(WAIT_SECONDS)
        return make(length, dtype)

    monkeypatch.setattr(donations._pool, "_fresh", make_after_the_look)
    donation = donations.open(tuple(LENGTHS))
    trainer.commit(donations)
    assert list(drain(donations, donation)) == []
    looked.set()

    def all_parts_came() -> bool:
        trainer.commit(donations)
        for item in drain(donations, donation):
            newcomer.take(item)
        return len(newcomer.parts) == len(LENGTHS)

    wait_until(all_parts_came, within_seconds=WAIT_SECONDS, what="the snapshots")
    trainer.commit(donations)
    for item in drain(donations, donation):
        newcomer.take(item)
    assert all(same_bits(newcomer.parts[part], trainer.parts[part]) for part in LENGTHS)


def test_a_donor_without_memory_for_a_copy_says_so_and_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, donations = Trainer(LENGTHS), donations_of()
    waiting = donations.open(("dense",))
    following = donations.open(("expert-00000",))
    trainer.commit(donations)
    late = donations.open(("expert-00001",))

    def no_room(length: int, dtype: torch.dtype) -> torch.Tensor:
        raise MemoryError(f"no room for {length} elements")

    monkeypatch.setattr(donations._pool, "take", no_room)
    trainer.commit(donations)
    assert following.ended == late.ended == "no room for 20 elements"
    assert waiting.ended == "no room for 50 elements"


def test_a_part_larger_than_the_bound_ends_the_donation_and_names_both() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of(snapshot_bytes_max=EXPERT_BYTES)
    donation = donations.open(("dense",))
    trainer.commit(donations)
    assert donation.ended == "dense has 600 bytes, snapshot_bytes_max is 240"
    assert donation.standing_only


def test_newcomers_at_one_boundary_share_a_snapshot_and_the_log() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of(snapshot_bytes_max=2 * EXPERT_BYTES)
    several = [donations.open(EXPERTS) for _ in range(3)]
    trainer.commit(donations)
    trainer.commit(donations)
    streams = [list(drain(donations, donation)) for donation in several]
    assert [len(items) for items in streams] == [4, 4, 4]
    assert all(one is other for items in streams for one, other in zip(items, streams[0], strict=True))


def test_a_full_log_ends_that_donation_and_no_other() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of(log_entries_max=4)
    slow, quick = donations.open(EXPERTS), donations.open(EXPERTS)
    newcomer = Newcomer()
    for _ in range(6):
        trainer.commit(donations)
        for item in drain(donations, quick):
            newcomer.take(item)
    assert (slow.ended, slow.standing_only) == (LOG_FULL, True)
    assert list(drain(donations, slow)) == []
    assert quick.ended is None
    assert all(same_bits(newcomer.parts[part], trainer.parts[part]) for part in EXPERTS)


def test_the_log_is_bounded_in_bytes_too() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of(log_bytes_max=5 * 20 * 4)
    donation = donations.open(EXPERTS)
    for _ in range(3):
        trainer.commit(donations)
    assert donation.ended is None
    trainer.commit(donations)
    assert donation.ended == LOG_FULL


def test_what_could_never_catch_up_is_refused_before_anything_is_copied() -> None:
    """The gradients of one step alone would overflow the log; who asks for less is served as ever."""
    trainer, donations = Trainer(LENGTHS), donations_of(log_bytes_max=300)
    large, small = donations.open(tuple(LENGTHS)), donations.open(EXPERTS[:1])
    trainer.commit(donations)
    assert (
        large.standing_only and large.ended == "the gradients of a step have 360 bytes, log_bytes_max is 300"
    )
    assert list(drain(donations, large)) == []
    assert small.ended is None
    assert [item.part for item in drain(donations, small)] == [EXPERTS[0]]


def test_a_rollback_is_seen_by_its_version() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of()
    for _ in range(5):
        trainer.commit(donations)
    donation = donations.open(EXPERTS)
    trainer.commit(donations)
    trainer.version = 3  # restored from a checkpoint
    trainer.commit(donations)
    assert donation.ended == "expert-00000 went from version 6 to 4"


def test_a_part_that_left_this_donor_ends_the_donation() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of()
    waiting, following = donations.open(("expert-00000",)), donations.open(("expert-00001",))
    trainer.commit(donations)
    del trainer.parts["expert-00001"]
    trainer.commit(donations)
    assert following.ended == "expert-00001 is not held by this donor any more"
    assert waiting.ended is None
    late = donations.open(("expert-00001",))
    trainer.commit(donations)
    assert late.ended == "expert-00001 is not held by this donor any more"


def test_all_donations_can_be_ended_with_a_reason() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of()
    donation = donations.open(EXPERTS)
    trainer.commit(donations)
    donations.end_all("rolled back to step 3")
    assert donation.ended == "rolled back to step 3"
    donations.after_commit(9, never, clip=1.0, learning_rate=0.1)
    donations.at_boundary(9, never)


def test_there_is_a_bound_on_newcomers() -> None:
    donations = donations_of(donations_max=1)
    donations.open(EXPERTS)
    with pytest.raises(Refusal, match="donations_max is 1") as caught:
        donations.open(EXPERTS)
    assert caught.value.code is RefusalCode.BUSY


def test_buffers_are_used_again() -> None:
    trainer, donations = Trainer(LENGTHS), donations_of()
    donation = donations.open(("expert-00000",))
    places = set()
    for _ in range(20):
        trainer.commit(donations)
        for item in drain(donations, donation):
            if isinstance(item, GradientCopy):
                places.add(item.gradient.data_ptr())
    assert len(places) <= 3  # those of the snapshot
