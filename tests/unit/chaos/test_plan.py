"""What is drawn from a seed: the same every time, everything in its turn, and never more than a cluster can bear."""

from __future__ import annotations

from itertools import islice

from chaos.kinds import TRAITS, Kind
from chaos.plan import LIVING, RACK_NODES, SHORT, Draw, runs
from chaos.strikes import STRIKES


def test_a_seed_is_a_plan() -> None:
    assert list(islice(runs(7, Draw()), 20)) == list(islice(runs(7, Draw()), 20))
    assert list(islice(runs(7, Draw()), 3)) != list(islice(runs(8, Draw()), 3))


def test_every_kind_has_its_turn_before_long() -> None:
    drawn = [strike.kind for plan in islice(runs(3, Draw()), 12) for strike in plan.strikes]
    assert set(drawn) == set(Kind)


def test_the_short_part_has_every_kind() -> None:
    """A kind that is added draws other plans: look for another seed then."""
    plans = list(islice(runs(SHORT.seed, SHORT.draw), SHORT.runs))
    assert {each.kind for plan in plans for each in plan.strikes} == set(Kind)
    assert {plan.stages for plan in plans} == {1, 2}, "with a pipeline and without"


def test_enough_nodes_live_whatever_is_drawn() -> None:
    for plan in islice(runs(11, Draw()), 200):
        lost = sum(TRAITS[strike.kind].nodes_lost for strike in plan.strikes)
        assert plan.nodes + plan.spares - lost >= max(LIVING, plan.replicas)
        assert 4 <= plan.nodes <= 8


def test_only_what_was_asked_for_is_drawn() -> None:
    draw = Draw(kinds=(Kind.KILL, Kind.SLOW), nodes=(5, 5), most_strikes=2)
    for plan in islice(runs(1, draw), 10):
        assert plan.nodes == 5
        assert 0 < len(plan.strikes) <= 2
        assert plan.kinds <= {Kind.KILL, Kind.SLOW}


def test_a_rack_is_lost_first_and_once_while_replicas_can_be_apart() -> None:
    for plan in islice(runs(5, Draw(kinds=(Kind.KILL, Kind.RACK))), 40):
        kinds = [strike.kind for strike in plan.strikes]
        assert Kind.RACK not in kinds[1:]
        assert bool(plan.racks) == (Kind.RACK in kinds)
        assert all(len(rack) <= RACK_NODES <= plan.nodes // 2 for rack in plan.racks)
        if plan.racks:
            assert sum(plan.racks, ()) == tuple(f"node-{n + 1}" for n in range(plan.nodes + plan.spares))


def test_every_kind_is_known_and_can_be_inflicted() -> None:
    assert set(TRAITS) == set(Kind) == set(STRIKES)
