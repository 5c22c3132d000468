"""A controller dies and another takes over: at whatever point, nothing is lost and nobody is disturbed."""

from __future__ import annotations

from orchestrator.core import actions, events
from orchestrator.core.ids import CauseId
from orchestrator.core.machine import Machine
from orchestrator.core.state import CheckpointState, ClusterState, JobState, NodeState
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, NODE_5, TRAINER_2, TRAINER_5, MakeWorld


def test_members_go_on_undisturbed(make_training: MakeWorld) -> None:
    """L6: training at full speed while there is no controller, and no new generation when there is one again."""
    world = make_training()
    world.stop_controller()
    world.run(10.0)
    assert world.training.committed == 24
    world.start_controller()
    world.run(2.0)
    assert world.generation.number == 1
    assert world.disk.reported_through == world.training.committed
    assert not world.performed(actions.Fence) and not world.incidents


def test_every_lease_begins_anew(make_training: MakeWorld) -> None:
    """Nobody could renew it, however long that was."""
    world = make_training()
    world.stop_controller()
    world.run(100.0)
    world.start_controller()
    world.run(2.0)
    assert {node.state for node in world.state.nodes.values()} == {NodeState.ACTIVE, NodeState.SPARE}


def test_death_in_between_is_found_by_the_fresh_lease(make_training: MakeWorld) -> None:
    """Who does not register again is gone."""
    world = make_training()
    world.stop_controller()
    world.kill_node(NODE_2)
    world.run(5.0)
    world.start_controller()
    world.run(8.0)
    (incident,) = world.incidents
    assert incident.node == NODE_2 and incident.closed and incident.steps_lost == 0


def test_suspicion_does_not_outlive_the_controller(make_training: MakeWorld) -> None:
    """The stream that broke was its own."""
    world = make_training()
    world.cut(NODE_2)
    world.stop_controller()
    world.start_controller()
    assert world.state.nodes[NODE_2].state is NodeState.ACTIVE


def test_planned_generation_entered_meanwhile_is_found_in_force(make_training: MakeWorld) -> None:
    """It is stored, and the members say where they are."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.5)
    world.training.paused = True
    world.run(0.25)
    assert world.planned()
    world.stop_controller()
    world.training.paused = False
    world.agents.forgetful = True
    world.run(3.0)
    world.start_controller()
    assert world.generation.number == 2 and world.planned()
    world.run(1.0)
    assert world.generation.number == 3 and not world.planned()
    assert world.incidents[0].closed


def test_planned_generation_not_entered_yet_is_still_planned(make_training: MakeWorld) -> None:
    """Whoever did not get it is told when it registers."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.5)
    world.training.paused = True
    world.run(0.25)
    world.stop_controller()
    world.start_controller()
    world.run(0.5)
    assert world.planned()
    world.training.paused = False
    world.run(1.0)
    assert world.generation.number == 3


def test_copies_are_planned_again(make_training: MakeWorld) -> None:
    """They were not stored, since they can be asked for again."""
    world = make_training()
    world.kill_node(NODE_2)
    world.run(1.0)
    assert world.state.acquisitions
    world.stop_controller()
    world.start_controller()
    assert not world.state.acquisitions
    world.run(4.0)
    assert world.members[-1] == "node-5/0"
    assert [order.acquisition for order in world.performed(actions.Acquire)] == ["acq-1-1", "acq-2-1"]


def test_checkpoint_in_the_middle_is_completed(make_training: MakeWorld) -> None:
    """Agents repeat what they reported into the void."""
    world = make_training()
    world.say(events.CheckpointRequested, by="ada")
    world.run(0.5)
    world.stop_controller()
    world.run(3.0)
    world.start_controller()
    world.run(2.0)
    assert [each.state for each in world.state.checkpoints.values()] == [CheckpointState.SEALED]


def test_controller_that_dies_before_the_start_starts_the_job_all_the_same(make_world: MakeWorld) -> None:
    """Pending is a state like any other."""
    world = make_world()
    world.start_job()
    world.run(1.0)
    world.stop_controller()
    world.start_controller()
    world.run(3.0)
    assert len(world.members) == 4
    assert world.state.job is not None and world.state.job.starts == 2


def test_wait_for_nodes_goes_on_under_the_next_controller(make_training: MakeWorld) -> None:
    """The generation without members is stored too."""
    world = make_training(nodes=2, spares=0)
    world.kill_node(NODE_1)
    world.kill_node(NODE_2)
    world.run(3.0)
    world.stop_controller()
    world.start_controller()
    world.run(6.0)
    assert world.members == ["node-1/0", "node-2/0"]


def test_trainer_that_died_meanwhile_is_seen_at_the_registration(make_training: MakeWorld) -> None:
    """Its agent has another process now; the report of the end was lost."""
    world = make_training()
    world.agents.forgetful = True
    world.stop_controller()
    world.kill_trainer(TRAINER_2)
    world.run(1.0)
    world.start_controller()
    world.run(1.0)
    assert TRAINER_2 not in world.members
    assert len(world.incidents) == 1


def test_first_start_finds_nothing_and_says_nothing() -> None:
    """There is no job yet."""
    machine = Machine(ClusterState())
    assert machine.handle(events.ControllerStarted(at=0.0, cause_id=CauseId("c"))).empty


def test_start_after_the_end_only_counts_itself(make_training: MakeWorld) -> None:
    """So that the ids of what it still says do not repeat."""
    world = make_training(nodes=2, spares=0, steps=5)
    world.run(4.0)
    assert world.state.job is not None and world.state.job.state is JobState.FINISHED
    world.stop_controller()
    world.start_controller()
    world.agents.start(NODE_1)
    world.run(0.5)
    assert world.performed(actions.StopNode)[-1].id == "a-2-1"


def test_fenced_spare_of_before_is_a_spare_again(make_training: MakeWorld) -> None:
    """What the last controller knew about it is not needed."""
    world = make_training()
    world.stop_node(NODE_5)
    world.run(4.0)
    world.stop_controller()
    world.wake_node(NODE_5)
    world.start_controller()
    world.run(4.0)
    assert world.state.nodes[NODE_5].state is NodeState.SPARE
    world.kill_node(NODE_2)
    world.run(4.0)
    assert world.members[-1] == "node-5/0"


def test_failures_that_are_told_again_are_not_counted_again(make_training: MakeWorld) -> None:
    """Agents send what they have said to the last controller; a node would be kept out for it a second time."""
    world = make_training()
    for _ in range(2):
        world.kill_trainer(TRAINER_5)
        world.run(3.0)
    before = world.state.health[NODE_5].losses
    assert len(before) == 2
    world.stop_controller()
    world.start_controller()
    world.run(2.0)
    for start in (1, 2):
        world.say(
            events.TrainerExited,
            trainer=TRAINER_5,
            incarnation=world.state.nodes[NODE_5].incarnation,
            start=start,
            exit_code=None,
            signal=9,
            will_restart=True,
        )
    assert world.state.health[NODE_5].losses == before
    world.kill_trainer(TRAINER_5)
    world.run(1.0)
    assert world.state.health[NODE_5].quarantined_until is not None, "a new failure counts, and is the third"


def test_death_of_a_member_while_there_was_no_controller_counts(make_training: MakeWorld) -> None:
    """Nobody can have counted it: the generation would be another one."""
    world = make_training()
    world.stop_controller()
    world.kill_trainer(TRAINER_2)
    world.run(3.0)
    world.start_controller()
    world.run(3.0)
    assert len(world.state.health[NODE_2].losses) == 1
