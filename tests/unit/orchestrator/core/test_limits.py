"""Waits that run out: each has a limit, a culprit where there is one, and an answer."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import actions, events
from orchestrator.core.ids import GenerationNumber, NodeId, Step, node_of
from orchestrator.core.state import IncidentKind
from tests.unit.orchestrator.core.told import (
    NODE_2,
    NODE_3,
    TRAINER_1,
    TRAINER_2,
    TRAINER_3,
    MakeWorld,
    Told,
)


def hasten(world: Told, **limits: float) -> None:
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, **limits)  # type: ignore[arg-type]


def test_sweep_over_a_healthy_cluster_is_empty(make_training: MakeWorld) -> None:
    """Four times a second, for weeks."""
    world = make_training()
    world.say(events.LeasesDue)
    assert world.last.empty


def test_cause_that_does_not_show_leads_to_the_same_members(make_training: MakeWorld) -> None:
    """After `blame_seconds` groups are rebuilt; nobody is given up on a suspicion."""
    world = make_training()
    world.break_communication(TRAINER_2)
    world.run(0.25)
    assert not world.incidents
    world.run(0.5)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.COMMUNICATION
    assert len(world.members) == 4
    assert incident.first_sign_at == 4.0


def test_blame_waits_for_a_node_that_is_late(make_training: MakeWorld) -> None:
    """Its lease decides: rebuilding with a node that is silent would only hang."""
    world = make_training()
    world.stop_node(NODE_2)
    world.run(0.75)
    world.break_communication(TRAINER_1)
    world.run(1.5)
    assert not world.incidents
    world.run(1.0)
    assert [incident.kind for incident in world.incidents] == [IncidentKind.NODE_LOST]


def test_exit_that_shows_in_time_is_the_cause(make_training: MakeWorld) -> None:
    """The report of the peers came first, the agent's a moment later."""
    world = make_training()
    world.break_communication(TRAINER_1)
    world.run(0.25)
    world.kill_trainer(TRAINER_2)
    assert [incident.kind for incident in world.incidents] == [IncidentKind.TRAINER_LOST]
    assert world.state.memory.blame is None


def test_member_that_does_not_join_is_left_behind(make_training: MakeWorld) -> None:
    """Those that joined wait for it, so it is the one."""
    world = make_training()
    hasten(world, regroup_seconds=2.0)
    world.kill_trainer(TRAINER_2)
    for member in world.generation.members[:2]:
        agent = world.agents.alive[node_of(member.trainer)]
        world.agents.report(
            agent,
            agent.trainers[member.trainer],
            events.GenerationJoined,
            generation=world.generation.number,
            committed=Step(4),
            completed_held=False,
            redoes=False,
            copied_parts=0,
        )
    world.at += 2.0
    world.say(events.LeasesDue)
    assert world.heard("node-4/0 did not join generation 2 within 2 s")
    assert world.members == ["node-1/0", "node-3/0"]


def test_where_nobody_joins_the_one_that_does_not_wait_is_to_blame(make_training: MakeWorld) -> None:
    """The handshake needs all of them, and one is stopped."""
    world = make_training()
    hasten(world, regroup_seconds=2.0)
    world.kill_trainer(TRAINER_2)
    world.stop_trainer(TRAINER_3)
    world.run(2.25)
    assert "node-3/0" not in world.members
    assert world.incidents[-1].kind is IncidentKind.TRAINER_HUNG


def test_members_that_have_not_joined_are_told_again(make_training: MakeWorld) -> None:
    """An order that was lost on the way would otherwise cost the whole limit."""
    world = make_training()
    agent = world.agents.alive[NODE_3]
    world.kill_trainer(TRAINER_2)
    agent.trainers[TRAINER_3].generation = GenerationNumber(1)
    agent.generation = GenerationNumber(1)
    world.run(7.0)
    assert len(world.state.joined) == len(world.members)


def test_stalled_member_stands_out_by_not_waiting(make_training: MakeWorld) -> None:
    """Its beat goes on, its work does not: the others wait for it, it waits for nobody."""
    world = make_training()
    hasten(world, stall_seconds=2.0, usual_steps_of_a_stall=1.0)
    world.at += 2.5
    _beat(world, NODE_3)
    world.at += 2.5
    _beat(world, NODE_3)
    world.say(events.LeasesDue)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.TRAINER_HUNG and incident.node == NODE_3
    assert [action.trainer for action in world.performed(actions.RestartTrainer)] == [TRAINER_3]


def test_who_computes_is_given_twice_as_long_after_each_stall(make_training: MakeWorld) -> None:
    """A first step that is longer than the limit must not be broken up for ever."""
    world = make_training()
    hasten(world, stall_seconds=2.0, usual_steps_of_a_stall=0.0)
    world.state.memory.stalls = 1
    world.at += 2.5
    _beat(world, NODE_3)
    world.at += 2.5
    _beat(world, NODE_3)
    world.say(events.LeasesDue)
    assert world.incidents == []
    world.at += 2.0
    _beat(world, NODE_3)
    world.say(events.LeasesDue)
    assert len(world.incidents) == 1 and world.state.memory.stalls == 2


def test_who_computes_is_not_restarted_where_that_would_cost_committed_steps(
    make_training: MakeWorld,
) -> None:
    """Two that do not wait hold all replicas of an expert: one of them is restarted, the other one is waited for."""
    world = make_training(spares=0)
    hasten(world, stall_seconds=2.0, usual_steps_of_a_stall=0.0)
    first, second = world.generation.placement[0]
    busy = [world.generation.members[rank].trainer for rank in sorted((first, second))]
    world.at += 2.5
    _beat(world, *map(node_of, busy))
    world.at += 2.5
    _beat(world, *map(node_of, busy))
    world.say(events.LeasesDue)
    assert [action.trainer for action in world.performed(actions.RestartTrainer)] == busy[:1]
    assert world.incidents[0].steps_lost == 0 and world.state.memory.stalls == 1


def test_the_last_replica_of_something_is_never_restarted_for_a_stall(make_training: MakeWorld) -> None:
    world = make_training(spares=0, replicas=1)
    hasten(world, stall_seconds=2.0, usual_steps_of_a_stall=0.0)
    world.at += 2.5
    _beat(world, NODE_3)
    world.at += 2.5
    _beat(world, NODE_3)
    world.say(events.LeasesDue)
    assert world.performed(actions.RestartTrainer) == []
    (incident,) = world.incidents
    assert incident.cause.endswith(
        "node-3/0, for whom the others wait, cannot be restarted: the last replica of something would go"
    )


def test_a_committed_step_ends_the_row_of_stalls(make_training: MakeWorld) -> None:
    world = make_training()
    world.state.memory.stalls = 2
    world.run(2.0)
    assert world.state.memory.stalls == 0


def test_where_all_wait_nobody_computes_and_the_limit_stays(make_training: MakeWorld) -> None:
    world = make_training()
    hasten(world, stall_seconds=1.0, usual_steps_of_a_stall=0.0)
    world.training.paused = True
    world.run(5.0)
    assert world.incidents and world.state.memory.stalls == 0


def test_slow_step_is_no_stall(make_training: MakeWorld) -> None:
    """The limit grows with the usual step."""
    world = make_training()
    hasten(world, stall_seconds=1.0)
    world.state.memory.step_seconds = (2.0,)
    world.training.paused = True
    world.run(15.0)
    assert not world.incidents
    world.run(10.0)
    assert world.incidents


def test_node_that_only_the_controller_cannot_reach_is_not_given_up(make_training: MakeWorld) -> None:
    """Each committed step is a sign of life of all members."""
    world = make_training()
    world.cut(NODE_3)
    world.run(20.0)
    assert not world.incidents
    world.training.paused = True
    world.run(4.0)
    assert [incident.node for incident in world.incidents] == [NODE_3]


def test_member_that_is_cut_off_while_others_regroup_is_not_waited_for(make_training: MakeWorld) -> None:
    """They stand still already, and nobody in a half-built group can lose touch with it."""
    world = make_training()
    world.kill_trainer(TRAINER_1)
    world.cut(NODE_3)
    world.at += 0.25
    world.say(events.LeasesDue)
    assert world.generation.number == 2
    world.at += 0.5
    world.say(events.LeasesDue)
    assert world.heard("node-3 is lost: its stream broke while generation 2 waits for it")


def _beat(world: Told, *busy: NodeId) -> None:
    """A heartbeat of every node; all members wait for these."""
    for node, agent in world.agents.alive.items():
        statuses = tuple(
            replace(trainer.status(world.at, {}), waiting=node not in busy, silent_seconds=0.0)
            for trainer in agent.trainers.values()
        )
        world.say(events.HeartbeatReceived, node=node, incarnation=agent.incarnation, trainers=statuses)
