"""Decide, remember, act: the order, and what happens when one of the three fails."""

from __future__ import annotations

import pytest

from orchestrator.controller.controller import ACTION_ATTEMPTS, ActionFailed, Controller
from orchestrator.controller.ports import LedgerError, StoreError
from orchestrator.core.events import CheckpointSealed
from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, TrainerId
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState, Reason
from tests.unit.orchestrator.controller.fakes import (
    Scripted,
    Stage,
    World,
    committed,
    disconnected,
    disk_full,
    end_job,
    fence,
    heartbeat,
    roll_back,
    start_node,
    stop_node,
)


def test_actions_are_performed_after_the_commit_and_in_order() -> None:
    outcome = Outcome(actions=(roll_back(1, 10, 2), start_node(2), stop_node(3), fence(4), end_job(5)))
    stage = Stage(lambda event: outcome)
    stage.world.connected.add(NodeId("node-1"))
    stage.controller.handle(disconnected())
    assert stage.world.diary == [
        "commit NodeDisconnected",
        "roll back to 10 for generation 2",
        "start node-1",
        "stop node-1",
        "send Fence to node-1",
    ]
    assert stage.world.ended == [(True, "all steps done")]
    assert stage.world.done == [each.id for each in outcome.actions]


def test_a_failed_commit_stops_everything_before_the_first_action() -> None:
    stage = Stage(lambda event: Outcome(actions=(start_node(1),)))
    stage.world.broken["commit"] = disk_full()
    with pytest.raises(StoreError, match="disk is full"):
        stage.controller.handle(disconnected())
    assert stage.world.diary == ["commit NodeDisconnected"]


def test_a_step_report_is_in_the_ledger_before_the_core_sees_it() -> None:
    stage = Stage()
    stage.controller.handle(committed(1))
    stage.controller.handle(heartbeat())
    assert stage.world.diary == ["append 1", "commit StepCommitted", "commit HeartbeatReceived"]
    assert stage.machine.reported == [1, 1]


def test_a_step_of_a_generation_that_cannot_be_is_not_put_down(caplog: pytest.LogCaptureFixture) -> None:
    """The ledger's highest generation counts for the next one: a report may not push it to where nobody can follow."""
    stage = Stage()
    stage.controller.handle(committed(1, generation=2**52))
    assert stage.world.diary == ["commit StepCommitted"]
    assert "reports step 1 of generation 4503599627370496, which this job cannot have" in caplog.text


def test_a_step_that_the_ledger_cannot_take_never_reaches_the_core() -> None:
    stage = Stage()
    stage.world.broken["append"] = LedgerError("cannot append: no room")
    with pytest.raises(LedgerError):
        stage.controller.handle(committed(1))
    assert stage.machine.seen == []


def test_a_sealed_checkpoint_is_never_ahead_of_the_durable_ledger() -> None:
    stage = Stage()
    sealed = CheckpointSealed(
        at=1.0,
        cause_id=CauseId("c"),
        trainer=TrainerId("node-1/0"),
        incarnation="i",
        start=1,
        request="r-1",
        step=Step(5),
        name="step-00000005.g0001",
        path="/w/checkpoints/step-00000005.g0001",
        bytes=10,
    )
    stage.controller.handle(sealed)
    assert stage.world.diary == ["sync", "commit CheckpointSealed"]


def test_after_a_roll_back_the_state_knows_the_new_end_of_the_ledger() -> None:
    stage = Stage(lambda event: Outcome(actions=(roll_back(1, 3, 2),)))
    stage.world.end = Step(9)
    stage.controller.handle(disconnected())
    assert stage.state.reported_through == 3


def test_a_message_to_a_node_that_is_gone_is_dropped_and_done() -> None:
    stage = Stage(lambda event: Outcome(actions=(fence(1),)))
    stage.controller.handle(disconnected())
    assert stage.world.unfinished() == ()


def test_a_failed_action_stays_in_the_outbox_and_is_tried_again() -> None:
    stage = Stage(lambda event: Outcome(actions=(start_node(1),)))
    stage.world.broken["start"] = OSError("no more processes")
    stage.controller.handle(disconnected())
    assert [each.id for each in stage.world.unfinished()] == ["a-1-1"]
    stage.world.broken.clear()
    stage.controller.retry_failed()
    assert stage.world.unfinished() == ()
    stage.controller.retry_failed()
    assert stage.world.diary.count("start node-1") == 2


def test_an_action_that_never_succeeds_ends_the_controller_after_a_bounded_number_of_attempts() -> None:
    stage = Stage(lambda event: Outcome(actions=(start_node(1),)))
    stage.world.broken["start"] = OSError("no more processes")
    stage.controller.handle(disconnected())
    for _ in range(ACTION_ATTEMPTS - 1):
        stage.controller.retry_failed()
    with pytest.raises(ActionFailed, match="StartNode a-1-1 failed 5 times: no more processes"):
        stage.controller.retry_failed()
    assert stage.world.diary.count("start node-1") == ACTION_ATTEMPTS
    assert len(stage.world.unfinished()) == 1


def test_a_failed_start_is_not_made_up_for_after_a_later_stop() -> None:
    """The node was to start, could not, and was then stopped by a newer decision: it must stay stopped."""
    script = iter([Outcome(actions=(start_node(1),)), Outcome(actions=(stop_node(2),))])
    stage = Stage(lambda event: next(script))
    stage.world.broken["start"] = OSError("no more processes")
    stage.controller.handle(disconnected())
    stage.world.broken.clear()
    stage.controller.handle(disconnected())
    stage.controller.retry_failed()
    assert [line for line in stage.world.diary if "node-1" in line] == ["start node-1", "stop node-1"]
    assert stage.world.unfinished() == ()


def test_a_bug_in_an_adapter_is_not_taken_for_a_failed_action() -> None:
    stage = Stage(lambda event: Outcome(actions=(start_node(1),)))
    stage.world.broken["start"] = AssertionError("called on the wrong thread")
    with pytest.raises(AssertionError):
        stage.controller.handle(disconnected())


def test_a_new_process_performs_what_the_last_one_stored_and_did_not_tick_off() -> None:
    """The crash comes between commit and perform: the actions are in the outbox, and come back in order."""
    world = World()
    world.broken["start"] = SystemExit(9)
    outcome = Outcome(actions=(start_node(1), roll_back(2, 4, 3)))
    first = Controller(
        machine=Scripted(ClusterState(), lambda event: outcome), state=ClusterState(), ports=world.ports()
    )
    with pytest.raises(SystemExit):
        first.handle(disconnected())
    world.broken.clear()
    world.diary.clear()
    second = Controller(machine=Scripted(ClusterState()), state=ClusterState(), ports=world.ports())
    assert second.perform_unfinished() == 2
    assert world.diary == ["start node-1", "roll back to 4 for generation 3"]
    assert second.perform_unfinished() == 0


def test_generation_numbers_of_the_ledger_are_never_given_again() -> None:
    """The database was brought back from a copy and knows less than the ledger."""
    stage = Stage()
    stage.world.generation = GenerationNumber(7)
    stage.controller.handle(heartbeat())
    assert stage.state.memory.newest_seen == 7
    stage.world.generation = GenerationNumber(5)
    stage.controller.handle(heartbeat())
    assert stage.state.memory.newest_seen == 7


def test_readers_see_the_state_between_two_events() -> None:
    stage = Stage(lambda event: Outcome(reasons=(Reason(text="seen"),)))
    stage.controller.handle(committed(1))
    assert stage.controller.inspect(lambda state: state.reported_through) == 1
