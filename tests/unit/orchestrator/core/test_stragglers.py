"""Who makes the others wait: scored, named when it stands out, and replaced only when that helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events, health, stragglers
from orchestrator.core.ids import TrainerId
from orchestrator.core.state import IncidentKind
from orchestrator.core.stragglers import Pair, Rules, Standing
from tests.scenarios.play import FAST
from tests.unit.orchestrator.core.told import (
    NODE_2,
    NODE_3,
    NODE_5,
    TRAINER_1,
    TRAINER_2,
    TRAINER_3,
    TRAINER_4,
    MakeWorld,
    Told,
)

RULES = Rules(limit=0.7, deviations=3.5, ratio=1.5)


def scored(*values: float) -> tuple[Standing, ...]:
    work = {TrainerId(f"node-{number}/0"): value for number, value in enumerate(values, 1)}
    return stragglers.score(work, RULES)


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


def test_two_members_have_no_majority() -> None:
    """They are a pair: `score_pairs`."""
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


def in_stages(count: int, world: Told, *seconds: float) -> dict[TrainerId, Standing]:
    """The members go to so many stages in turn, and each has worked so long, for fair shares of the work."""
    members = tuple(replace(each, stage=each.rank % count) for each in world.generation.members)
    work = {member.trainer: each for member, each in zip(members, seconds, strict=True)}
    generation = replace(world.generation, members=members)
    found = stragglers.compared(generation, work, dict.fromkeys(work, 1.0), RULES)
    return {each.trainer: each for each in found}


def odd(found: dict[TrainerId, Standing]) -> list[TrainerId]:
    return [each.trainer for each in found.values() if each.straggles]


def test_another_stage_may_take_longer_for_good_reasons(make_training: MakeWorld) -> None:
    """One that is slow among its own is named, however fast it is beside a heavier stage."""
    world = make_training(nodes=6, spares=0)
    found = in_stages(2, world, 0.2, 0.6, 0.2, 0.6, 0.2, 0.6)
    assert len(found) == 6
    assert {(each.score, each.straggles) for each in found.values()} == {(1.0, False)}
    found = in_stages(2, world, 0.2, 0.6, 0.5, 0.6, 0.2, 0.6)
    assert odd(found) == [TRAINER_3]
    assert (found[TRAINER_3].score, found[TRAINER_3].usual_seconds) == (0.4, 0.2)


def test_a_pair_that_stands_out_among_pairs_names_its_slower_member(make_training: MakeWorld) -> None:
    """The other stage is three times as heavy, and its members are alike."""
    world = make_training(spares=0)
    found = in_stages(2, world, 0.2, 0.61, 0.5, 0.6)
    assert odd(found) == [TRAINER_3]
    assert found[TRAINER_3].score == pytest.approx(0.4, abs=0.01)
    assert str(found[TRAINER_3]) == (
        "node-3/0 has score 0.41: it works 0.500 s in a step, node-1/0 beside it 0.200 s for as much, and the others "
        "wait for it; the usual ratio in 2 pairs is 1.02"
    )


def test_a_difference_that_all_pairs_have_is_nobodys_fault(make_training: MakeWorld) -> None:
    """Two kinds of machines, one of each in every stage."""
    world = make_training(nodes=6, spares=0)
    assert odd(in_stages(3, world, 0.2, 0.4, 0.1, 0.34, 0.68, 0.18)) == []
    assert odd(in_stages(3, world, 0.2, 0.4, 0.1, 0.21, 0.41, 0.4)) == [TrainerId("node-6/0")]


def test_of_two_that_have_no_others_beside_them_the_slower_one_is_a_suspect(make_training: MakeWorld) -> None:
    """If a pair check would call as much slow; and it is said that it may be the other one that is fast."""
    world = make_training(nodes=2)
    assert odd(in_stages(1, world, 0.2, 0.29)) == []
    found = in_stages(1, world, 0.2, 0.32)
    assert odd(found) == [TRAINER_2]
    assert str(found[TRAINER_2]).endswith(
        "the others wait for it (or node-1/0 is fast: of two, only a pair check with a spare can tell)"
    )


def test_a_pair_beside_a_wide_stage_is_one_that_has_no_others(make_training: MakeWorld) -> None:
    """Three members of a stage are compared among themselves, whatever the pair does."""
    world = make_training(nodes=5, spares=0)
    members = tuple(replace(each, stage=int(each.rank > 2)) for each in world.generation.members)
    work = dict(zip((each.trainer for each in members), (0.2, 0.2, 0.2, 0.9, 0.4), strict=True))
    generation = replace(world.generation, members=members)
    found = stragglers.compared(generation, work, dict.fromkeys(work, 1.0), RULES)
    assert [each.trainer for each in found if each.straggles] == [TRAINER_4]


def test_who_has_less_to_do_is_not_slow_for_the_part_that_does_not_shrink(make_training: MakeWorld) -> None:
    """Half the microbatches, and the same optimizer: longer per share, shorter in all, and nobody waits for it."""
    world = make_training(nodes=2, spares=0)
    one, other = world.generation.members
    portions = {one.trainer: 4 / 3, other.trainer: 2 / 3}
    pair = stragglers.pair_of((one, other), {one.trainer: 0.3, other.trainer: 0.25}, portions)
    assert (pair.slower, pair.ratio) == (other.trainer, 1.0)
    pair = stragglers.pair_of((one, other), {one.trainer: 0.3, other.trainer: 0.6}, portions)
    assert pair.slower == other.trainer
    assert pair.ratio == pytest.approx(2.0)


def pairs_of(ratios: list[float], seconds: float = 1.0) -> list[Pair]:
    return [
        Pair(
            slower=TrainerId(f"node-{number}/0"),
            faster=TrainerId(f"node-{number}/1"),
            slower_seconds=ratio * seconds,
            faster_seconds=seconds,
            ratio=ratio,
        )
        for number, ratio in enumerate(ratios)
    ]


@given(st.lists(st.floats(1.0, 1e6), min_size=2, max_size=30), st.floats(1e-3, 1e3))
def test_most_pairs_are_never_odd_and_the_faster_of_a_pair_never_is(
    ratios: list[float], seconds: float
) -> None:
    found = stragglers.score_pairs(pairs_of(ratios, seconds), RULES)
    suspects = {each.trainer for each in found if each.straggles}
    assert 2 * len(suspects) <= len(ratios)
    assert all(0.0 <= each.score <= 1.0 for each in found) and not any(
        each.endswith("/1") for each in suspects
    )
    assert suspects == {
        each.trainer for each in stragglers.score_pairs(pairs_of(ratios), RULES) if each.straggles
    }


@given(st.lists(st.floats(1.0, 1.4), min_size=2, max_size=30))
def test_small_differences_name_nobody(ratios: list[float]) -> None:
    assert not any(each.straggles for each in stragglers.score_pairs(pairs_of(ratios), RULES))


@given(st.lists(st.floats(1.0, 1.15), min_size=1, max_size=30), st.floats(2.0, 1e3), st.integers(0, 30))
def test_one_slow_node_among_pairs_that_are_alike_is_named(
    ratios: list[float], slow: float, place: int
) -> None:
    place = place % (len(ratios) + 1)
    found = stragglers.score_pairs(pairs_of([*ratios[:place], slow, *ratios[place:]]), RULES)
    assert [each.trainer for each in found if each.straggles] == [f"node-{place}/0"]


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


def test_one_measurement_in_a_busy_moment_costs_nobody_a_seat(make_training: MakeWorld) -> None:
    """A second one must say the same; here it does not."""
    world = make_training(FAST)
    world.agents.slowness[NODE_3] = 3.0
    world.run_until(lambda: world.heard("is checked once more"), 20.0)
    world.agents.slowness[NODE_5] = 3.0
    world.run(8.0)
    assert world.heard("keeps its seat: a pair check found nothing wrong with it")
    assert world.incidents == [] and "node-3/0" in world.members
    assert world.state.memory.slow_checks == {}


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


def checks(world: Told) -> int:
    return sum("pair check chk" in text and "it looks slow" in text for text in world.said)


def test_a_slow_one_of_two_is_replaced_when_the_spare_is_faster(make_training: MakeWorld) -> None:
    """The whole job is one pair: the spare is the third opinion."""
    world = make_training(FAST, nodes=2)
    world.agents.slowness[NODE_2] = 3.0
    world.run(25.0)
    (incident,) = world.incidents
    assert (incident.kind, incident.node, incident.steps_lost) == (IncidentKind.STRAGGLER, NODE_2, 0)
    assert incident.closed and sorted(world.members) == ["node-1/0", "node-3/0"]


def test_of_two_one_that_is_merely_fast_costs_nobody_a_seat(make_training: MakeWorld) -> None:
    """The suspect is as fast as the spare. It is asked again after a rest, and not for ever."""
    world = make_training(FAST, nodes=2)
    for node in (NODE_2, NODE_3):
        world.agents.slowness[node] = 3.0
    world.run(60.0)
    assert checks(world) == 2
    world.run(900.0)
    assert checks(world) == stragglers.CHECKS_AT_MOST
    assert world.heard(f"and {stragglers.CHECKS_AT_MOST} checks within 3600 s are enough")
    assert world.incidents == [] and sorted(world.members) == ["node-1/0", "node-2/0"]


def test_a_slow_one_of_two_without_a_spare_is_named_and_keeps_its_seat(make_training: MakeWorld) -> None:
    world = make_training(FAST, nodes=2, spares=0)
    world.agents.slowness[NODE_2] = 3.0
    world.run(60.0)
    assert sum("node-2/0 has score" in text for text in world.said) == 1
    assert checks(world) == 0 and world.incidents == []
