"""The action ladder: the first rung that fits, its reason, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import actions, events, ladder, recovery
from orchestrator.core.decision import Decision
from orchestrator.core.ids import NodeId, Rank, TrainerId
from orchestrator.core.ladder import Situation
from orchestrator.core.policy import Policy
from orchestrator.core.state import GenerationKind, JobState
from tests.unit.orchestrator.core.told import (
    NODE_1,
    NODE_2,
    NODE_3,
    NODE_4,
    NODE_5,
    TRAINER_1,
    TRAINER_2,
    TRAINER_3,
    MakeWorld,
    Told,
)


def situation_of(world: Told, *gone: TrainerId) -> Situation:
    decision = Decision(world.state, Policy.of(world.spec), world.at)
    return recovery.assess(decision, world.generation, set(gone))


def chosen(situation: Situation) -> str:
    return next(rule.__name__ for rule in ladder.LADDER if rule(situation) is not None)


def test_ladder_takes_the_first_rung_that_fits(make_training: MakeWorld) -> None:
    """From the cheapest answer to the end of the job."""
    world = make_training(spares=0)
    everybody = [member.trainer for member in world.generation.members]
    assert chosen(situation_of(world)) == "rebuild"
    assert chosen(situation_of(world, TRAINER_1)) == "fail_over"
    assert chosen(situation_of(world, TRAINER_1, TRAINER_3)) == "fail_over"
    assert chosen(situation_of(world, TRAINER_1, TRAINER_2)) == "go_back"
    assert chosen(situation_of(world, *everybody)) == "wait_for_nodes"
    assert chosen(replace(situation_of(world), must_restore="it is not sound")) == "go_back"
    assert chosen(replace(situation_of(world), idle_generations=14)) == "give_up"


def test_every_answer_says_why_and_what_else_was_possible(make_training: MakeWorld) -> None:
    """L8: for whatever was lost."""
    world = make_training()
    for gone in ((), (TRAINER_1,), (TRAINER_1, TRAINER_2)):
        situation = situation_of(world, *gone)
        answer = next(found for rule in ladder.LADDER if (found := rule(situation)) is not None)
        assert answer.action and answer.reason and answer.alternative


def test_nothing_moves_in_a_failover(make_training: MakeWorld) -> None:
    """Dead replicas leave the placement, the next backup leads, ranks close up in order."""
    world = make_training()
    before = world.generation
    world.kill_trainer(TRAINER_2)
    after = world.generation
    assert after.kind is GenerationKind.IMMEDIATE
    assert [member.trainer for member in after.members] == ["node-1/0", "node-3/0", "node-4/0"]
    for old, new in zip(before.placement, after.placement, strict=True):
        kept = [before.members[rank].trainer for rank in old if before.members[rank].trainer != TRAINER_2]
        assert [after.members[rank].trainer for rank in new] == kept


def test_several_failures_have_an_incident_each_and_one_answer(make_training: MakeWorld) -> None:
    """A rack that dies is one decision."""
    world = make_training(nodes=5, spares=0, experts=5)
    world.stop_node(NODE_1)
    world.stop_node(NODE_3)
    world.run(3.0)
    first, second = world.incidents
    assert (first.node, second.node) == (NODE_1, NODE_3)
    assert first.generation == second.generation == world.generation.number == 2


def test_last_replica_gone_takes_everybody_back(make_training: MakeWorld) -> None:
    """Survivors and spares together, and the words name the expert and the price."""
    world = make_training()
    world.say(events.CheckpointRequested, by="ada")
    world.run(4.0)
    world.stop_node(NODE_1)
    world.stop_node(NODE_2)
    world.run(3.0)
    assert world.generation.kind is GenerationKind.RESTORE
    assert world.members == ["node-3/0", "node-4/0", "node-5/0"]
    assert world.generation.restore_name == "step-00000005.g0001"
    assert {incident.steps_lost for incident in world.incidents} == {7}
    assert world.heard("expert 0 lost the last replica")
    assert [action.step for action in world.performed(actions.RollBackLedger)] == [5]


def test_reports_of_undone_steps_do_not_count(make_training: MakeWorld) -> None:
    """The ledger goes back with the trainers, and what is assigned says from where to report."""
    world = make_training()
    world.stop_node(NODE_1)
    world.stop_node(NODE_2)
    world.run(3.0)
    assert world.state.committed == 0
    assert world.performed(actions.Assign)[-1].reported_through == 0
    world.run(3.0)
    assert world.disk.ledger == list(range(1, world.state.committed + 1))


def test_failure_during_a_restore_restores_again(make_training: MakeWorld) -> None:
    """Some hold the old state, some the restored one: neither can go on with the other."""
    world = make_training(nodes=4, spares=2)
    world.stop_node(NODE_1)
    world.stop_node(NODE_2)
    world.run(2.75)
    world.stop_trainer(TRAINER_3)
    world.run(0.25)
    assert world.generation.kind is GenerationKind.RESTORE
    world.kill_trainer(world.generation.members[1].trainer)
    assert world.generation.kind is GenerationKind.RESTORE
    assert world.heard("had not been entered by all")


def test_restore_that_has_committed_a_step_is_not_repeated(make_training: MakeWorld) -> None:
    """After a restart of the controller nobody is known to have joined; a committed step proves that all had."""
    world = make_training()
    world.stop_node(NODE_1)
    world.stop_node(NODE_2)
    world.run(6.0)
    world.stop_controller()
    world.start_controller()
    world.kill_node(NODE_3)
    world.run(6.0)
    assert world.incidents[-1].action == "fail over to backups"


def test_nobody_left_waits_for_nodes_and_begins_again(make_training: MakeWorld) -> None:
    """A generation without members fences the old ones; lost nodes are asked for again."""
    world = make_training(nodes=2, spares=0)
    world.kill_node(NODE_1)
    world.kill_node(NODE_2)
    world.run(3.0)
    vacant = world.generation
    assert (vacant.number, vacant.members) == (2, ())
    assert world.state.job is not None and world.state.job.state is JobState.RECOVERING
    world.run(4.0)
    assert world.generation.kind is GenerationKind.RESTORE
    assert world.members == ["node-1/0", "node-2/0"]
    assert all(incident.closed for incident in world.incidents)


def test_nobody_coming_back_ends_the_job(make_training: MakeWorld) -> None:
    """L9: the wait has a limit."""
    world = make_training(nodes=2, spares=0)
    for node in (NODE_1, NODE_2):
        world.barren.add(node)
        world.kill_node(node)
    world.run(190.0)
    assert world.ended is not None and "no trainer came back within 180 s" in world.ended.reason


def test_those_that_come_back_go_on_without_the_others(make_training: MakeWorld) -> None:
    """After the limit, whoever is there trains."""
    world = make_training(nodes=2, spares=0)
    world.barren.add(NODE_1)
    world.kill_node(NODE_1)
    world.kill_node(NODE_2)
    world.run(186.0)
    assert world.members == ["node-2/0"]


def test_generation_after_generation_without_a_step_breaks_the_circuit(make_training: MakeWorld) -> None:
    """What fails each time would fail again."""
    world = make_training(nodes=2, spares=0)
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, idle_generations=1)
    for _ in range(4):
        world.break_communication(TRAINER_1)
        world.training.paused = True
        world.run(1.0)
    assert world.ended is not None
    assert world.ended.reason.startswith("3 generations in a row committed no step")


def test_committed_step_closes_the_circuit_again(make_training: MakeWorld) -> None:
    """Failures with progress between them are survived for ever."""
    world = make_training(nodes=2, spares=0)
    assert world.machine is not None
    world.machine.policy = replace(world.machine.policy, idle_generations=1)
    for _ in range(6):
        world.break_communication(TRAINER_1)
        world.run(2.0)
    assert world.ended is None
    assert len(world.incidents) == 6


def test_loss_while_a_planned_generation_is_pending_drops_it(make_training: MakeWorld) -> None:
    """Numbers only grow: the answer is above the planned one."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.5)
    world.training.paused = True
    world.run(0.25)
    assert world.planned() == 3
    world.kill_trainer(TRAINER_3)
    assert not world.planned()
    assert world.generation.number == 4


def test_spare_is_named_when_there_is_one(make_training: MakeWorld) -> None:
    """Who reads the reason knows what comes next."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    assert world.heard("spare node-5/0 is ready")
    lonely = make_training(spares=0)
    lonely.kill_trainer(TRAINER_2, again=False)
    assert lonely.heard("no spare is ready")


@pytest.mark.parametrize("node", [NODE_1, NODE_2, NODE_3, NODE_4])
def test_any_single_node_can_be_lost(make_training: MakeWorld, node: NodeId) -> None:
    """The demo's promise: whichever it is, nothing is rolled back and the incident closes."""
    world = make_training(spares=1, experts=16)
    world.kill_node(node)
    world.run(8.0)
    (incident,) = world.incidents
    assert incident.closed and incident.steps_lost == 0 and incident.action == "fail over to backups"
    assert world.members[-1] == f"{NODE_5}/0"


def test_members_keep_their_addresses_and_processes(make_training: MakeWorld) -> None:
    """Survivors are not started again: same process, same doors."""
    world = make_training()
    before = {member.trainer: replace(member, rank=Rank(0)) for member in world.generation.members}
    world.kill_trainer(TRAINER_2)
    for member in world.generation.members:
        assert before[member.trainer] == replace(member, rank=Rank(0))
