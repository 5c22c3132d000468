"""The ring of step records against a plain list that forgets nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.agent.stories import FIRST, committed
from worker.agent.step_ring import KeptStep, StepRing


def _kept(step: int, generation: int = 1) -> KeptStep:
    return KeptStep(trainer=FIRST, start=1, record=committed(step, generation))


def _numbers(ring: StepRing, after: int = 0) -> list[int]:
    return [kept.record.step for kept in ring.after(after)]


def test_records_come_back_in_the_order_of_their_steps() -> None:
    """A completed step may be told after the one that follows it."""
    ring = StepRing(10)
    for step in (2, 1, 4, 3):
        assert ring.add(_kept(step))
    assert _numbers(ring) == [1, 2, 3, 4]
    assert _numbers(ring, after=2) == [3, 4]


def test_a_full_ring_forgets_the_oldest_step() -> None:
    """And takes none that is older still."""
    ring = StepRing(3)
    for step in (5, 6, 7, 8):
        ring.add(_kept(step))
    assert _numbers(ring) == [6, 7, 8]
    assert not ring.add(_kept(2))
    assert _numbers(ring) == [6, 7, 8]


def test_an_undone_step_gives_way_to_the_one_that_happened() -> None:
    """Restored to 4 in generation 3: 5 of generation 2 is gone for good, 5 of generation 3 counts."""
    ring = StepRing(10)
    for step in (4, 5, 6):
        ring.add(_kept(step, generation=2))
    ring.roll_back(4, 3)
    assert _numbers(ring) == [4]
    assert not ring.add(_kept(6, generation=2))
    assert ring.add(_kept(3, generation=2))
    assert ring.add(_kept(5, generation=3))
    assert [kept.record.generation for kept in ring.after(4)] == [3]


ACTS = st.lists(st.one_of(st.just(None), st.integers(0, 30)), max_size=80)
"""None commits the next step; a number restores that step, if so many were committed."""


@given(ACTS, st.integers(1, 12), st.integers(0, 30))
def test_what_is_sent_again_is_the_newest_of_what_happened(
    acts: list[int | None], limit: int, reported_through: int
) -> None:
    """Any history of commits and restores: the last records in a row, each once, none that was undone."""
    ring, generation, step = StepRing(limit), 1, 0
    happened: dict[int, int] = {}
    for restored in acts:
        if restored is None:
            step += 1
            assert ring.add(_kept(step, generation))
            happened[step] = generation
        elif restored <= step:
            step, generation = restored, generation + 1
            ring.roll_back(step, generation)
            happened = {number: made for number, made in happened.items() if number <= step}
            assert not ring.add(_kept(step + 1, generation - 1)), "undone, and told late"
    sent = {kept.record.step: kept.record.generation for kept in ring.after(reported_through)}
    assert len(ring) <= limit
    assert list(sent) == sorted(sent)
    assert sent.items() <= happened.items()
    if step <= limit and None in acts and not [restored for restored in acts if restored is not None]:
        assert list(sent) == list(range(reported_through + 1, step + 1))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 60))
def test_a_controller_that_comes_back_gets_every_step_it_lacks(
    steps: int, limit: int, reported_through: int
) -> None:
    """Steps commit one after the other: all above `reported_through` come, or the newest `limit` of them."""
    ring = StepRing(limit)
    for step in range(1, steps + 1):
        assert ring.add(_kept(step))
        assert not ring.add(_kept(step))
    kept = range(max(0, steps - limit) + 1, steps + 1)
    assert _numbers(ring, reported_through) == [step for step in kept if step > reported_through]
