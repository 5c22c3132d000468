"""An agent notices that the controller does not hear it, though the stream looks open."""

from __future__ import annotations

from worker.agent.hearing import ASK_SECONDS, UNHEARD_LIMIT, Hearing


def test_a_controller_that_stops_to_answer_is_noticed() -> None:
    hearing = Hearing()
    hearing.heard(hearing.number(at=1.0))
    assert hearing.number(at=1.0 + ASK_SECONDS) == 2
    assert hearing.unheard_seconds(4.0 + ASK_SECONDS) == 3.0


def test_an_answer_is_asked_for_now_and_then_only() -> None:
    hearing = Hearing()
    assert hearing.number(at=1.0) == 1
    hearing.heard(1)
    assert hearing.number(at=1.0 + 0.9 * ASK_SECONDS) == 0
    assert hearing.unheard_seconds(100.0) == 0.0, "what asks for no answer is not waited for"
    assert hearing.number(at=1.0 + ASK_SECONDS) == 2


def test_an_answer_stands_for_all_before_it() -> None:
    hearing = Hearing()
    for at in (10.0, 20.0, 30.0):
        hearing.number(at)
    hearing.heard(2)
    assert hearing.unheard_seconds(35.0) == 5.0
    hearing.heard(3)
    assert hearing.unheard_seconds(35.0) == 0.0


def test_a_controller_that_never_answers_is_only_an_older_one() -> None:
    hearing = Hearing()
    hearing.number(at=1.0)
    assert hearing.unheard_seconds(100.0) == 0.0


def test_what_is_waited_for_is_bounded() -> None:
    hearing = Hearing()
    hearing.heard(hearing.number(at=0.0))
    for count in range(1, 2 * UNHEARD_LIMIT + 1):
        hearing.number(10.0 * count)
    assert hearing.unheard_seconds(30.0 * UNHEARD_LIMIT) == 20.0 * UNHEARD_LIMIT - 10.0
