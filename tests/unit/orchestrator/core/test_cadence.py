"""How often to save: what is measured counts, what is assumed is said, and the bounds hold."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import actions, cadence, events, snapshots
from orchestrator.core.cadence import Tier
from orchestrator.core.held import SaveCost
from orchestrator.core.intervals import young_daly_seconds
from orchestrator.core.policy import Policy
from orchestrator.core.spec import CheckpointMode, SnapshotSpec, TimeoutSpec
from orchestrator.core.state import NO_GENERATION, CheckpointState
from tests.unit.orchestrator.core.told import NODE_2, NODE_3, MakeWorld, Told

POLICY = Policy.from_timeouts(TimeoutSpec())
NEW = Tier(
    what="a snapshot",
    stalls=(),
    works=(),
    uses=0,
    observed_seconds=0.0,
    shortest_seconds=10.0,
    longest_seconds=900.0,
    bound="checkpoint.interval_seconds",
)


def test_before_anything_is_measured_the_reason_says_what_is_assumed() -> None:
    chosen = cadence.choose(NEW, POLICY)
    assert chosen.interval_seconds == young_daly_seconds(1.0, 3600.0)
    assert "assumed until one is measured" in chosen.why and "once in 60 min assumed before" in chosen.why


def test_the_usual_stall_counts_and_one_that_stands_out_does_not() -> None:
    usual = cadence.choose(replace(NEW, stalls=(0.5, 0.5, 0.5)), POLICY)
    assert (
        cadence.choose(replace(NEW, stalls=(0.5, 60.0, 0.5)), POLICY).interval_seconds
        == usual.interval_seconds
    )


def test_a_job_that_goes_back_often_saves_often_whatever_was_assumed() -> None:
    """One failure in ten minutes for a day: the hour that was assumed at first is forgotten."""
    often = replace(NEW, stalls=(2.0,), uses=144, observed_seconds=86400.0)
    chosen = cadence.choose(often, POLICY)
    assert chosen.mean_seconds == pytest.approx(600.0, rel=0.05)
    assert chosen.interval_seconds == pytest.approx(young_daly_seconds(2.0, 600.0), rel=0.05)


def test_a_bound_that_decides_is_named() -> None:
    quiet = replace(NEW, stalls=(5.0,), observed_seconds=1e6)
    assert "checkpoint.interval_seconds allows no more" in cadence.choose(quiet, POLICY).why
    cheap = replace(NEW, stalls=(1e-4,))
    assert cadence.choose(cheap, POLICY).interval_seconds == 10.0
    assert "storage has others to serve" in cadence.choose(cheap, POLICY).why
    slow = replace(cheap, works=(40.0,))
    assert cadence.choose(slow, POLICY).interval_seconds == 80.0
    assert "but one takes 40 s" in cadence.choose(slow, POLICY).why


tiers = st.builds(
    Tier,
    what=st.just("a snapshot"),
    stalls=st.lists(st.floats(0, 1e4), max_size=8).map(tuple),
    works=st.lists(st.floats(0, 1e4), max_size=8).map(tuple),
    uses=st.integers(0, 1000),
    observed_seconds=st.floats(0, 1e8),
    shortest_seconds=st.floats(0.001, 1e3),
    longest_seconds=st.floats(0.001, 1e5),
    bound=st.just("its bound"),
)


@given(tier=tiers)
def test_an_interval_keeps_its_bounds_and_explains_itself(tier: Tier) -> None:
    chosen = cadence.choose(tier, POLICY)
    assert 0 < chosen.interval_seconds <= tier.longest_seconds
    assert chosen.interval_seconds >= min(tier.shortest_seconds, tier.longest_seconds)
    assert chosen.why.startswith("a snapshot every ")


@given(tier=tiers, factor=st.floats(1.0, 100.0), more=st.integers(0, 100))
def test_dearer_saves_come_less_often_and_needed_ones_more_often(
    tier: Tier, factor: float, more: int
) -> None:
    dearer = replace(tier, stalls=tuple(each * factor for each in tier.stalls))
    needed = replace(tier, uses=tier.uses + more)
    # Where a save takes about as long as there is between two failures, there is nothing to be gained either way.
    if all(each * factor < 100.0 for each in tier.stalls) and tier.uses + more < 30:
        chosen = cadence.choose(tier, POLICY).interval_seconds
        assert cadence.choose(dearer, POLICY).interval_seconds >= chosen * (1 - 1e-9)
        assert cadence.choose(needed, POLICY).interval_seconds <= chosen * (1 + 1e-9)


# ---- of a job ----


def test_what_one_generation_answers_was_one_time(make_training: MakeWorld) -> None:
    """Two nodes at once: two incidents, one return to saved state."""
    world = make_training()
    world.kill_node(NODE_2)
    world.kill_node(NODE_3)
    world.run(3.0)
    assert len(world.incidents) == 2
    assert {each.rolled_back_by for each in world.incidents} == {world.generation.number}
    assert cadence.times_gone_back(world.incidents, 0.0) == 1
    assert cadence.times_gone_back(world.incidents, world.at) == 0


def test_a_failure_that_replicas_answer_needs_no_saved_state(make_training: MakeWorld) -> None:
    world = make_training()
    world.kill_node(NODE_2)
    world.run(3.0)
    assert [each.rolled_back_by for each in world.incidents] == [NO_GENERATION]
    assert cadence.times_gone_back(world.incidents, 0.0) == 0


def asked_at(world: Told) -> list[float]:
    return [each.requested_at for each in world.state.checkpoints.values()]


def test_checkpoints_come_as_often_as_their_stall_says(make_training: MakeWorld) -> None:
    """A second is assumed at first; then fifty milliseconds are measured."""
    world = make_training(auto=600)
    world.agents.stall_seconds = 0.05
    world.run(150.0)
    first, *later = asked_at(world)
    assert first == pytest.approx(2.0 + young_daly_seconds(1.0, 3600.0), abs=1.5)
    assert next(iter(world.state.checkpoints.values())).stall_seconds == 0.05
    wanted = young_daly_seconds(0.05, 3700.0)
    assert all(gap == pytest.approx(wanted, abs=1.5) for gap in (b - a for a, b in pairwise([first, *later])))
    assert sum("a checkpoint every" in text for text in world.said) == 2


def test_the_longest_stall_of_the_members_is_that_of_the_checkpoint(make_training: MakeWorld) -> None:
    """All wait for the slowest; a member that does not say is left out."""
    world = make_training(nodes=3, spares=0)
    world.training.paused = True
    world.say(events.CheckpointRequested, by="ada")
    for rank, stall in enumerate((0.2, None, 0.7)):
        member = world.generation.members[rank]
        world.say(
            events.ShardWritten,
            trainer=member.trainer,
            incarnation="whoever",
            start=1,
            request="ckpt-0001",
            generation=world.generation.number,
            step=5,
            name="step-00000005.g0001",
            rank=rank,
            shard="{}",
            bytes=1,
            stall_seconds=stall,
        )
    assert world.state.checkpoints["ckpt-0001"].stall_seconds == 0.7


def test_a_restarted_controller_goes_on_where_the_last_one_was(make_training: MakeWorld) -> None:
    world = make_training(auto=600)
    world.agents.stall_seconds = 0.05
    world.run(120.0)
    before = asked_at(world)
    due = before[-1] + young_daly_seconds(0.05, 3700.0)
    world.stop_controller()
    world.run(1.0)
    world.start_controller()
    world.run_until(lambda: len(asked_at(world)) > len(before) - 1 and asked_at(world)[-1] > before[-1], 60.0)
    assert asked_at(world)[-1] == pytest.approx(due, abs=1.5)


def test_a_fixed_interval_counts_from_the_last_checkpoint(make_training: MakeWorld) -> None:
    world = make_training()
    job = world.state.job
    assert job is not None and job.spec.checkpoint.interval is CheckpointMode.FIXED
    fixed = replace(job.spec.checkpoint, interval_seconds=20.0)
    world.state.job = replace(job, spec=replace(job.spec, checkpoint=fixed))
    world.say(events.CheckpointDue)
    assert not asked_at(world)
    world.run(19.0)
    world.say(events.CheckpointDue)
    world.run(2.0)
    assert len(asked_at(world)) == 1
    assert [each.state for each in world.state.checkpoints.values()] == [CheckpointState.SEALED]
    chosen = cadence.of_checkpoints(
        world.state.job, world.state.checkpoints, world.state.incidents, POLICY, world.at
    )
    assert cadence.next_at(world.state.job, world.state.checkpoints, chosen) == asked_at(world)[0] + 20.0


# ---- of snapshots ----


def snapshots_of(world: Told, *costs: SaveCost) -> cadence.Cadence:
    assert world.state.job is not None
    return cadence.of_snapshots(world.state.job, costs, world.state.incidents, POLICY, world.at)


def test_the_first_snapshot_is_taken_early_and_its_cost_decides_about_the_others(
    make_training: MakeWorld,
) -> None:
    world = make_training()
    first = snapshots_of(world)
    assert first.interval_seconds == POLICY.first_snapshot_seconds
    assert "follows from what it costs" in first.why
    measured = snapshots_of(world, SaveCost(stall_seconds=0.5, work_seconds=2.0))
    assert measured.interval_seconds == pytest.approx(young_daly_seconds(0.5, 3600.0 + world.at), rel=0.01)


def test_a_snapshot_is_never_ordered_before_the_last_one_can_be_held(make_training: MakeWorld) -> None:
    chosen = snapshots_of(make_training(), SaveCost(stall_seconds=0.001, work_seconds=40.0))
    assert chosen.interval_seconds == 80.0 and "but one takes 40 s" in chosen.why


def test_the_job_bounds_its_snapshots_or_fixes_them(make_training: MakeWorld) -> None:
    world = make_training(memory=5)
    dear = SaveCost(stall_seconds=10.0, work_seconds=None)
    assert snapshots_of(world, dear).interval_seconds == 5.0
    assert "snapshot.interval_seconds allows no more" in snapshots_of(world, dear).why
    job = world.state.job
    assert job is not None
    fixed = SnapshotSpec(interval=CheckpointMode.FIXED, interval_seconds=7.0)
    world.state.job = replace(job, spec=replace(job.spec, snapshot=fixed))
    assert snapshots_of(world, dear).why == "a snapshot every 7 s, as snapshot.interval_seconds says"


def test_snapshots_come_as_often_as_their_stall_says(make_world: MakeWorld) -> None:
    """The first after half a minute; then as Young and Daly say for the half second that it cost."""
    world = make_world(memory=600, steps=10_000)
    world.agents.with_memory = True
    world.agents.stall_seconds = 0.5
    world.start_job()
    world.run(4.0)
    orders: list[float] = []
    while world.at < 200.0:
        before = len(world.performed(actions.TakeSnapshot))
        world.tick()
        if len(world.performed(actions.TakeSnapshot)) > before:
            orders.append(world.at)
    began = world.state.job.started_at if world.state.job else None
    assert began is not None and orders[0] == pytest.approx(began + POLICY.first_snapshot_seconds, abs=1.0)
    wanted = young_daly_seconds(0.5, 3700.0)
    assert all(b - a == pytest.approx(wanted, rel=0.05) for a, b in pairwise(orders))
    assert sum("a snapshot every" in text for text in world.said) == 1


def test_a_new_controller_knows_from_the_agents_what_snapshots_cost(make_world: MakeWorld) -> None:
    world = make_world(memory=600, steps=10_000)
    world.agents.with_memory = True
    world.agents.stall_seconds = 0.5
    world.start_job()
    world.run(40.0)
    before = snapshots_of(world, *snapshots.costs(world.state)).interval_seconds
    world.stop_controller()
    world.run(1.0)
    world.start_controller()
    world.run(2.0)
    assert not world.state.memory.snapshot_costs
    after = snapshots_of(world, *snapshots.costs(world.state)).interval_seconds
    assert after == pytest.approx(before, rel=0.01)
