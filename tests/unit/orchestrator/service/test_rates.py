"""Allowances: never more than the burst and what has flowed in since, and one peer never takes from another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.rates import Bucket, Buckets, Rate

RATE = Rate(per_second=2.0, burst=5.0)


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 4.0)), max_size=60))
def test_what_is_taken_never_exceeds_what_flowed_in(steps: list[tuple[float, float]]) -> None:
    """Whatever the pauses and the amounts; and a refusal takes nothing."""
    bucket, at, taken = Bucket(RATE, 0.0), 0.0, 0.0
    for pause, amount in steps:
        at += pause
        taken += amount if bucket.take(at, amount) else 0.0
        assert taken <= RATE.burst + at * RATE.per_second + 1e-6


def test_a_burst_is_granted_at_once_and_then_the_rate() -> None:
    bucket = Bucket(RATE, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(0.4)
    assert bucket.take(0.5)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_clock_that_stands_still_or_goes_back_grants_nothing_more() -> None:
    bucket = Bucket(RATE, 10.0)
    assert [bucket.take(at) for at in (10.0, 9.0, 8.0, 10.0, 10.0, 10.0)] == [True] * 5 + [False]


def test_one_peer_does_not_take_from_another() -> None:
    buckets = Buckets(RATE, clock=lambda: 0.0)
    assert [buckets.take("a") for _ in range(6)].count(True) == 5
    assert buckets.take("b")


def test_the_table_is_bounded_and_forgets_who_was_not_seen_for_longest() -> None:
    buckets = Buckets(Rate(per_second=0.0, burst=1.0), clock=lambda: 0.0, peers_max=2)
    assert buckets.take("a") and buckets.take("b")
    assert not buckets.take("a")
    assert buckets.take("c")
    assert len(buckets) == 2
    assert not buckets.take("a"), "b was not seen for longest"
