"""Checkpoints: one at a time, complete or not at all, the right one restored, the right ones deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from orchestrator.core import actions, checkpoints, events
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.state import CheckpointPurpose, CheckpointState
from tests.scenarios import training
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, TRAINER_1, TRAINER_2, MakeWorld, Told


def states(world: Told) -> list[CheckpointState]:
    return [each.state for each in world.state.checkpoints.values()]


def write_shard(world: Told, rank: int, changes: Mapping[str, object] = MappingProxyType({})) -> None:
    """The report of one rank, as its agent sends it."""
    member = world.generation.members[rank]
    fields: dict[str, object] = {
        "trainer": member.trainer,
        "incarnation": "whoever",
        "start": 1,
        "request": "ckpt-0001",
        "generation": world.generation.number,
        "step": Step(5),
        "name": "step-00000005.g0001",
        "rank": rank,
        "shard": f'{{"rank": {rank}}}',
        "bytes": 10,
    }
    world.say(events.ShardWritten, **(fields | dict(changes)))


@pytest.fixture
def requested(make_training: MakeWorld) -> Told:
    """Two members, a checkpoint has been asked for, nobody has written."""
    world = make_training(nodes=2, spares=0)
    world.training.paused = True
    world.say(events.CheckpointRequested, by="ada")
    return world


def test_timer_takes_a_checkpoint_that_all_members_write_and_one_seals(make_training: MakeWorld) -> None:
    """Request, shards, seal: three states, and the ledger of it is the row."""
    world = make_training()
    world.say(events.CheckpointDue)
    assert states(world) == [CheckpointState.REQUESTED]
    world.run(3.0)
    (checkpoint,) = world.state.checkpoints.values()
    assert checkpoint.state is CheckpointState.SEALED
    assert (checkpoint.step, checkpoint.name) == (5, "step-00000005.g0001")
    assert all(checkpoint.shards) and len(checkpoint.shards) == 4
    assert checkpoint.sealed_at is not None and checkpoint.sealed_at > checkpoint.requested_at
    assert world.performed(actions.SealCheckpoint)[0].trainer == TRAINER_1


def test_nothing_new_needs_no_checkpoint(make_training: MakeWorld) -> None:
    """The timer fires while no step was committed since the last one."""
    world = make_training()
    world.say(events.CheckpointDue)
    world.run(0.5)
    world.training.paused = True
    world.run(2.0)
    assert states(world) == [CheckpointState.SEALED]
    world.say(events.CheckpointDue)
    assert len(world.state.checkpoints) == 1


def test_one_at_a_time(requested: Told) -> None:
    """A human who asks during another one gets that one, and is told."""
    requested.say(events.CheckpointRequested, by="bob")
    assert requested.heard("ckpt-0001 is being taken already: bob gets that one")
    requested.say(events.CheckpointDue)
    assert len(requested.state.checkpoints) == 1


def test_checkpoint_that_is_due_while_regrouping_is_taken_afterwards(make_training: MakeWorld) -> None:
    """Not lost, and not taken by half of the members."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    world.say(events.CheckpointDue)
    assert not world.state.checkpoints
    world.run(1.0)
    assert len(world.state.checkpoints) == 1


def test_nobody_waits_for_a_slow_disk(make_training: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the members have their copies a spare is seated, while they write; the checkpoint is sealed all the same."""
    monkeypatch.setattr(training, "WRITE_SECONDS", 60.0)
    world = make_training(nodes=2, spares=1)
    world.say(events.CheckpointRequested, by="ada")
    world.run(1.0)
    (checkpoint,) = world.state.checkpoints.values()
    assert (checkpoint.state, checkpoint.shards) == (CheckpointState.WRITING, ("", ""))
    world.say(events.DrainRequested, node=NODE_2, by="ada")
    world.run(10.0)
    assert world.members == ["node-1/0", "node-3/0"]
    assert states(world) == [CheckpointState.WRITING]
    world.run(60.0)
    assert states(world) == [CheckpointState.SEALED]


def test_a_seat_does_not_wait_for_memory_that_is_made_for_a_copy(make_training: MakeWorld) -> None:
    """A checkpoint that is not taken at the boundary where others take over is taken again in their generation."""
    world = make_training(nodes=2, spares=1)
    reluctant = world.agents.alive[NODE_2]
    world.say(events.CheckpointRequested, by="ada")
    reluctant.checkpoints.clear()
    world.say(events.DrainRequested, node=NODE_2, by="ada")
    world.run(3.0)
    assert (states(world), world.members) == ([CheckpointState.REQUESTED], ["node-1/0", "node-2/0"])
    world.run(10.0)
    assert world.members == ["node-1/0", "node-3/0"]
    assert states(world) == [CheckpointState.FAILED, CheckpointState.SEALED]
    assert world.heard("ckpt-0001 has failed: a planned generation took over before it could be copied")


def test_members_that_wrote_different_steps_did_not_agree(requested: Told) -> None:
    """Such a checkpoint would be of no state that ever was."""
    write_shard(requested, 0)
    write_shard(requested, 1, {"step": Step(6), "name": "step-00000006.g0001"})
    assert states(requested) == [CheckpointState.FAILED]
    assert requested.heard("did not agree")


@pytest.mark.parametrize(
    "changes",
    [
        {"request": "ckpt-0009"},
        {"generation": GenerationNumber(9)},
        {"rank": 2},
        {"rank": -1},
    ],
)
def test_shard_of_something_else_is_ignored(requested: Told, changes: dict[str, object]) -> None:
    """From another request, generation or world."""
    before = requested.state.checkpoints["ckpt-0001"]
    write_shard(requested, 0, changes)
    assert requested.last.empty
    assert requested.state.checkpoints["ckpt-0001"] == before


def test_shard_told_twice_counts_once(requested: Told) -> None:
    """Agents repeat what may have been lost."""
    write_shard(requested, 0)
    write_shard(requested, 0)
    assert requested.last.empty
    assert requested.state.checkpoints["ckpt-0001"].bytes == 10


def test_rank_with_nothing_to_write_has_written(requested: Told) -> None:
    """More trainers than parts: an empty entry completes the checkpoint and stays empty in the manifest."""
    write_shard(requested, 0)
    write_shard(requested, 1, {"shard": "", "bytes": 0})
    assert states(requested) == [CheckpointState.SEALED]
    assert requested.performed(actions.SealCheckpoint)[0].shards == ('{"rank": 0}', "")


def test_failure_to_write_does_not_touch_training(make_training: MakeWorld) -> None:
    """A full disk is a sentence, not an incident."""
    world = make_training()
    world.training.fail_checkpoints.add(TRAINER_2)
    world.say(events.CheckpointDue)
    world.run(3.0)
    assert states(world) == [CheckpointState.FAILED]
    assert not world.incidents and world.generation.number == 1
    assert world.state.committed > 8


def test_human_gets_a_few_attempts(make_training: MakeWorld) -> None:
    """With a pause between them; then it is said that it is not tried again."""
    world = make_training()
    world.training.fail_checkpoints.add(TRAINER_2)
    world.say(events.CheckpointRequested, by="ada")
    world.run(15.0)
    assert states(world) == [CheckpointState.FAILED] * 3
    assert world.heard("3 in a row have failed: it is not tried again")


def test_failure_of_a_member_ends_an_incomplete_checkpoint(make_training: MakeWorld) -> None:
    """Its shards are of a generation that is no more; whoever asked gets another."""
    world = make_training()
    world.say(events.CheckpointRequested, by="ada")
    world.run(0.5)
    world.kill_trainer(TRAINER_2)
    assert states(world) == [CheckpointState.FAILED]
    world.run(8.0)
    assert states(world) == [CheckpointState.FAILED, CheckpointState.SEALED]


def test_complete_checkpoint_survives_its_sealer(requested: Told) -> None:
    """All shards are on disk: any member can write the manifest."""
    requested.cut(NODE_1)
    write_shard(requested, 0)
    write_shard(requested, 1)
    assert states(requested) == [CheckpointState.WRITING]
    requested.kill_node(NODE_1)
    requested.run(6.0)
    assert requested.performed(actions.SealCheckpoint)[-1].trainer == TRAINER_2
    assert states(requested) == [CheckpointState.SEALED]


def test_seal_that_came_late_counts(requested: Told) -> None:
    """The manifest is in place, whatever we had decided meanwhile."""
    requested.say(
        events.CheckpointFailed,
        trainer=TRAINER_2,
        incarnation="node-2#2",
        start=1,
        request="ckpt-0001",
        reason="slow",
    )
    assert states(requested) == [CheckpointState.FAILED]
    requested.say(
        events.CheckpointSealed,
        trainer=TRAINER_1,
        incarnation="node-1#1",
        start=1,
        request="ckpt-0001",
        step=Step(4),
        name="step-00000004.g0001",
        path="/somewhere",
        bytes=7,
    )
    assert states(requested) == [CheckpointState.SEALED]


def test_seal_that_comes_after_training_went_back_is_deleted(requested: Told) -> None:
    """The ledger has given up the steps up to it: restored, it would leave a gap that nobody can fill."""
    requested.state.committed = Step(5)
    requested.agents.slow_seals = []
    write_shard(requested, 0)
    write_shard(requested, 1)
    requested.training.paused = False
    requested.kill_node(NODE_1)
    requested.kill_node(NODE_2)
    requested.run(20.0)
    assert requested.generation.restore_step == 0
    assert states(requested)[0] is CheckpointState.DELETED
    requested.say(
        events.CheckpointSealed,
        trainer=TRAINER_2,
        incarnation="node-2#2",
        start=1,
        request="ckpt-0001",
        step=Step(5),
        name="step-00000005.g0001",
        path="/somewhere",
        bytes=7,
    )
    assert states(requested)[0] is CheckpointState.DELETED
    assert requested.performed(actions.DeleteCheckpoint)[-1].name == "step-00000005.g0001"
    assert checkpoints.newest(requested.state) is None


def test_checkpoint_that_takes_too_long_is_given_up(requested: Told) -> None:
    """L9: with the number of shards that did come."""
    assert requested.machine is not None
    requested.machine.policy = replace(requested.machine.policy, checkpoint_seconds=5.0)
    write_shard(requested, 0)
    requested.run(6.0)
    assert requested.heard("1 of 2 shards after 5 s")


def test_retention_keeps_the_newest(make_training: MakeWorld) -> None:
    """And deletes by name, oldest first."""
    world = make_training(keep=2)
    for _ in range(4):
        world.say(events.CheckpointDue)
        world.run(3.0)
    assert states(world) == [CheckpointState.DELETED] * 2 + [CheckpointState.SEALED] * 2
    names = [action.name for action in world.performed(actions.DeleteCheckpoint)]
    assert names == sorted(names) and len(names) == 2


def test_checkpoint_that_is_being_restored_is_not_deleted(make_training: MakeWorld) -> None:
    """Members are reading it."""
    world = make_training(keep=1)
    world.say(events.CheckpointDue)
    world.run(3.0)
    world.stop_node(NODE_1)
    world.stop_node(NODE_2)
    world.run(3.0)
    assert world.generation.restore_name
    world.disk.checkpoints.clear()
    kept = world.state.checkpoints["ckpt-0001"]
    world.state.checkpoints["ckpt-0002"] = replace(
        kept, request="ckpt-0002", step=Step(kept.step + 1), name="step-newer"
    )
    world.say(events.RetentionDue)
    assert states(world) == [CheckpointState.SEALED, CheckpointState.SEALED]
    world.run(2.0)
    world.say(events.RetentionDue)
    assert states(world) == [CheckpointState.DELETED, CheckpointState.SEALED]


def test_highest_step_is_restored_and_the_latest_of_equals(requested: Told) -> None:
    """A damaged or deleted one is none."""
    sample = replace(
        requested.state.checkpoints["ckpt-0001"],
        state=CheckpointState.SEALED,
        name="a",
        path="/a",
        sealed_at=1.0,
        purpose=CheckpointPurpose.INTERVAL,
    )
    state = requested.state
    state.checkpoints.clear()
    assert checkpoints.newest(state) is None
    for request, step, kind in (
        ("ckpt-0001", 30, CheckpointState.DAMAGED),
        ("ckpt-0002", 20, CheckpointState.SEALED),
        ("ckpt-0003", 20, CheckpointState.SEALED),
        ("ckpt-0004", 10, CheckpointState.SEALED),
        ("ckpt-0005", 40, CheckpointState.DELETED),
    ):
        state.checkpoints[request] = replace(sample, request=request, step=Step(step), state=kind)
    newest = checkpoints.newest(state)
    assert newest is not None and newest.request == "ckpt-0003"


def test_what_is_gone_is_not_remembered_for_ever(make_training: MakeWorld) -> None:
    """The database keeps all of them; the controller lists the last ones, and those that are there."""
    world = make_training(keep=2)
    limit = world.machine.policy.checkpoints_remembered if world.machine else 0
    (known := world.state.checkpoints).clear()
    world.say(events.CheckpointDue)
    world.run(3.0)
    (sealed,) = known.values()
    for number in range(2, limit + 20):
        request = f"ckpt-{number:04d}"
        known[request] = replace(sealed, request=request, state=CheckpointState.FAILED)
    world.say(events.RetentionDue)
    assert len(known) == limit + 1 and sealed.request in known
    assert f"ckpt-{limit + 19:04d}" in known and "ckpt-0002" not in known
