"""Orders as the training thread sees them: newest first, planned ones wait, stale ones are gone."""

from __future__ import annotations

import threading

import pytest

from worker.agent.messages import (
    Assignment,
    CheckPair,
    Configure,
    StopTraining,
    TakeCheckpoint,
    TakeSeat,
    TakeSnapshot,
)
from worker.parallel.groups import GenerationEnded, Watch
from worker.training.orders import Handlers, Orders
from worker.training.tally import Pending


def seat(number: int, kind: str = "immediate", rank: int = 0) -> TakeSeat:
    """An assignment with nothing in it but its number."""
    return TakeSeat(
        assignment=Assignment(
            number=number,
            kind=kind,
            rank=rank,
            members=(),
            placement=(),
            deal=(),
            restore_name="",
            restore_step=0,
            restore_shards=(),
            reason="",
        )
    )


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def configured() -> list[Configure]:
    return []


@pytest.fixture
def foreseen() -> list[TakeSnapshot]:
    return []


@pytest.fixture
def orders(watch: Watch, configured: list[Configure], foreseen: list[TakeSnapshot]) -> Orders:
    def unwanted(order: object) -> None:
        raise AssertionError(f"{order} belongs to no test here")

    return Orders(
        watch,
        Handlers(
            configure=configured.append,
            acquire=unwanted,
            seal=unwanted,
            delete=unwanted,
            foresee=foreseen.append,
        ),
    )


def test_an_immediate_generation_ends_the_running_one(orders: Orders, watch: Watch) -> None:
    orders.receive(seat(1))
    watch.check(1)
    orders.receive(seat(2))
    with pytest.raises(GenerationEnded, match="generation 1 ended: 2"):
        watch.check(1)
    newest = orders.wait_for_seat(1)
    assert newest is not None
    assert newest.number == 2


def test_a_planned_generation_waits_for_its_boundary(orders: Orders, watch: Watch) -> None:
    orders.receive(seat(1))
    orders.receive(seat(2, "planned"))
    watch.check(1)
    assert orders.pending() == {Pending.PLANNED_GENERATION: "2"}
    orders.take_planned()
    assert orders.pending() == {}
    with pytest.raises(GenerationEnded):
        watch.check(1)


def test_a_planned_generation_that_was_voted_on_gives_way_to_a_newer_one(
    orders: Orders, watch: Watch
) -> None:
    """A restore that comes between the vote and the boundary: nothing is left to take, and the newer seat stands."""
    orders.receive(seat(1))
    orders.receive(seat(2, "planned"))
    assert orders.pending() == {Pending.PLANNED_GENERATION: "2"}
    orders.receive(seat(3))
    orders.take_planned()
    with pytest.raises(GenerationEnded):
        watch.check(1)
    newest = orders.wait_for_seat(1)
    assert newest is not None
    assert newest.number == 3


def test_a_newcomer_takes_its_planned_seat_at_once(orders: Orders) -> None:
    """It has no step running whose boundary could be waited for."""
    orders.receive(seat(1, rank=-1))
    orders.receive(seat(2, "planned", rank=3))
    taken = orders.wait_for_seat(0)
    assert taken is not None
    assert (taken.number, taken.rank) == (2, 3)


def test_an_immediate_generation_makes_a_planned_one_stale(orders: Orders) -> None:
    orders.receive(seat(1))
    orders.receive(seat(2, "planned"))
    orders.receive(seat(3))
    orders.receive(seat(2, "planned"))
    assert orders.pending() == {}


def test_an_idle_member_enters_a_planned_generation(orders: Orders) -> None:
    """All steps are done: nobody would vote on it."""
    orders.receive(seat(1))
    orders.receive(seat(2, "planned"))
    taken = orders.wait_for_seat(1)
    assert taken is not None
    assert taken.number == 2


def test_an_idle_member_still_saves(orders: Orders) -> None:
    """The last checkpoint is asked for after the last step."""
    saved: list[str] = []

    def save() -> None:
        order = orders.take_checkpoint()
        assert order is not None
        saved.append(order.request)
        orders.receive(seat(2))

    orders.receive(seat(1))
    orders.receive(TakeCheckpoint(request="ckpt-1", generation=1))
    assert orders.wait_for_seat(1, save=save) is not None
    assert saved == ["ckpt-1"]


def test_an_idle_trainer_is_checked_at_once(orders: Orders) -> None:
    """A spare waits for nobody; a member that has left the loop saves as well."""
    checked: list[str] = []

    def check() -> None:
        order = orders.take_check()
        assert order is not None
        checked.append(order.check)
        orders.receive(seat(2))

    pair = CheckPair(check="chk-1", generation=1, rank=0, store_address="h:1", limit_seconds=5.0)
    orders.receive(pair)
    assert orders.wait_for_seat(1, check=check) is not None
    assert checked == ["chk-1"]
    assert orders.pending() == {}, "no vote is needed for it"


def test_a_checkpoint_that_an_earlier_generation_did_not_take_is_nobodys(orders: Orders) -> None:
    """The controller has given it up; a copy would be of no use, and in the way of the next one."""
    orders.receive(seat(1))
    orders.receive(TakeCheckpoint(request="ckpt-1", generation=1))
    orders.receive(seat(2, "planned"))
    orders.take_planned()
    assert orders.pending() == {}
    assert orders.take_checkpoint() is None
    orders.receive(TakeCheckpoint(request="ckpt-2", generation=2))
    assert orders.pending() == {Pending.CHECKPOINT: "ckpt-2"}


def test_orders_for_a_boundary_are_pending_until_taken(orders: Orders) -> None:
    orders.receive(seat(1))
    orders.receive(TakeCheckpoint(request="ckpt-1", generation=1))
    orders.receive(StopTraining(request="stop", generation=1))
    assert orders.pending() == {Pending.CHECKPOINT: "ckpt-1", Pending.STOP: "stop"}
    orders.take_stop()
    assert orders.take_checkpoint() == TakeCheckpoint(request="ckpt-1", generation=1)
    assert orders.pending() == {}


def test_a_checkpoint_waits_for_room_but_not_the_last_one(orders: Orders) -> None:
    orders.receive(seat(1))
    orders.receive(TakeCheckpoint(request="ckpt-1", generation=1))
    assert orders.pending(room=False) == {}
    orders.receive(StopTraining(request="stop", generation=1))
    assert orders.pending(room=False) == {Pending.CHECKPOINT: "ckpt-1", Pending.STOP: "stop"}


def test_the_end_of_the_agent_ends_the_wait(orders: Orders) -> None:
    waiting = threading.Thread(target=lambda: orders.wait_for_seat(0))
    waiting.start()
    orders.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_snapshot_is_foreseen_when_it_is_ordered_and_taken_once(
    orders: Orders, foreseen: list[TakeSnapshot]
) -> None:
    """Its memory is made ready before the boundary at which all members have the order."""
    order = TakeSnapshot(request="snap-1", generation=1, slot=0)
    orders.receive(order)
    assert foreseen == [order]
    assert orders.pending() == {Pending.SNAPSHOT: "snap-1"}
    assert orders.take_snapshot() == order
    assert orders.take_snapshot() is None and not orders.pending()
