"""From a submission to the first generation: who is waited for, who trains, and what ends a job early."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import actions, events
from orchestrator.core.spec import TimeoutSpec
from orchestrator.core.state import GenerationKind, JobState, NodeState
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, NODE_3, TRAINER_2, MakeWorld


def test_submission_asks_for_all_nodes_and_spares(make_world: MakeWorld) -> None:
    """Spares are started with the others: a warm spare is the point of having one."""
    world = make_world(nodes=2, spares=1)
    world.start_job()
    assert [action.node for action in world.performed(actions.StartNode)] == [NODE_1, NODE_2, NODE_3]
    assert {node.state for node in world.state.nodes.values()} == {NodeState.REQUESTED}
    assert world.state.job is not None and world.state.job.state is JobState.PENDING


def test_first_nodes_by_name_train_and_the_rest_are_spares(make_training: MakeWorld) -> None:
    """Two runs of a job look alike, and a failure that is injected into node-2 meets a member."""
    world = make_training(nodes=3, spares=2)
    assert world.members == ["node-1/0", "node-2/0", "node-3/0"]
    assert world.generation.kind is GenerationKind.INITIAL
    assert world.state.nodes[NODE_1].state is NodeState.ACTIVE


def test_all_devices_of_a_node_train(make_training: MakeWorld) -> None:
    """Ranks go node by node."""
    world = make_training(nodes=2, spares=0, devices=2)
    assert world.members == ["node-1/0", "node-1/1", "node-2/0", "node-2/1"]


def test_spare_steps_in_for_a_node_that_is_late(make_world: MakeWorld) -> None:
    """Enough are ready: the first ones by name are waited for only so long."""
    world = make_world(nodes=2, spares=1)
    world.start_job()
    world.run(0.5)
    world.agents.alive[NODE_2].trainers[TRAINER_2].ready_at = 60.0
    world.run(14.0)
    assert world.members == ["node-1/0", "node-3/0"]
    assert world.heard("node-2 did not come within 10 s")


def test_too_few_nodes_end_the_job_with_their_names(make_world: MakeWorld) -> None:
    """A job that cannot start says who is missing."""
    world = make_world(nodes=2, spares=0)
    world.spec = replace(world.spec, timeouts=TimeoutSpec(start_seconds=20.0))
    world.start_job()
    world.agents.alive[NODE_2].trainers[TRAINER_2].ready_at = 60.0
    world.run(21.0)
    assert world.ended is not None and not world.ended.succeeded
    assert "1 of 2 nodes" in world.ended.reason and "node-2" in world.ended.reason
    assert world.state.job is not None and world.state.job.ended_at == 20.0


def test_node_that_dies_before_the_start_is_started_again(make_world: MakeWorld) -> None:
    """The cluster is asked again, a bounded number of times."""
    world = make_world(nodes=2, spares=0)
    world.start_job()
    world.run(1.0)
    world.kill_node(NODE_2)
    world.run(8.0)
    assert world.members == ["node-1/0", "node-2/0"]
    assert len(world.performed(actions.StartNode)) == 3


def test_refusal_of_a_spare_does_not_stop_a_job(make_world: MakeWorld) -> None:
    """Enough others can run it."""
    world = make_world(nodes=2, spares=1)
    world.start_job()
    world.agents.alive[NODE_2].trainers[TRAINER_2].refuses = "no memory"
    world.run(4.0)
    assert world.members == ["node-1/0", "node-3/0"]


def test_refusal_that_leaves_too_few_ends_the_job_at_once(make_world: MakeWorld) -> None:
    """Waiting would not help."""
    world = make_world(nodes=2, spares=0)
    world.start_job()
    world.agents.alive[NODE_2].trainers[TRAINER_2].refuses = "no memory"
    world.run(4.0)
    assert world.ended is not None and "no memory" in world.ended.reason


def test_second_submission_without_resume_changes_nothing(make_training: MakeWorld) -> None:
    """One job per controller, and its work is not thrown away by mistake."""
    world = make_training()
    world.start_job()
    assert world.heard("is here already")
    assert world.last.changes == () and world.last.actions == ()


def test_resumed_job_goes_on_from_its_newest_checkpoint(make_training: MakeWorld) -> None:
    """Generation numbers go on too; what older generations still report is fenced off."""
    world = make_training(nodes=2, spares=0)
    world.say(events.StopRequested, by="ada")
    world.run(4.0)
    stopped_at = world.disk.reported_through
    world.start_job(resume=True)
    world.run(4.0)
    assert world.generation.kind is GenerationKind.RESTORE
    assert world.generation.number == 2
    assert world.generation.restore_step == stopped_at
    assert world.performed(actions.RollBackLedger)[-1].generation == 2
    assert world.disk.reported_through > stopped_at


def test_agents_of_an_earlier_run_are_fenced_on_resume(make_training: MakeWorld) -> None:
    """Their trainers hold a state of the past; fresh ones start."""
    world = make_training(nodes=2, spares=0)
    world.stop_controller()
    world.start_controller(resume=True)
    world.run(6.0)
    assert {action.node for action in world.performed(actions.Fence)} == {NODE_1, NODE_2}
    assert all(member.start == 2 for member in world.generation.members)
    assert world.disk.reported_through > 0


def test_agent_that_registers_after_the_end_is_sent_away(make_training: MakeWorld) -> None:
    """It would wait for ever."""
    world = make_training(nodes=2, spares=0, steps=5)
    world.run(4.0)
    assert world.ended is not None and world.ended.succeeded
    world.agents.start(NODE_1)
    world.run(0.5)
    assert world.performed(actions.StopNode)[-1].reason == "the job is over (finished)"


def test_end_stops_every_node(make_training: MakeWorld) -> None:
    """Also the ones that were given up: a stopped process is still a process."""
    world = make_training(nodes=2, spares=1, steps=12)
    world.stop_node(NODE_3)
    world.run(8.0)
    assert world.ended is not None
    assert {action.node for action in world.performed(actions.StopNode)} == {NODE_1, NODE_2, NODE_3}
