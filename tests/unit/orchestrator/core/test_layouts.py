"""Layouts for so many devices: which come first, and that every one could run."""

from __future__ import annotations

from orchestrator.core import layouts, spec_rules
from orchestrator.core.spec import Recompute
from tests.unit.orchestrator.core.test_memory import job

H100 = layouts.KINDS["h100"]


def test_what_fits_and_survives_any_one_node_comes_first() -> None:
    found = layouts.propose(job(), devices=8, kind=H100, device_memory=40_000_000)
    assert {each.spec.cluster.replicas for each in found} == {1, 2, 3}
    ranks = [(not each.fits, each.chances[0] < 1.0) for each in found]
    assert ranks == sorted(ranks) and len(set(ranks)) > 2
    best = found[0]
    assert best.fits and best.chances[0] == 1.0 and best.spec.compute.recompute is Recompute.ALL
    assert all(spec_rules.problems(each.spec) == () for each in found)
    assert {each.spec.cluster.nodes for each in found} == {8}


def test_with_room_enough_nothing_is_computed_twice() -> None:
    best = layouts.propose(job(), devices=8, kind=H100, device_memory=10**12)[0]
    assert best.spec.compute.recompute is Recompute.NOTHING
    slow = layouts.measure(job(compute__recompute="all"), kind=H100, device_memory=10**12)
    assert slow.compute_seconds > layouts.measure(job(), kind=H100, device_memory=10**12).compute_seconds


def test_more_devices_than_places_give_no_layout() -> None:
    assert (
        layouts.propose(job(model__experts=2, model__top_k=1), devices=64, kind=H100, device_memory=1) == ()
    )
