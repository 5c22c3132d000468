"""Who is alive: leases, suspicion, fencing, trainers that come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import actions, events
from orchestrator.core.ids import GenerationNumber, NodeId, Step, TrainerId
from orchestrator.core.state import IncidentKind, NodeState
from tests.unit.orchestrator.core.told import (
    NODE_1,
    NODE_2,
    NODE_3,
    NODE_5,
    TRAINER_1,
    TRAINER_2,
    TRAINER_5,
    MakeWorld,
    Told,
)


def lost_touch(world: Told, by: TrainerId, **changes: object) -> None:
    """A communication failure as the agent of a member reports it."""
    agent = world.agents.alive[NodeId(by.partition("/")[0])]
    fields: dict[str, object] = {
        "trainer": by,
        "incarnation": agent.incarnation,
        "start": 1,
        "generation": world.generation.number,
        "step": Step(world.state.committed),
        "detail": "connection reset",
    }
    world.say(events.CommunicationFailed, **(fields | changes))


def test_plain_heartbeat_is_an_empty_outcome(make_training: MakeWorld) -> None:
    """The database is not touched by thousands of nodes that are well."""
    world = make_training()
    agent = world.agents.alive[NODE_1]
    statuses = tuple(trainer.status(world.at, {}) for trainer in agent.trainers.values())
    world.say(events.HeartbeatReceived, node=NODE_1, incarnation=agent.incarnation, trainers=statuses)
    assert world.last.empty


def test_heartbeat_of_an_agent_that_was_replaced_is_ignored(make_training: MakeWorld) -> None:
    """It is the last word of a process that is gone."""
    world = make_training()
    seen = world.state.views[NODE_1].last_seen
    world.at += 1.0
    world.say(events.HeartbeatReceived, node=NODE_1, incarnation="older", trainers=())
    assert world.last.empty
    assert world.state.views[NODE_1].last_seen == seen
    assert world.state.views[NODE_1].trainers


def test_broken_stream_alone_kills_nobody(make_training: MakeWorld) -> None:
    """The trainers do not need the controller; the agent comes back within its lease."""
    world = make_training()
    world.cut(NODE_2)
    assert world.state.nodes[NODE_2].state is NodeState.SUSPECT
    world.run(1.0)
    world.heal(NODE_2)
    world.run(0.5)
    assert world.state.nodes[NODE_2].state is NodeState.ACTIVE
    assert world.generation.number == 1 and not world.incidents


def test_broken_stream_and_a_communication_failure_are_a_loss_at_once(make_training: MakeWorld) -> None:
    """Two witnesses that have nothing to do with each other."""
    world = make_training()
    world.cut(NODE_2)
    lost_touch(world, TRAINER_1)
    assert world.generation.number == 2
    assert world.members == ["node-1/0", "node-3/0", "node-4/0"]
    assert world.state.nodes[NODE_2].state is NodeState.DEAD
    assert world.incidents[0].kind is IncidentKind.NODE_LOST


def test_failure_that_nobody_could_be_told_of_counts_from_when_it_was(make_training: MakeWorld) -> None:
    """The controller was away: an incident begins when training stopped, not when somebody heard of it."""
    world = make_training()
    world.at += 30.0
    world.cut(NODE_2)
    lost_touch(world, TRAINER_1, age_seconds=20.0)
    assert world.incidents[0].first_sign_at <= world.at - 20.0
    assert world.incidents[0].detected_at == world.at


def test_earlier_sign_that_comes_after_the_answer_moves_the_beginning(make_training: MakeWorld) -> None:
    """A new controller found the loss by itself, before the survivors could tell it since when they wait."""
    world = make_training()
    world.stop_controller()
    world.run(5.0)
    world.start_controller()
    world.run(0.5)
    agent = world.agents.alive[NODE_2]
    exited = {"exit_code": None, "signal": 9, "will_restart": True}
    world.say(events.TrainerExited, trainer=TRAINER_2, incarnation=agent.incarnation, start=1, **exited)
    assert world.incidents[0].first_sign_at == world.at
    lost_touch(world, TRAINER_1, generation=GenerationNumber(1), age_seconds=4.0)
    assert world.incidents[0].first_sign_at == world.at - 4.0
    lost_touch(world, TRAINER_1, generation=GenerationNumber(1), age_seconds=0.1)
    assert world.incidents[0].first_sign_at == world.at - 4.0


def test_order_of_the_two_signs_does_not_matter(make_training: MakeWorld) -> None:
    """The peers may notice before the controller does."""
    world = make_training()
    lost_touch(world, TRAINER_1)
    assert world.generation.number == 1
    world.cut(NODE_2)
    assert world.members == ["node-1/0", "node-3/0", "node-4/0"]


def test_node_is_not_convicted_by_its_own_report_alone(make_training: MakeWorld) -> None:
    """A node that loses touch and then its stream may be the one that is well."""
    world = make_training()
    lost_touch(world, TRAINER_2)
    world.cut(NODE_2)
    assert world.generation.number == 1
    lost_touch(world, TRAINER_1)
    assert world.members == ["node-1/0", "node-3/0", "node-4/0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": GenerationNumber(0)},
        {"start": 2},
        {"trainer": TRAINER_5, "incarnation": "node-5#5"},
    ],
)
def test_stale_communication_failure_changes_nothing(
    make_training: MakeWorld, changes: dict[str, object]
) -> None:
    """From an older generation, an older process, or somebody without a seat."""
    world = make_training()
    world.cut(NODE_2)
    lost_touch(world, TRAINER_1, **changes)
    assert world.last.empty
    assert world.generation.number == 1


def test_late_heartbeat_makes_suspect_and_the_next_one_makes_good(make_training: MakeWorld) -> None:
    """Suspicion costs nothing and says what people want to know."""
    world = make_training()
    world.stop_node(NODE_5)
    world.run(1.75)
    assert world.state.nodes[NODE_5].state is NodeState.SUSPECT
    world.wake_node(NODE_5)
    world.run(0.5)
    assert world.state.nodes[NODE_5].state is NodeState.SPARE


def test_where_very_many_are_late_at_once_nobody_is_suspect_and_leases_run_on(
    make_training: MakeWorld,
) -> None:
    """Who did not get to hearing them is the controller; to store thousands of suspicions takes it longer still."""
    world = make_training()
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, suspects_at_once=1)
    for node in (NODE_2, NODE_5):
        world.stop_node(node)
    world.run(1.75)
    states = [world.state.nodes[node].state for node in (NODE_2, NODE_5)]
    assert states == [NodeState.ACTIVE, NodeState.SPARE]
    assert sum("2 nodes are late at once" in text for text in world.said) == 1, "once, not in every sweep"
    world.run(1.5)
    assert [world.state.nodes[node].state for node in (NODE_2, NODE_5)] == [NodeState.DEAD, NodeState.DEAD]


def test_what_a_returning_node_makes_possible_is_done_by_the_next_sweep(make_training: MakeWorld) -> None:
    """Not by its heartbeat: after a hiccup of the controller thousands come back, one after the other."""
    world = make_training()
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, lease_seconds=60.0, suspect_seconds=1.5)
    world.stop_node(NODE_5)
    world.run(1.75)
    world.kill_node(NODE_2)
    lost_touch(world, TRAINER_1)
    world.run(30.0)
    assert world.state.nodes[NODE_5].state is NodeState.SUSPECT
    assert len(world.members) == 3 and not world.state.acquisitions, (
        "the others have made up for it as they can"
    )
    agent = world.agents.alive[NODE_5]
    statuses = tuple(
        replace(trainer.status(world.at, {}), silent_seconds=0.0) for trainer in agent.trainers.values()
    )
    world.say(events.HeartbeatReceived, node=NODE_5, incarnation=agent.incarnation, trainers=statuses)
    assert world.state.nodes[NODE_5].state is NodeState.SPARE
    assert not world.state.acquisitions
    world.say(events.LeasesDue)
    assert [each.trainer for each in world.state.acquisitions.values()] == [TRAINER_5]


def test_lease_over_is_the_end_of_a_member(make_training: MakeWorld) -> None:
    """Stopped processes keep their sockets open; only time tells."""
    world = make_training()
    world.stop_node(NODE_2)
    world.run(3.0)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.NODE_LOST and incident.node == NODE_2
    assert incident.first_sign_at == 4.0
    assert incident.detected_at == 7.0


def test_spare_that_dies_is_no_incident(make_training: MakeWorld) -> None:
    """Nothing is disturbed; it is said all the same."""
    world = make_training()
    world.kill_node(NODE_5)
    world.run(4.0)
    assert world.state.nodes[NODE_5].state is NodeState.DEAD
    assert not world.incidents
    assert world.heard("it had no seat")


def test_woken_node_is_fenced_before_it_can_be_a_spare(make_training: MakeWorld) -> None:
    """Its trainers hold a state of the past: until fresh ones are ready it gets no seat."""
    world = make_training(spares=0)
    world.stop_node(NODE_2)
    world.run(6.0)
    world.wake_node(NODE_2)
    world.run(0.25)
    assert [action.node for action in world.performed(actions.Fence)] == [NODE_2]
    assert world.state.nodes[NODE_2].state is NodeState.SPARE
    world.run(0.5)
    assert TRAINER_2 not in world.members
    world.run(6.0)
    assert TRAINER_2 in world.members
    assert world.generation.members[-1].start == 2


def test_trainer_that_never_had_a_seat_survives_a_fence(make_training: MakeWorld) -> None:
    """A spare that slept is warm still; its agent says that it is ready."""
    world = make_training(nodes=3, spares=1)
    world.stop_node(NodeId("node-4"))
    world.run(4.0)
    world.wake_node(NodeId("node-4"))
    world.run(0.5)
    world.kill_node(NODE_2)
    world.run(3.0)
    assert "node-4/0" in world.members
    assert world.generation.members[-1].start == 1


def test_new_agent_on_a_node_means_that_its_members_are_gone(make_training: MakeWorld) -> None:
    """The node came back faster than its lease ran out; the processes are others."""
    world = make_training(spares=0)
    world.agents.alive.pop(NODE_3)
    world.agents.start(NODE_3)
    world.run(0.25)
    assert world.incidents[0].cause == "node-3: its agent was replaced by a new process"
    assert "node-3/0" not in world.members
    world.run(6.0)
    assert world.members[-1] == "node-3/0"
    assert not world.performed(actions.Fence)


def test_process_of_a_member_that_was_replaced_unseen_is_a_loss(make_training: MakeWorld) -> None:
    """The report of its end was lost; the next heartbeat shows another start."""
    world = make_training(spares=0)
    agent = world.agents.alive[NODE_2]
    status = replace(agent.trainers[TRAINER_2].status(world.at, {}), start=2, ready=False)
    world.say(events.HeartbeatReceived, node=NODE_2, incarnation=agent.incarnation, trainers=(status,))
    assert world.incidents[0].kind is IncidentKind.TRAINER_LOST
    assert TRAINER_2 not in world.members


def test_member_that_its_agent_does_not_list_any_more_is_a_loss(make_training: MakeWorld) -> None:
    """Given up while no controller listened, and the report of it was lost. One odd heartbeat is not enough."""
    world = make_training(spares=0)
    incarnation = world.agents.alive[NODE_2].incarnation
    world.say(events.HeartbeatReceived, node=NODE_2, incarnation=incarnation, trainers=())
    assert world.generation.number == 1
    world.say(events.HeartbeatReceived, node=NODE_2, incarnation=incarnation, trainers=())
    assert world.incidents[0].cause == "node-2/0 has no process any more, as its agent shows"
    assert TRAINER_2 not in world.members


def test_exit_of_a_member_is_answered_at_once(make_training: MakeWorld) -> None:
    """Its agent knows in milliseconds."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.TRAINER_LOST
    assert incident.detected_at == incident.decided_at == world.at
    assert world.state.nodes[NODE_2].state is NodeState.SPARE


def test_exit_that_is_told_late_counts_from_when_it_was(make_training: MakeWorld) -> None:
    """As above, for a trainer whose agent had no controller."""
    world = make_training()
    world.at += 30.0
    world.say(
        events.TrainerExited,
        trainer=TRAINER_2,
        incarnation=world.agents.alive[NODE_2].incarnation,
        start=1,
        age_seconds=20.0,
        exit_code=None,
        signal=9,
        will_restart=True,
    )
    assert world.incidents[0].first_sign_at == world.at - 20.0


def test_exit_of_an_older_process_is_ignored(make_training: MakeWorld) -> None:
    """The seat belongs to a newer one."""
    world = make_training()
    agent = world.agents.alive[NODE_2]
    world.say(
        events.TrainerExited,
        trainer=TRAINER_2,
        incarnation=agent.incarnation,
        start=0,
        exit_code=1,
        signal=None,
        will_restart=True,
    )
    assert world.generation.number == 1


def test_silent_member_is_restarted_and_left_behind(make_training: MakeWorld) -> None:
    """SIGSTOP of a trainer alone: its node goes on, and the fresh process is a spare."""
    world = make_training()
    world.stop_trainer(TRAINER_2)
    world.run(4.0)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.TRAINER_HUNG
    assert incident.first_sign_at == pytest.approx(4.0)
    assert [action.trainer for action in world.performed(actions.RestartTrainer)] == [TRAINER_2]


def test_silence_shows_in_heartbeats_when_its_report_was_lost(make_training: MakeWorld) -> None:
    """The sweep looks for itself."""
    world = make_training()
    agent = world.agents.alive[NODE_2]
    agent.trainers[TRAINER_2].told_silent = True
    world.stop_trainer(TRAINER_2)
    world.run(4.0)
    assert world.incidents[0].kind is IncidentKind.TRAINER_HUNG


def test_silent_spare_is_restarted_without_an_incident(make_training: MakeWorld) -> None:
    """It is needed well, not now."""
    world = make_training()
    world.stop_trainer(TRAINER_5)
    world.run(4.0)
    assert [action.trainer for action in world.performed(actions.RestartTrainer)] == [TRAINER_5]
    assert not world.incidents


def test_registration_is_answered_with_all_that_may_have_been_missed(make_training: MakeWorld) -> None:
    """Config, generation, and the checkpoint that still waits for the node."""
    world = make_training()
    world.cut(NODE_2)
    world.say(events.CheckpointRequested, by="ada")
    world.run(0.5)
    world.actions.clear()
    world.heal(NODE_2)
    world.run(0.25)
    kinds = [type(action) for action in world.actions if getattr(action, "node", None) == NODE_2]
    assert kinds == [actions.Welcome, actions.Assign, actions.TakeCheckpoint]
    world.run(3.0)
    assert len(world.disk.sealed) == 1


def test_agent_of_nobody_we_know_is_taken_in(make_training: MakeWorld) -> None:
    """A pod that the cluster added by itself is a spare like any other."""
    world = make_training()
    world.agents.start(NodeId("guest-1"))
    world.run(3.0)
    assert world.state.nodes[NodeId("guest-1")].state is NodeState.SPARE
