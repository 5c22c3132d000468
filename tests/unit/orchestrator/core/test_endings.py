"""How a job ends by itself: nothing computed is lost, and no end waits for ever."""

from __future__ import annotations

from orchestrator.core import actions, events
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.state import CheckpointPurpose, CheckpointState, JobState
from tests.unit.orchestrator.core.told import NODE_2, TRAINER_1, TRAINER_2, MakeWorld, Told


def job_state(world: Told) -> JobState:
    assert world.state.job is not None
    return world.state.job.state


def test_finished_job_has_its_last_step_on_disk(make_training: MakeWorld) -> None:
    """The members idle at the last step while it is written."""
    world = make_training(nodes=2, spares=0, steps=6)
    world.run(4.0)
    assert job_state(world) is JobState.FINISHED
    (checkpoint,) = world.state.checkpoints.values()
    assert checkpoint.purpose is CheckpointPurpose.FINISH and checkpoint.step == 6
    assert world.ended is not None and world.ended.succeeded


def test_job_finishes_without_a_checkpoint_when_none_can_be_written(make_training: MakeWorld) -> None:
    """After a few attempts, and it says so."""
    world = make_training(nodes=2, spares=0, steps=6)
    world.training.fail_checkpoints.add(TRAINER_1)
    world.run(12.0)
    assert job_state(world) is JobState.FINISHED
    assert "no space left on device" in (world.ended.reason if world.ended else "")


def test_loss_at_the_very_end_is_recovered_from_first(make_training: MakeWorld) -> None:
    """The survivors regroup, say that they are done, and the last state is written by them."""
    world = make_training(nodes=2, spares=0, steps=6)
    world.run(1.25)
    world.kill_trainer(TRAINER_2, again=False)
    world.run(8.0)
    assert job_state(world) is JobState.FINISHED
    assert next(iter(world.state.checkpoints.values())).state is CheckpointState.FAILED
    assert world.incidents[0].regrouped_at is not None


def test_end_that_was_told_to_nobody_shows_in_heartbeats(make_training: MakeWorld) -> None:
    """The reports were lost with a controller; the phase of every member says the same."""
    world = make_training(nodes=2, spares=0, steps=8)
    world.agents.forgetful = True
    world.stop_controller()
    world.run(4.0)
    for agent in world.agents.alive.values():
        for trainer in agent.trainers.values():
            assert trainer.finished
    world.start_controller()
    world.run(4.0)
    assert job_state(world) is JobState.FINISHED


DAMAGED = "data.path is 'a.tokens': a.tokens is damaged in the 262144 bytes after 4096; copy it again"


def test_data_that_cannot_be_read_ends_the_job_with_all_of_it_on_disk(make_training: MakeWorld) -> None:
    """One error that says what to do; no incident, no restart, and nothing to compute again."""
    world = make_training()
    world.training.unreadable[TRAINER_2] = DAMAGED
    world.run(4.0)
    assert job_state(world) is JobState.FAILED
    (checkpoint,) = world.state.checkpoints.values()
    assert checkpoint.state is CheckpointState.SEALED
    assert checkpoint.step == world.training.committed == world.state.committed == 4
    assert world.ended is not None and not world.ended.succeeded
    assert f"node-2/0 cannot read its data: {DAMAGED}" in world.ended.reason
    assert f"{checkpoint.name} holds all 4 committed steps" in world.ended.reason
    assert world.incidents == [] and not world.performed(actions.RestartTrainer)


def test_data_that_cannot_be_read_ends_the_job_without_a_disk_for_checkpoints(
    make_training: MakeWorld,
) -> None:
    world = make_training()
    world.training.unreadable[TRAINER_2] = DAMAGED
    world.training.fail_checkpoints.add(TRAINER_1)
    world.run(12.0)
    assert job_state(world) is JobState.FAILED
    assert world.ended is not None and "no space left on device" in world.ended.reason


def test_members_that_cannot_read_their_data_are_found_so_by_another_controller(
    make_training: MakeWorld,
) -> None:
    """It happened while there was none."""
    world = make_training()
    world.training.unreadable[TRAINER_2] = DAMAGED
    world.agents.forgetful = True
    world.stop_controller()
    world.run(4.0)
    world.start_controller()
    world.run(4.0)
    assert job_state(world) is JobState.FAILED
    assert world.ended is not None and "holds all 4 committed steps" in world.ended.reason


def test_stop_ends_at_a_boundary_with_all_of_it_on_disk(make_training: MakeWorld) -> None:
    """Nothing that was computed is computed again by whoever resumes."""
    world = make_training()
    world.say(events.StopRequested, by="ada")
    assert job_state(world) is JobState.STOPPING
    world.run(4.0)
    assert job_state(world) is JobState.STOPPED
    (checkpoint,) = world.state.checkpoints.values()
    assert checkpoint.step == world.training.committed == world.state.committed


def test_loss_while_stopping_is_recovered_from_and_the_stop_goes_on(make_training: MakeWorld) -> None:
    """The new generation is told again to leave."""
    world = make_training()
    world.say(events.StopRequested, by="ada")
    world.kill_trainer(TRAINER_2)
    assert job_state(world) is JobState.STOPPING
    world.run(6.0)
    assert job_state(world) is JobState.STOPPED
    assert {action.generation for action in world.performed(actions.StopTraining)} == {1, 2}


def test_stop_reaches_a_node_that_was_cut_off(make_training: MakeWorld) -> None:
    """Its registration is answered with the order."""
    world = make_training()
    world.cut(NODE_2)
    world.say(events.StopRequested, by="ada")
    world.run(1.0)
    assert job_state(world) is JobState.STOPPING
    world.heal(NODE_2)
    world.run(4.0)
    assert job_state(world) is JobState.STOPPED


def test_stop_survives_the_controller(make_training: MakeWorld) -> None:
    """The wish is stored with the job."""
    world = make_training()
    world.cut(NODE_2)
    world.say(events.StopRequested, by="ada")
    world.stop_controller()
    world.heal(NODE_2)
    world.run(1.0)
    world.start_controller()
    world.run(6.0)
    assert job_state(world) is JobState.STOPPED


def test_stop_before_the_start_ends_at_once(make_world: MakeWorld) -> None:
    """There is nothing to keep."""
    world = make_world()
    world.start_job()
    world.say(events.StopRequested, by="ada")
    assert job_state(world) is JobState.STOPPED
    assert world.ended is not None and world.ended.succeeded


def test_stop_is_answered_in_words_when_there_is_nothing_to_stop(make_world: MakeWorld) -> None:
    """A human always gets an answer."""
    world = make_world(nodes=2, spares=0, steps=5)
    world.say(events.StopRequested, by="ada")
    assert world.heard("there is no job to stop")
    world.start_job()
    world.run(3.0)
    world.say(events.StopRequested, by="ada")
    world.say(events.StopRequested, by="bob")
    assert world.heard("is stopping already")
    world.run(6.0)
    world.say(events.StopRequested, by="ada")
    assert world.heard("the job is over already")


def test_repeated_end_of_an_older_generation_is_ignored(make_training: MakeWorld) -> None:
    """Agents repeat reports after a registration."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    world.run(2.0)
    world.say(
        events.TrainingEnded,
        trainer=TRAINER_1,
        incarnation="node-1#1",
        start=1,
        generation=GenerationNumber(1),
        step=Step(9),
        finished=True,
    )
    assert not world.state.memory.ended
