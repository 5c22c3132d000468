"""Seats, fences, planned generations and committed steps: what a generation means for a node. One story each."""

from __future__ import annotations

import pytest

from tests.unit.worker.agent.stories import (
    Story,
    committed,
    failed,
    generation,
    seats,
)
from worker.agent import messages, policy
from worker.agent.controller_messages import (
    TakeCheckpoint,
    TrainerExited,
    TrainerReady,
)
from worker.agent.instructions import KillTrainer, Note, StartTrainer
from worker.agent.lifecycle import State

# ---- seats ----


def test_a_ready_trainer_gets_its_seat(story: Story) -> None:
    """And a rank that is its own; the others' seats come along."""
    story.warms_up()
    story.is_assigned(generation(1, "initial", seats=seats(1)))
    (order,) = story.orders()
    assert isinstance(order, messages.TakeSeat)
    assert (order.assignment.rank, order.assignment.number, order.assignment.kind) == (1, 1, "initial")
    assert story.state() is State.SEATED


def test_a_trainer_without_a_seat_is_told_the_number(story: Story) -> None:
    """So that it knows which generation it would copy parts for."""
    story.warms_up()
    story.is_assigned(generation(3, seats=seats(-1)))
    (order,) = story.orders()
    assert isinstance(order, messages.TakeSeat)
    assert order.assignment.rank == -1
    assert story.state() is State.SPARE


def test_a_trainer_that_becomes_ready_late_hears_the_generation_then(story: Story) -> None:
    """The order to sit down does not wait in a queue that a dead process would leave full."""
    story.is_welcomed()
    story.is_assigned(generation(2, seats=seats(-1)))
    assert not story.orders()
    story.becomes_ready()
    assert [type(order) for order in story.orders()] == [messages.TakeSeat]


def test_the_same_assignment_again_changes_nothing(story: Story) -> None:
    """The controller repeats itself after a restart."""
    story.trains()
    story.is_assigned(generation(1, seats=seats(0)))
    assert not story.orders()


def test_an_older_assignment_is_dropped_and_said_so(story: Story) -> None:
    """Generations only grow: the fence."""
    story.trains(number=5)
    story.is_assigned(generation(4, seats=seats(-1)))
    assert not story.orders() and not story.given(KillTrainer)
    assert "older" in story.given(Note)[0].text


def test_a_seat_made_for_an_earlier_process_is_not_given_to_its_successor(story: Story) -> None:
    """After a restart of the agent starts count from 1 again; the address tells the processes apart."""
    story.warms_up()
    (stranger, other) = seats(0)
    forerunner = messages.Member(
        trainer=stranger.trainer,
        start=1,
        rank=0,
        store_address="node-1/0.before",
        peer_address="node-1/0.before",
    )
    story.is_assigned(generation(2, seats=(forerunner, other)))
    (order,) = story.orders()
    assert isinstance(order, messages.TakeSeat)
    assert order.assignment.rank == -1


# ---- fencing ----


def test_a_member_that_an_immediate_generation_leaves_out_is_replaced_by_a_fresh_process(
    story: Story,
) -> None:
    """It was cut off, the others have gone on; what it holds must not be used."""
    story.trains(number=1)
    story.is_assigned(generation(2, seats=seats(-1)))
    (kill,) = story.given(KillTrainer)
    assert kill.start == 1
    assert story.state() is State.FENCED
    story.exits(signal=9)
    (exited,) = story.told_controller()
    assert isinstance(exited, TrainerExited)
    assert exited.will_restart
    assert [each.start for each in story.given(StartTrainer)] == [2]
    assert story.state() is State.SPARE


def test_what_a_fenced_process_still_says_counts_for_nothing(story: Story) -> None:
    """Its reports may be in the socket already: no step of it may reach the ledger any more."""
    story.trains(number=1)
    story.is_fenced(2)
    assert story.says(committed(8)) == []
    assert story.says(failed(1)) == []
    assert len(story.machine.ring) == 0


def test_a_fence_spares_trainers_that_never_had_a_seat(story: Story) -> None:
    """They are fresh already; the controller hears once more that they are ready."""
    story.warms_up()
    story.is_fenced(2)
    assert not story.given(KillTrainer)
    (said,) = story.told_controller()
    assert isinstance(said, TrainerReady)


def test_an_older_fence_is_dropped(story: Story) -> None:
    """Sent before the seat that this trainer has now."""
    story.trains(number=5)
    story.is_fenced(4)
    assert not story.given(KillTrainer)
    assert story.state() is State.SEATED


def test_a_repeated_fence_hits_nobody_twice(story: Story) -> None:
    """The controller may repeat its actions after a restart."""
    story.trains(number=1)
    story.is_fenced(2)
    story.is_fenced(2)
    assert not story.given(KillTrainer)
    story.exits(signal=9)
    story.becomes_ready()
    story.is_fenced(2)
    assert not story.given(KillTrainer)


def test_a_fenced_restart_costs_nothing_of_the_budget(story: Story) -> None:
    """A cut network is not the device's fault."""
    story.config["cluster"]["trainer_restarts"] = 0
    story.trains(number=1)
    story.is_fenced(2)
    story.exits(signal=9)
    assert [each.start for each in story.given(StartTrainer)] == [2]


def test_after_a_fence_nobody_is_told_the_generation_before_it(story: Story) -> None:
    """The fresh process waits for the controller's word."""
    story.trains(number=1)
    story.is_fenced(2)
    story.exits(signal=9)
    story.becomes_ready()
    assert not story.orders()


def test_a_fence_and_the_assignment_of_the_same_number_go_together(story: Story) -> None:
    """The fresh process is told the generation that it is not part of."""
    story.trains(number=1)
    story.is_fenced(2)
    story.is_assigned(generation(2, seats=seats(-1)))
    assert not story.orders()
    story.exits(signal=9)
    story.becomes_ready()
    (order,) = story.orders()
    assert isinstance(order, messages.TakeSeat) and order.assignment.number == 2


def test_one_device_may_be_fenced_while_the_other_keeps_its_seat() -> None:
    """A failure domain of two devices of which one lost its trainer's standing."""
    story = Story(devices=2)
    story.is_welcomed()
    story.becomes_ready("node-1/0")
    story.becomes_ready("node-1/1")
    both = tuple(
        messages.Member(
            trainer=f"node-1/{n}",
            start=1,
            rank=n,
            store_address=f"node-1/{n}.1",
            peer_address=f"node-1/{n}.1",
        )
        for n in (0, 1)
    )
    story.is_assigned(generation(1, seats=both))
    story.is_assigned(generation(2, seats=both[:1]))
    assert [kill.trainer for kill in story.given(KillTrainer)] == ["node-1/1"]
    assert story.state() is State.SEATED
    story.referee.check_state()


# ---- planned generations ----


def test_a_planned_generation_lets_a_leaving_member_train_to_the_boundary(story: Story) -> None:
    """A drained node: its trainer must take part until all can change over."""
    story.trains(number=1)
    story.is_assigned(generation(2, "planned", seats=seats(-1)))
    assert not story.given(KillTrainer)
    assert [type(order) for order in story.orders()] == [messages.TakeSeat]
    assert story.state() is State.SEATED
    story.says(committed(9, generation=1))
    assert story.steps() == [9]
    story.beats(generation=1, phase="ready")
    assert story.state() is State.SPARE


def test_a_member_that_has_not_left_yet_is_fenced_when_the_plan_is_overtaken(story: Story) -> None:
    """A loss came before the boundary, and the answer to it leaves this member out."""
    story.trains(number=1)
    story.is_assigned(generation(2, "planned", seats=seats(-1)))
    story.is_assigned(generation(3, "immediate", seats=seats(-1)))
    assert [kill.start for kill in story.given(KillTrainer)] == [1]


def test_orders_of_the_running_generation_count_until_the_planned_one_is_joined(story: Story) -> None:
    """A checkpoint may be asked for between the plan and the boundary."""
    story.trains(number=1)
    story.is_assigned(generation(2, "planned", seats=seats(0)))
    story.hears(TakeCheckpoint(request="c-1", generation=1))
    assert [type(order) for order in story.orders()] == [messages.TakeCheckpoint]
    story.joins(2)
    story.hears(TakeCheckpoint(request="c-2", generation=1))
    assert not story.orders()
    assert [type(report) for report in story.reports()] == [messages.CheckpointFailed]


# ---- steps ----


@pytest.mark.parametrize(
    "rank, live",
    [(0, True), (1, True), (2, False)],
)
def test_agents_of_the_first_two_ranks_report_steps_as_they_come(story: Story, rank: int, live: bool) -> None:
    """Two, so that the ledger survives the loss of one; not all, so that it is not told everything n times."""
    story.trains(rank=rank, world=4)
    story.says(committed(1))
    assert story.steps() == ([1] if live else [])


def test_steps_are_reported_again_from_where_the_ledger_stands(story: Story) -> None:
    """The controller was away for some steps, and died before it wrote down the last ones it heard."""
    story.trains()
    story.says(committed(1))
    story.says(committed(2))
    story.loses_controller()
    story.says(committed(3))
    assert not story.steps()
    story.is_welcomed(reported_through=1)
    assert story.steps() == [2, 3]


def test_a_rank_that_moves_up_completes_the_ledger(story: Story) -> None:
    """Ranks 0 and 1 died together with what only they had reported; rank 2 is rank 0 now."""
    story.trains(number=1, rank=2, world=4)
    for step in (1, 2, 3):
        story.says(committed(step))
    story.is_assigned(generation(2, seats=seats(0)), reported_through=1)
    assert story.steps() == [2, 3]
    story.says(committed(4, generation=2))
    assert story.steps() == [4]


def test_a_step_is_reported_once_though_two_trainers_of_the_node_commit_it() -> None:
    """Both ranks on one node."""
    story = Story(devices=2)
    story.is_welcomed()
    story.becomes_ready("node-1/0")
    story.becomes_ready("node-1/1")
    both = tuple(
        messages.Member(
            trainer=f"node-1/{n}",
            start=1,
            rank=n,
            store_address=f"node-1/{n}.1",
            peer_address=f"node-1/{n}.1",
        )
        for n in (0, 1)
    )
    story.is_assigned(generation(1, seats=both))
    story.says(committed(1), "node-1/0")
    assert story.steps() == [1]
    story.says(committed(1), "node-1/1")
    assert story.steps() == []


def test_a_restored_checkpoint_takes_back_the_steps_above_it(story: Story) -> None:
    """Step 3 of the old generation never happened; the new step 3 does, also if the old one arrives late."""
    story.trains(number=1)
    for step in (1, 2, 3):
        story.says(committed(step))
    story.is_assigned(generation(2, "restore", seats=seats(0), restore_step=1), reported_through=1)
    assert story.steps() == []
    story.says(committed(4, generation=1))
    assert story.steps() == []
    story.says(committed(2, generation=2))
    assert story.steps() == [2]


def test_a_newcomer_forgets_what_its_node_knew_before(story: Story) -> None:
    """While it had no seat a restore may have undone it, and it would not have heard."""
    story.trains(number=1)
    story.says(committed(5))
    story.exits(signal=9)
    story.becomes_ready()
    story.is_assigned(generation(4, "planned", seats=seats(0, start=2)), reported_through=3)
    assert story.steps() == []


def test_the_newest_records_are_kept(story: Story) -> None:
    """A controller that is away for very long finds the last ones."""
    story.trains()
    story.loses_controller()
    for step in range(1, policy.STEP_RECORDS_LIMIT + 11):
        story.says(committed(step))
    story.is_welcomed()
    assert story.steps() == list(range(11, policy.STEP_RECORDS_LIMIT + 11))
