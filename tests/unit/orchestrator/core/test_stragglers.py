"""Who makes the others wait: scored, named when it stands out, and replaced only when that helps."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events, health, stragglers
from orchestrator.core.ids import TrainerId
from orchestrator.core.state import IncidentKind
from orchestrator.core.stragglers import Standing
from tests.scenarios.play import FAST
from tests.unit.orchestrator.core.told import NODE_3, TRAINER_1, TRAINER_2, TRAINER_3, MakeWorld, Told


def scored(*values: float) -> tuple[Standing, ...]:
    work = {TrainerId(f"node-{number}/0"): value for number, value in enumerate(values, 1)}
    return stragglers.score(work, limit=0.7, deviations=3.5)


def test_one_that_works_while_others_wait_is_named() -> None:
    """The sentence says how much, against whom."""
    (found,) = [each for each in scored(0.50, 1.00, 0.52, 0.48) if each.straggles]
    assert found.trainer == TRAINER_2
    assert str(found) == (
        "node-2/0 has score 0.51: it works 1.000 s in a step, the median member 0.510 s for as much, "
        "and the others wait for it"
    )


def test_equals_are_not_told_apart() -> None:
    """Small differences are noise; nobody is below the limit."""
    assert not any(each.straggles for each in scored(0.50, 0.52, 0.49, 0.51))


def test_half_the_members_cannot_be_stragglers_of_the_other_half() -> None:
    """Two generations of hardware in one job: the spread is large, and nobody is odd."""
    assert not any(each.straggles for each in scored(0.3, 0.3, 0.6, 0.6))


def test_two_members_cannot_be_compared() -> None:
    """There is no majority of two."""
    assert scored(0.1, 0.9) == ()


@given(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=30))
def test_scores_are_shares_and_the_majority_is_never_odd(values: list[float]) -> None:
    found = scored(*values)
    assert all(0.0 <= each.score <= 1.0 for each in found)
    assert 2 * sum(each.straggles for each in found) <= len(values)


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=12), st.floats(1e-3, 1e3))
def test_a_score_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    """Slower steps for all change nothing about who is slow."""
    scaled = scored(*(value * factor for value in values))
    for one, other in zip(scored(*values), scaled, strict=True):
        assert abs(one.score - other.score) < 1e-6


def test_who_has_more_to_do_is_not_slow(make_training: MakeWorld) -> None:
    """Shares of work: twice the microbatches may take twice as long."""
    world = make_training()
    shares = stragglers.shares(world.generation, ())
    assert shares == {"node-1/0": 4 / 3, "node-2/0": 4 / 3, "node-3/0": 2 / 3, "node-4/0": 2 / 3}
    loads = stragglers.shares(world.generation, (10, 0, 0, 0))
    ranks = world.generation.placement[0]
    assert {loads[world.generation.members[rank].trainer] for rank in ranks} == {2.0}
    others = [each for each in world.generation.members if each.rank not in ranks]
    assert all(loads[each.trainer] <= 4 / 3 for each in others)


def in_two_stages(world: Told, *seconds: float) -> dict[TrainerId, Standing]:
    """The members go to two stages in turn, and each has worked so long."""
    members = tuple(replace(each, stage=each.rank % 2) for each in world.generation.members)
    work = {member.trainer: each for member, each in zip(members, seconds, strict=True)}
    generation = replace(world.generation, members=members)
    found = stragglers.compared(generation, work, limit=0.7, deviations=3.5)
    return {each.trainer: each for each in found}


def test_another_stage_may_take_longer_for_good_reasons(make_training: MakeWorld) -> None:
    """One that is slow among its own is named, however fast it is beside a heavier stage."""
    world = make_training(nodes=6, spares=0)
    found = in_two_stages(world, 0.2, 0.6, 0.2, 0.6, 0.2, 0.6)
    assert len(found) == 6
    assert {(each.score, each.straggles) for each in found.values()} == {(1.0, False)}
    found = in_two_stages(world, 0.2, 0.6, 0.5, 0.6, 0.2, 0.6)
    assert [each.trainer for each in found.values() if each.straggles] == [TRAINER_3]
    assert (found[TRAINER_3].score, found[TRAINER_3].median_seconds) == (0.4, 0.2)


def test_two_members_of_a_stage_cannot_be_compared(make_training: MakeWorld) -> None:
    assert in_two_stages(make_training(spares=0), 0.2, 0.6, 0.9, 0.6) == {}


def test_a_fair_share_is_one_of_the_stage(make_training: MakeWorld) -> None:
    """A thin stage deals as many microbatches to fewer members: all of them have a fair share."""
    world = make_training(nodes=3, spares=0)
    members = tuple(replace(each, stage=int(each.rank == 2)) for each in world.generation.members)
    deal = ((0, 1), (2, 3), (0, 1, 2, 3))
    generation = replace(world.generation, members=members, deal=deal)
    assert stragglers.shares(generation, ()) == {TRAINER_1: 1.0, TRAINER_2: 1.0, TRAINER_3: 1.0}


def test_it_is_said_once_and_once_more_when_it_recovers(make_training: MakeWorld) -> None:
    """Heartbeats build up the picture, the scan puts it into words when it changes."""
    world = make_training(spares=0)
    world.agents.slowness[NODE_3] = 3.0
    world.run(20.0)
    assert sum("node-3/0 has score" in text for text in world.said) == 1
    assert world.state.memory.scores[TRAINER_3] < 0.7
    world.agents.slowness.clear()
    world.run(30.0)
    assert world.heard("node-3/0 does not make the others wait any more")
    assert world.incidents == []


def test_a_straggler_is_replaced_by_the_spare_and_nothing_is_lost(make_training: MakeWorld) -> None:
    """After a pair check, at a boundary, as in a drain; the node is kept out from then on."""
    world = make_training(FAST)
    world.agents.slowness[NODE_3] = 3.0
    world.run(20.0)
    (incident,) = world.incidents
    assert (incident.kind, incident.node, incident.steps_lost) == (IncidentKind.STRAGGLER, NODE_3, 0)
    assert incident.closed
    assert "node-3/0" not in world.members and len(world.members) == 4
    assert world.state.health[NODE_3].quarantined_until is not None
    assert world.state.committed > 20


def test_a_pair_check_that_finds_nothing_leaves_it_in_its_seat(make_training: MakeWorld) -> None:
    """The spare is as slow with the same work: the reason is somewhere else."""
    world = make_training(FAST)
    for node in world.agents.alive:
        world.agents.slowness[node] = 1.0
    world.agents.slowness[NODE_3] = 3.0
    world.run_until(lambda: bool(world.state.memory.checks), 20.0)
    world.agents.slowness.clear()
    world.run(2.0)
    assert world.heard("keeps its seat: a pair check found nothing wrong with it")
    assert "node-3/0" in world.members
    assert world.incidents == []


def test_without_enough_steps_nobody_is_judged(make_training: MakeWorld) -> None:
    world = make_training()
    world.state.memory.work_seconds.clear()
    world.say(events.RedundancyScanDue)
    assert world.last.empty


def test_an_empty_seat_comes_before_a_slow_one(make_training: MakeWorld) -> None:
    """The spares that are needed for empty seats are not counted for swaps."""
    world = make_training(FAST)
    state = world.state
    state.health[NODE_3] = replace(
        health.of(state, NODE_3), quarantined_until=world.at + 100.0, reason="it is slow"
    )
    assert stragglers.swapped(state, 1, 0) == {NODE_3}
    assert stragglers.swapped(state, 1, 1) == frozenset()
    assert stragglers.swapped(state, 0, 0) == frozenset()
