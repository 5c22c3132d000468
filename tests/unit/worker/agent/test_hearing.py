"""An agent notices that the controller does not hear it, though the stream looks open."""

from __future__ import annotations

from worker.agent.hearing import UNHEARD_LIMIT, Hearing


def test_a_controller_that_stops_to_answer_is_noticed() -> None:
    hearing = Hearing()
    hearing.heard(hearing.number(at=1.0))
    assert hearing.number(at=2.0) == 2
    assert hearing.unheard_seconds(5.0) == 3.0


def test_an_answer_stands_for_all_before_it() -> None:
    hearing = Hearing()
    for at in (1.0, 2.0, 3.0):
        hearing.number(at)
    hearing.heard(2)
    assert hearing.unheard_seconds(5.0) == 2.0
    hearing.heard(3)
    assert hearing.unheard_seconds(5.0) == 0.0


def test_a_controller_that_never_answers_is_only_an_older_one() -> None:
    hearing = Hearing()
    hearing.number(at=1.0)
    assert hearing.unheard_seconds(100.0) == 0.0


def test_what_is_waited_for_is_bounded() -> None:
    hearing = Hearing()
    hearing.heard(hearing.number(at=0.0))
    for at in range(2 * UNHEARD_LIMIT):
        hearing.number(float(at))
    assert hearing.unheard_seconds(3.0 * UNHEARD_LIMIT) == 2 * UNHEARD_LIMIT
