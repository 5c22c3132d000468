"""The agent's decisions, one story each. The rules that hold in all of them are in `stories.Referee`."""

from __future__ import annotations

import json

import pytest

from tests.unit.worker.agent.stories import (
    FIRST,
    NODE,
    Story,
    beat,
    committed,
    ended,
    failed,
    generation,
    joined,
    ready,
    seats,
)
from worker.agent import messages, policy
from worker.agent.controller_messages import (
    Acquire,
    DeleteCheckpoint,
    Heartbeat,
    Registration,
    RestartTrainer,
    SealCheckpoint,
    Shutdown,
    StopTraining,
    TakeCheckpoint,
    TrainerExited,
    TrainerFellSilent,
    TrainerReady,
    Welcome,
)
from worker.agent.instructions import EndAgent, KillTrainer, Note, SendToController, StartTrainer
from worker.agent.lifecycle import State
from worker.agent.machine import EXIT_CONFIG, EXIT_DONE, EXIT_ORPHANED

# ---- registering ----


def test_the_first_word_on_a_stream_is_the_registration(story: Story) -> None:
    """A fresh agent says who it is; it knows no generation and has no trainers yet."""
    story.connects()
    (registration,) = story.told_controller()
    assert registration == Registration(
        node=NODE, incarnation="i-1", labels=(("rack", "r1"),), agent_pid=77, generation=0, trainers=()
    )


def test_trainers_start_as_soon_as_the_job_is_known(story: Story) -> None:
    """Warm start: the welcome carries the config, so nothing else is waited for."""
    story.config["cluster"]["devices_per_node"] = 2
    story.is_welcomed()
    assert [each.trainer for each in story.given(StartTrainer)] == ["node-1/0", "node-1/1"]
    configures = [order for order in story.orders() if isinstance(order, messages.Configure)]
    assert [json.loads(order.config) for order in configures] == [story.config] * 2
    assert configures[0].workdir == "/work"
    assert story.state() is State.SPARE


def test_the_command_line_wins_over_the_job_in_the_number_of_devices() -> None:
    """A node with other hardware than the rest."""
    story = Story(devices=3)
    story.is_welcomed()
    assert len(story.given(StartTrainer)) == 3


def test_a_second_welcome_starts_nothing(story: Story) -> None:
    """A reconnect, or a restarted controller: the trainers go on."""
    story.trains()
    story.loses_controller()
    story.is_welcomed()
    assert not story.given(StartTrainer)
    assert story.state() is State.SEATED


def test_a_registration_says_what_the_agent_has_seen(story: Story) -> None:
    """The controller may have lost its memory of the last seconds."""
    story.trains(number=4)
    story.beats(generation=4, step=7)
    story.loses_controller()
    story.connects()
    (registration,) = story.told_controller()
    assert isinstance(registration, Registration)
    assert registration.generation == 4
    (status,) = registration.trainers
    assert (status.ready, status.generation, status.step, status.pid) == (True, 4, 7, 101)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"cluster": {"devices_per_node": 0}}'])
def test_a_config_that_cannot_be_used_ends_the_agent(story: Story, config: str) -> None:
    """Better an end with the name of the field than a guess."""
    story.connects()
    story.hears(Welcome(config=config, reported_through=0, generation=0))
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_CONFIG


def test_another_job_on_the_same_address_ends_the_agent(story: Story) -> None:
    """The trainers hold the state of the old job, and must not meet those of the new one."""
    story.warms_up()
    story.loses_controller()
    story.config["name"] = "another"
    story.is_welcomed()
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_CONFIG


def test_orders_before_the_welcome_are_ignored(story: Story) -> None:
    """Only a welcome opens a conversation."""
    story.connects()
    story.is_assigned(generation(1, seats=seats(0)))
    assert not story.orders()
    assert story.machine.newest == 0


# ---- heartbeats ----


def test_heartbeats_go_out_at_the_jobs_pace_while_registered(story: Story) -> None:
    """Five a second here; none without a controller."""
    story.warms_up()
    story.passes(2.0)
    beats = [each for each in story.given(SendToController) if isinstance(each.message, Heartbeat)]
    assert 9 <= len(beats) <= 10
    story.loses_controller()
    story.passes(2.0)
    assert not story.given(SendToController)


def test_a_phase_that_the_controller_has_no_word_for_is_translated(story: Story) -> None:
    """Trainers name finer phases than the controller knows; an unknown one would cost the node its stream."""
    story.trains()
    for said, shown in (("dispatch", "forward"), ("checkpoint", "boundary"), ("novel", "boundary")):
        story.beats(generation=1, phase=said)
        story.passes(0.3)
        heartbeats = [e.message for e in story.given(SendToController) if isinstance(e.message, Heartbeat)]
        assert heartbeats[-1].trainers[0].phase == shown


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


# ---- what must not be lost ----


def test_reports_wait_for_the_controller_and_go_out_in_order(story: Story) -> None:
    """A shard, its seal and the end of training while nobody listened."""
    story.trains()
    story.passes(policy.SETTLED_SECONDS + 1.0, beating=[FIRST])
    story.loses_controller()
    shard = messages.ShardWritten(request="c-1", generation=1, step=9, name="n", rank=0, shard="{}", bytes=1)
    sealed = messages.CheckpointSealed(request="c-1", step=9, name="n", path="/n", bytes=1)
    for report in (shard, sealed, ended(finished=True)):
        story.says(report)
        assert not story.reports()
    story.is_welcomed()
    assert story.reports() == [shard, sealed, ended(finished=True)]


def test_messages_sent_shortly_before_a_break_are_sent_again(story: Story) -> None:
    """They may have been lost with the connection: gRPC does not say."""
    story.trains()
    story.loses_controller()
    story.is_welcomed()
    assert [type(message).__name__ for message in story.told_controller()] == ["TrainerReady", "TrainerSaid"]
    assert story.reports() == [joined(1)]


def test_messages_that_have_long_arrived_are_not_sent_again(story: Story) -> None:
    """The stream lived on for half a minute after them."""
    story.trains()
    story.passes(policy.SETTLED_SECONDS + 1.0, beating=[FIRST])
    story.loses_controller()
    story.is_welcomed()
    assert story.told_controller() == []


def test_failures_of_a_generation_that_is_over_are_not_kept(story: Story) -> None:
    """A newer generation is the answer to them."""
    story.trains(number=1)
    story.says(failed(1))
    assert story.reports() == [failed(1)]
    story.is_assigned(generation(2, seats=seats(0)))
    story.says(failed(1))
    assert story.reports() == []
    story.loses_controller()
    story.is_welcomed()
    assert failed(1) not in story.reports()


def test_a_communication_failure_is_kept_for_the_next_controller(story: Story) -> None:
    """Nobody else can end the generation; without this report training would stand still."""
    story.trains(number=1)
    story.loses_controller()
    story.says(failed(1))
    story.is_welcomed()
    assert failed(1) in story.reports()


def test_the_readiness_of_a_dead_process_is_not_told_later(story: Story) -> None:
    """Only its exit is, and that the next one is ready."""
    story.is_welcomed()
    story.loses_controller()
    story.becomes_ready()
    story.exits(signal=9)
    story.becomes_ready()
    story.is_welcomed()
    told = [(type(message).__name__, message.start) for message in story.told_controller()]  # type: ignore[union-attr]
    assert told == [("TrainerExited", 1), ("TrainerReady", 2)]


def test_a_full_outbox_drops_the_oldest_and_says_so(story: Story) -> None:
    """Bounded, with a name for the limit."""
    story.trains()
    story.loses_controller()
    texts = []
    for number in range(policy.OUTBOX_LIMIT + 1):
        story.says(messages.PartsAcquired(acquisition=f"a-{number}", version=1))
        texts += [note.text for note in story.given(Note)]
    assert any("full" in text for text in texts)


# ---- orders for one trainer ----


def test_acquiring_goes_to_the_trainer_it_names(story: Story) -> None:
    """A spare copies parts while the others train."""
    story.warms_up()
    donor = messages.Donor(trainer="node-2/0", peer_address="h:1", parts=("dense",))
    story.hears(Acquire(trainer=FIRST, acquisition="a-1", generation=1, donors=(donor,)))
    (order,) = story.orders()
    assert order == messages.AcquireParts(acquisition="a-1", generation=1, donors=(donor,))


def test_an_acquisition_that_cannot_be_is_answered(story: Story) -> None:
    """Of a generation that is over, or for a trainer that is not ready: the controller plans again at once."""
    story.is_welcomed()
    story.hears(Acquire(trainer=FIRST, acquisition="a-1", generation=1, donors=()))
    assert [type(report) for report in story.reports()] == [messages.AcquisitionFailed]
    story.becomes_ready()
    story.is_assigned(generation(3, seats=seats(-1)))
    story.hears(Acquire(trainer=FIRST, acquisition="a-2", generation=2, donors=()))
    (report,) = story.reports()
    assert isinstance(report, messages.AcquisitionFailed) and "over" in report.reason


def test_members_alone_take_checkpoints_and_stop(story: Story) -> None:
    """A spare holds nothing to save."""
    story.warms_up()
    story.hears(TakeCheckpoint(request="c-1", generation=0))
    story.hears(StopTraining(request="s-1", generation=0))
    assert not story.orders()
    story.is_assigned(generation(1, seats=seats(0)))
    story.hears(TakeCheckpoint(request="c-1", generation=1))
    assert story.orders() == [messages.TakeCheckpoint(request="c-1", generation=1)]
    story.hears(StopTraining(request="s-1", generation=1))
    assert story.orders() == [messages.StopTraining(request="s-1", generation=1)]
    story.hears(StopTraining(request="s-2", generation=0))
    assert not story.orders()


def _seal(request: str = "c-1") -> SealCheckpoint:
    return SealCheckpoint(trainer=FIRST, request=request, generation=1, step=9, name="n", shards=("{}",))


def test_a_seal_that_was_not_answered_is_given_to_the_next_process(story: Story) -> None:
    """Sealing needs only what is on durable storage."""
    story.trains()
    story.hears(_seal())
    story.exits(signal=9)
    story.becomes_ready()
    assert [type(order) for order in story.orders()] == [messages.TakeSeat, messages.SealCheckpoint]
    story.says(messages.CheckpointSealed(request="c-1", step=9, name="n", path="/n", bytes=1))
    story.exits(signal=9)
    story.passes(1.0)
    story.becomes_ready()
    assert messages.SealCheckpoint not in [type(order) for order in story.orders()]


def test_a_seal_for_a_device_without_a_process_fails_at_once(story: Story) -> None:
    """The device was given up."""
    story.config["cluster"]["trainer_restarts"] = 0
    story.trains()
    story.exits(signal=9)
    story.hears(_seal())
    assert [type(report) for report in story.reports()] == [messages.CheckpointFailed]


def test_only_so_many_seals_are_remembered(story: Story) -> None:
    """Bounded; the controller asks again."""
    story.is_welcomed()
    for number in range(policy.SEALS_LIMIT + 5):
        story.hears(_seal(f"c-{number}"))
    story.becomes_ready()
    assert len(story.orders()) == policy.SEALS_LIMIT


def test_deleting_goes_to_a_ready_trainer_or_to_nobody(story: Story) -> None:
    """Retention asks again."""
    story.is_welcomed()
    story.hears(DeleteCheckpoint(trainer=FIRST, name="old"))
    assert not story.orders()
    story.becomes_ready()
    story.hears(DeleteCheckpoint(trainer=FIRST, name="old"))
    assert story.orders() == [messages.DeleteCheckpoint(name="old")]


def test_an_order_for_a_trainer_of_another_node_is_noted(story: Story) -> None:
    """It changes nothing here."""
    story.warms_up()
    story.hears(DeleteCheckpoint(trainer="node-2/0", name="old"))
    assert "node-2/0" in story.given(Note)[0].text
    assert not story.orders()


# ---- trainers come and go ----


def test_the_exit_of_a_member_is_told_and_the_device_comes_back(story: Story) -> None:
    """Three out of four faults go away with a fresh process; the first is started at once."""
    story.trains()
    story.exits(signal=9)
    (exited,) = story.told_controller()
    assert exited == TrainerExited(trainer=FIRST, start=1, exit_code=None, signal=9, will_restart=True)
    assert [each.start for each in story.given(StartTrainer)] == [2]
    assert story.state() is State.SPARE


def test_restarts_slow_down_and_end_with_the_budget(story: Story) -> None:
    """At once, after half a second, after one second, never."""
    story.is_welcomed()
    pauses = []
    for _ in range(3):
        story.exits(exit_code=1)
        waited = 0.0
        while not story.given(StartTrainer):
            story.passes(0.05)
            waited += 0.05
        pauses.append(round(waited, 2))
    assert pauses == pytest.approx([0.0, 0.5, 1.0], abs=0.06)
    story.exits(exit_code=1)
    (exited,) = story.told_controller()
    assert isinstance(exited, TrainerExited) and not exited.will_restart
    story.passes(policy.RESTART_WINDOW_SECONDS, every_seconds=0.5)
    assert not story.given(StartTrainer)


def test_the_budget_is_full_again_after_its_window(story: Story) -> None:
    """Three failures in a week are no reason to give a device up."""
    story.is_welcomed()
    for _ in range(5):
        story.exits(signal=9)
        assert [type(message) for message in story.told_controller()] == [TrainerExited]
        assert story.given(StartTrainer)
        story.becomes_ready()
        story.passes(policy.RESTART_WINDOW_SECONDS + 1.0, every_seconds=0.5, beating=[FIRST])


def test_a_trainer_that_cannot_run_the_job_is_not_started_again(story: Story) -> None:
    """Bad data stay bad."""
    story.is_welcomed()
    refused = messages.TrainerRefused(reason="no such file: corpus.txt")
    story.says(refused)
    assert story.reports() == [refused]
    story.exits(exit_code=2)
    (exited,) = story.told_controller()
    assert isinstance(exited, TrainerExited) and not exited.will_restart


def test_a_trainer_that_stopped_as_told_may_leave_without_being_missed(story: Story) -> None:
    """Its exit is no failure, and nobody takes its place."""
    story.trains()
    story.says(ended(finished=False))
    story.exits(exit_code=0)
    assert story.told_controller() == []
    assert not story.given(StartTrainer)


def test_a_trainer_that_dies_after_the_last_step_is_a_failure_all_the_same(story: Story) -> None:
    """The last checkpoint is still to be written."""
    story.trains()
    story.says(ended(finished=True))
    story.exits(signal=9)
    (exited,) = story.told_controller()
    assert isinstance(exited, TrainerExited) and exited.will_restart


def test_reports_and_exits_of_an_earlier_process_change_nothing(story: Story) -> None:
    """They were under way when it was replaced."""
    story.trains()
    story.exits(signal=9)
    assert story.says(ready(start=1), start=1) == []
    assert story.exits(signal=9, start=1) == []


def test_a_silent_trainer_is_told_once(story: Story) -> None:
    """Stopped or stuck: what to do is for the controller to say."""
    story.trains()
    story.passes(10.0)
    told = [e.message for e in story.given(SendToController) if isinstance(e.message, TrainerFellSilent)]
    assert len(told) == 1
    assert told[0].silent_seconds == pytest.approx(3.0, abs=0.2)
    assert not story.given(KillTrainer)


def test_a_trainer_that_beats_is_not_silent(story: Story) -> None:
    """However long a step takes."""
    story.trains()
    story.passes(10.0, beating=[FIRST])
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]


def test_a_trainer_that_starts_has_more_time(story: Story) -> None:
    """It imports and makes its device context, and has no beat yet."""
    story.is_welcomed()
    story.passes(170.0, every_seconds=0.5)
    assert not story.told_controller()
    story.passes(20.0, every_seconds=0.5)
    assert [type(message) for message in story.told_controller()] == [TrainerFellSilent]


def test_silence_that_ended_before_a_controller_heard_of_it_is_not_told(story: Story) -> None:
    """SIGSTOP and SIGCONT while the controller was away."""
    story.trains()
    story.loses_controller()
    story.passes(5.0)
    story.beats(generation=1)
    story.is_welcomed()
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]


def test_silence_during_the_agents_own_pause_is_nobodys_fault(story: Story) -> None:
    """The agent was stopped for a minute; its trainer was not, and its beats wait in the socket."""
    story.trains()
    story.jumps(60.0)
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]
    story.beats(generation=1)
    story.passes(4.0)
    assert [type(e) for e in story.told_controller()] == [TrainerFellSilent]


def test_a_trainer_that_hangs_after_the_agents_own_pause_is_noticed_in_time(story: Story) -> None:
    """Its last beat was read before the first tick; the pause must not be credited to it."""
    story.trains()
    story.at += 60.0
    story.beats(generation=1)
    story.jumps(0.0)
    story.passes(4.0)
    assert [type(e) for e in story.told_controller()] == [TrainerFellSilent]


def test_a_process_that_is_being_killed_gets_no_orders(story: Story) -> None:
    """The assignment that answers its loss comes before its end is seen."""
    story.trains(number=1)
    story.hears(RestartTrainer(trainer=FIRST, reason="it hangs"))
    story.is_assigned(generation(2, seats=seats(-1)))
    assert not story.orders() and not story.given(KillTrainer)


def test_the_controllers_restart_ends_the_process_and_counts(story: Story) -> None:
    """A device that hangs again and again is given up like one that crashes."""
    story.config["cluster"]["trainer_restarts"] = 1
    story.trains()
    restart = RestartTrainer(trainer=FIRST, reason="it hangs")
    story.hears(restart)
    assert [kill.start for kill in story.given(KillTrainer)] == [1]
    story.hears(restart)
    assert not story.given(KillTrainer)
    story.exits(signal=9)
    assert [each.start for each in story.given(StartTrainer)] == [2]
    story.becomes_ready()
    story.hears(restart)
    story.exits(signal=9)
    assert not story.given(StartTrainer)


def test_a_replayed_restart_does_not_hit_the_fresh_process(story: Story) -> None:
    """The controller repeats unfinished actions when it comes back."""
    story.trains()
    story.exits(signal=9)
    story.hears(RestartTrainer(trainer=FIRST, reason="it hangs"))
    assert not story.given(KillTrainer)


def test_a_device_that_was_given_up_starts_again_on_the_controllers_word(story: Story) -> None:
    """Once its window has passed."""
    story.config["cluster"]["trainer_restarts"] = 1
    story.trains()
    story.exits(signal=9)
    story.exits(signal=9)
    story.hears(RestartTrainer(trainer=FIRST, reason="try again"))
    assert not story.given(StartTrainer)
    story.passes(policy.RESTART_WINDOW_SECONDS, every_seconds=0.5)
    story.hears(RestartTrainer(trainer=FIRST, reason="try again"))
    assert [each.start for each in story.given(StartTrainer)] == [3]


# ---- endings ----


def test_a_shutdown_ends_the_agent_in_any_state(story: Story) -> None:
    """The job is over."""
    story.trains()
    story.hears(Shutdown(reason="finished"))
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_DONE and "finished" in end.reason
    assert story.exits(signal=15) == []


def test_a_signal_ends_the_agent(story: Story) -> None:
    """SIGTERM from the cluster, or Ctrl-C."""
    story.is_asked_to_end()
    (end,) = story.given(EndAgent)
    assert end.exit_code == 143


@pytest.mark.parametrize("welcomed", [True, False])
def test_an_agent_without_a_controller_for_too_long_ends(story: Story, welcomed: bool) -> None:
    """Nobody will ever tell these trainers what to do."""
    if welcomed:
        story.trains()
        story.loses_controller()
    story.passes(119.0, every_seconds=0.5, beating=[FIRST] if welcomed else [])
    assert not story.given(EndAgent)
    story.connects()  # a stream that opens and breaks again is no controller
    story.loses_controller()
    story.passes(2.0, every_seconds=0.5)
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_ORPHANED


def test_the_agents_own_pause_does_not_orphan_it(story: Story) -> None:
    """A suspended machine wakes up: the controller gets its chance to answer."""
    story.trains()
    story.loses_controller()
    story.jumps(1000.0)
    assert not story.given(EndAgent)


def test_the_last_sign_of_life_is_in_the_heartbeat(story: Story) -> None:
    """The controller sees a trainer grow silent before it is told so."""
    story.trains()
    story.says(beat(generation=1, step=4))
    story.passes(1.0)
    heartbeats = [e.message for e in story.given(SendToController) if isinstance(e.message, Heartbeat)]
    assert heartbeats[-1].trainers[0].silent_seconds == pytest.approx(1.0, abs=0.21)
