"""Orders for single trainers, and how their processes come and go. One story each."""

from __future__ import annotations

import pytest

from tests.unit.worker.agent.stories import (
    FIRST,
    Story,
    ended,
    generation,
    ready,
    seats,
)
from worker.agent import messages, policy
from worker.agent.controller_messages import (
    Acquire,
    DeleteCheckpoint,
    RestartTrainer,
    SealCheckpoint,
    SetTimeouts,
    StopTraining,
    TakeCheckpoint,
    TrainerExited,
    TrainerFellSilent,
)
from worker.agent.instructions import KillTrainer, Note, SendToController, StartTrainer
from worker.agent.lifecycle import State

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


def test_a_trainer_that_works_without_a_word_has_more_time(story: Story) -> None:
    """Gigabytes of pinned memory are made, and meanwhile none of its threads gets on."""
    story.trains()
    story.passes(25.0, processors=1.0)
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]
    story.passes(10.0, processors=1.0)
    told = [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]
    assert [each.silent_seconds for each in told] == [pytest.approx(policy.BUSY_SECONDS, abs=0.2)]


def test_a_trainer_that_stops_working_is_silent_from_then_on(story: Story) -> None:
    """Stopped in the middle of its work."""
    story.trains()
    story.passes(10.0, processors=1.0)
    story.passes(2.5)
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]
    story.passes(1.0)
    assert len([e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]) == 1


def test_a_little_work_is_no_sign_of_life(story: Story) -> None:
    """Some thread of a library wakes up now and then."""
    story.trains()
    story.passes(4.0, processors=0.1)
    assert len([e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]) == 1


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
    story.is_assigned(generation(2, seats=seats(0)))
    assert not story.orders()
    story.is_assigned(generation(3, seats=seats(-1)))
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


def silent_after(story: Story) -> float:
    """How long it takes until a trainer that has just beaten is called silent."""
    began = story.at
    while not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]:
        story.passes(0.1)
        assert story.at - began < 20.0
    return story.at - began


def test_what_was_told_of_a_generation_limits_the_silence_of_a_step_of_it(story: Story) -> None:
    story.trains()
    story.hears(SetTimeouts(generation=1, hang_seconds=1.2))
    story.beats(generation=1, phase="backward")
    assert silent_after(story) < 2.0


@pytest.mark.parametrize(
    "generation, phase", [(1, "checkpoint"), (1, "boundary"), (2, "backward"), (0, "regrouping")]
)
def test_elsewhere_the_job_limits_it(story: Story, generation: int, phase: str) -> None:
    """A checkpoint, or another generation, was not what the controller observed."""
    story.trains()
    story.hears(SetTimeouts(generation=1, hang_seconds=1.2))
    story.beats(generation=generation, phase=phase)
    assert silent_after(story) > 2.9


def test_it_is_never_longer_than_the_job_says(story: Story) -> None:
    story.trains()
    story.hears(SetTimeouts(generation=1, hang_seconds=60.0))
    story.beats(generation=1, phase="backward")
    assert 2.9 < silent_after(story) < 3.5


def test_a_member_at_work_has_more_time_also_where_its_step_is_usually_short(story: Story) -> None:
    """The kernel is asked before the shorter limit is over."""
    story.trains()
    story.hears(SetTimeouts(generation=1, hang_seconds=0.9))
    story.beats(generation=1, phase="backward")
    story.passes(5.0, processors=1.0)
    assert not [e for e in story.told_controller() if isinstance(e, TrainerFellSilent)]
