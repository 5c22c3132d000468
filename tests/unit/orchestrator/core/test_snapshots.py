"""Snapshots in host memory: ordered when due, sealed when held twice, restored when newest, never once refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import actions, events, snapshots, tiers
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import GenerationNumber, NodeId, Rank, Step, node_of
from orchestrator.core.policy import Policy
from orchestrator.core.spec import SnapshotSpec
from orchestrator.core.state import GenerationKind
from orchestrator.core.tiers import Tier
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, NODE_3, NODE_4, TRAINER_1, MakeWorld, Told

SOON = 40.0
"""Longer than the usual interval between snapshots."""


@pytest.fixture
def world(make_training: MakeWorld) -> Told:
    """Four members and a spare, whose agents all have memory."""
    made = make_training(nodes=4, spares=1)
    give_memory(made)
    return made


def give_memory(world: Told) -> None:
    for node, view in world.state.views.items():
        view.memory_address = f"{node}:memory"


def shard(rank: int, *, step: int, generation: int = 1, shards: int = 4, entry: str = "{}") -> HeldShard:
    return HeldShard(
        step=Step(step),
        generation=GenerationNumber(generation),
        rank=Rank(rank),
        shards=shards,
        bytes=100,
        entry=entry,
        stall_seconds=0.02,
    )


def tell(world: Told, node: NodeId, *held: HeldShard) -> None:
    """An agent says what it holds now, besides what it held."""
    view = world.state.views[node]
    incarnation = world.state.nodes[node].incarnation
    world.say(events.SnapshotsHeld, node=node, incarnation=incarnation, held=(*view.held, *held))


def take(world: Told, step: int | None = None) -> int:
    """Everybody holds its own shard and its buddy's; returns the step."""
    at = step or world.state.committed
    number = world.generation.number
    buddies = {each.node: each.buddy for each in world.performed(actions.TakeSnapshot)}
    for rank, member in enumerate(world.generation.members):
        node = node_of(member.trainer)
        each = shard(rank, step=at, generation=number, shards=len(world.generation.members))
        tell(world, node, each)
        tell(world, buddies[node], each)
    return at


def lose_pair(world: Told) -> None:
    """Neighbours on the ring, the two holders of an expert; returns when all are in the generation that goes back."""
    for node in (NODE_1, NODE_2):
        world.kill_node(node)
    world.run_until(lambda: world.generation.kind is GenerationKind.RESTORE)


def policy(world: Told) -> Policy:
    assert world.machine is not None
    return world.machine.policy


def under_way(world: Told) -> bool:
    return world.state.memory.snapshot is not None


# ---- taking one ----


def test_a_snapshot_is_ordered_of_all_members_after_the_interval(world: Told) -> None:
    assert not world.performed(actions.TakeSnapshot)
    world.run(SOON)
    orders = world.performed(actions.TakeSnapshot)
    assert [each.node for each in orders] == [NODE_1, NODE_2, NODE_3, NODE_4]
    assert len({each.request for each in orders}) == 1
    assert all(each.buddy and each.buddy_address == f"{each.buddy}:memory" for each in orders)
    assert not any(each.keep for each in orders), "there is nothing to keep yet"


def test_one_at_a_time_and_given_up_when_it_takes_too_long(world: Told) -> None:
    """The first may take as long as a copy between trainers: nobody knows better yet."""
    world.run(SOON)
    request = world.performed(actions.TakeSnapshot)[0].request
    world.run(policy(world).acquire_seconds - SOON)
    assert {each.request for each in world.performed(actions.TakeSnapshot)} == {request}
    world.run(2 * SOON)
    assert world.heard(f"{request} is given up") and world.heard("timeouts.acquire_seconds")
    assert len({each.request for each in world.performed(actions.TakeSnapshot)}) == 2


def test_patience_follows_what_the_last_ones_took(world: Told) -> None:
    """Slow ones get more than a minute, and one that is slower still is followed by one with all the time there is."""
    slow = 2 * policy(world).shortest_snapshot_seconds / policy(world).patience_factor
    world.run_until(lambda: under_way(world))
    world.run(slow)
    take(world)
    assert not under_way(world)
    world.run_until(lambda: under_way(world), within_seconds=2 * SOON + 2 * slow)
    world.run(1.5 * policy(world).shortest_snapshot_seconds)
    assert not world.heard("is given up")
    world.run_until(lambda: world.heard("is given up"))
    assert world.heard("the last ones took 30 s at most")
    world.run_until(lambda: under_way(world), within_seconds=2 * SOON)
    world.run(0.9 * policy(world).acquire_seconds)
    assert under_way(world), "what was observed is forgotten"


def test_quick_ones_do_not_make_it_impatient(world: Told) -> None:
    world.run_until(lambda: under_way(world))
    take(world)
    world.run_until(lambda: under_way(world), within_seconds=2 * SOON)
    world.run(0.9 * policy(world).shortest_snapshot_seconds)
    assert under_way(world) and not world.heard("is given up")
    world.run_until(lambda: world.heard("is given up"))


def test_none_without_memory_or_where_it_is_switched_off(make_training: MakeWorld) -> None:
    without = make_training(nodes=2, spares=0)
    without.run(SOON)
    assert not without.performed(actions.TakeSnapshot)
    off = make_training(nodes=2, spares=0)
    give_memory(off)
    assert off.state.job is not None
    off.state.job = replace(
        off.state.job, spec=replace(off.state.job.spec, snapshot=SnapshotSpec(enabled=False))
    )
    off.run(SOON)
    assert not off.performed(actions.TakeSnapshot)


def test_a_failure_costs_this_one_and_no_incident(world: Told) -> None:
    world.run(SOON)
    request = world.performed(actions.TakeSnapshot)[0].request
    incarnation = world.state.nodes[NODE_1].incarnation
    world.say(
        events.CheckpointFailed,
        trainer=TRAINER_1,
        incarnation=incarnation,
        start=1,
        request=request,
        reason="no room for 10 bytes",
    )
    assert world.heard("no room for 10 bytes") and world.state.memory.snapshot is None
    assert not world.incidents and not world.state.checkpoints


# ---- what is held ----


def test_it_is_whole_with_one_holder_of_each_shard_and_sealed_with_two(world: Told) -> None:
    world.run(SOON)
    step = world.state.committed
    for rank, node in enumerate((NODE_1, NODE_2, NODE_3, NODE_4)):
        assert not any(each.whole for each in snapshots.known(world.state))
        tell(world, node, shard(rank, step=step))
    (whole,) = snapshots.known(world.state)
    assert whole.whole and not whole.sealed and under_way(world)
    take(world, step)
    (sealed,) = snapshots.known(world.state)
    assert sealed.sealed and sealed.holders == 2 and not under_way(world)
    assert world.heard(f"{sealed.name} is sealed in host memory")


def test_the_next_order_names_what_must_be_kept(world: Told) -> None:
    world.run(SOON)
    step = take(world)
    world.run(SOON)
    orders = world.performed(actions.TakeSnapshot)[4:]
    assert {each.keep for each in orders} == {f"snapshot-{step:08d}.g0001"}


def test_agents_that_contradict_each_other_do_not_make_a_shard_twice(world: Told) -> None:
    step = world.state.committed
    tell(world, NODE_1, shard(0, step=step, shards=1, entry="{}"))
    tell(world, NODE_2, shard(0, step=step, shards=1, entry='{"other": 1}'))
    (only,) = snapshots.known(world.state)
    assert only.holders == 1


def test_what_goes_on_with_it_is_committed(world: Told) -> None:
    """Members copy a state that all of them have committed, whether or not the step's report has arrived."""
    ahead = world.state.committed + 3
    tell(world, NODE_1, shard(0, step=ahead))
    assert world.state.committed == ahead
    tell(world, NODE_1, shard(0, step=ahead + 9, generation=7))
    assert world.state.committed == ahead, "another generation proves nothing"


def test_a_restarted_controller_knows_it_again_from_registrations(world: Told) -> None:
    world.run(SOON)
    step = take(world)
    held = {node: view.held for node, view in world.state.views.items()}
    world.stop_controller()
    world.start_controller()
    world.run(1.0)
    assert not snapshots.known(world.state), "agents of this test register without saying it"
    give_memory(world)
    for node, shards in held.items():
        tell(world, node, *shards)
    assert snapshots.known(world.state)[0].step == step


# ---- restoring ----


def test_the_last_replica_lost_goes_back_to_the_snapshot(world: Told) -> None:
    """Each shard of theirs has another holder."""
    world.run(SOON)
    step = take(world)
    world.run(10.0)
    lost_from = world.state.committed
    lose_pair(world)
    restored = [each for each in world.disk.generations.values() if each.kind is GenerationKind.RESTORE]
    assert restored[-1].restore_name == f"snapshot-{step:08d}.g0001"
    assert [each.rank for each in restored[-1].restore_shards] == [0, 1, 2, 3]
    addresses = {address for each in restored[-1].restore_shards for address in each.addresses}
    assert not addresses & {"node-1:memory", "node-2:memory"}
    incident = world.incidents[0]
    assert incident.action == "restore from host memory"
    assert incident.steps_lost >= lost_from - step > 0
    assert any("each of them has a living holder" in reason for reason in incident.reasons)


def test_a_shard_that_nobody_holds_sends_everybody_to_the_checkpoint_and_says_so(world: Told) -> None:
    world.say(events.CheckpointDue)
    world.run(3.0)
    name = next(iter(world.state.checkpoints.values())).name
    world.run(SOON)
    take(world)
    for view in world.state.views.values():
        view.held = tuple(each for each in view.held if each.rank != 2)
    saved = tiers.newest(world.state)
    assert saved is not None and (saved.tier, saved.name) == (Tier.STORAGE, name)
    assert "1 of its 4 shards is held by nobody alive" in str(saved)


def test_the_greater_step_wins_whichever_tier_it_is_in(world: Told) -> None:
    world.run(SOON)
    step = take(world)
    world.run(5.0)
    world.say(events.CheckpointDue)
    world.run(3.0)
    saved = tiers.newest(world.state)
    assert saved is not None and saved.tier is Tier.STORAGE and saved.step > step
    assert "in host memory is older" in str(saved)


# ---- refusing ----


def restored(world: Told) -> int:
    """The snapshot was taken, and restored after the loss of a pair; returns its step."""
    world.run(SOON)
    step = take(world)
    world.run(10.0)
    lose_pair(world)
    assert world.generation.restore_shards
    return step


def test_a_divergence_right_after_a_restore_demotes_the_tier(world: Told) -> None:
    """The checkpoint of before is used, and nothing of the snapshot, nor of what was taken since, is met again."""
    world.say(events.CheckpointDue)
    world.run(3.0)
    step = restored(world)
    later = shard(0, step=step + 1, generation=world.generation.number, shards=1)
    tell(world, NODE_3, later)
    member = world.generation.members[0]
    world.say(
        events.StateRefused,
        trainer=member.trainer,
        incarnation=world.state.nodes[node_of(member.trainer)].incarnation,
        start=member.start,
        generation=world.generation.number,
        step=Step(step + 1),
        reason="the loss is not a number, twice",
        not_finite=True,
    )
    generation = world.generation
    assert not generation.restore_shards and generation.restore_name.startswith("step-")
    assert not any(view.held for view in world.state.views.values() if view.connected)
    assert {NODE_3, NODE_4} <= {each.node for each in world.performed(actions.DropSnapshots)}
    assert world.heard("in host memory is not used again: the loss is not a number, twice")


def test_a_snapshot_that_a_trainer_refuses_is_passed_over(world: Told) -> None:
    step = restored(world)
    member = world.generation.members[0]
    world.say(
        events.RestoreFailed,
        trainer=member.trainer,
        incarnation=world.state.nodes[node_of(member.trainer)].incarnation,
        start=member.start,
        generation=world.generation.number,
        name=f"snapshot-{step:08d}.g0001",
        shard="rank-00002.safetensors",
        reason="it does not have the sha256 of the manifest",
        damaged=True,
    )
    assert world.generation.restore_name == "", "no checkpoint is sealed: the seed state"
    assert world.heard("rank-00002.safetensors")


def test_what_is_of_a_time_that_was_set_aside_does_not_come_back(world: Told) -> None:
    """A node that was cut off returns with the missing shard of a later step, after all went back."""
    step = restored(world)
    number = world.generation.number
    for rank in range(4):
        tell(world, NODE_3, shard(rank, step=step + 5))
    world.state.committed = Step(step + 9)
    newest = snapshots.known(world.state)[0]
    assert (newest.step, newest.generation) == (step, 1)
    for rank in range(len(world.generation.members)):
        taken = shard(rank, step=step + 6, generation=number, shards=len(world.generation.members))
        tell(world, NODE_3, taken)
    assert snapshots.known(world.state)[0].step == step + 6
