"""A collective that was waited for in vain is given twice as long next time, up to a limit."""

from __future__ import annotations

from worker.parallel.patience import DOUBLINGS_AT_MOST, Patience


def test_only_a_time_out_lengthens_the_next_wait() -> None:
    patience = Patience()
    patience.heed(timed_out=False)
    assert patience.seconds(120.0) == 120.0
    patience.heed(timed_out=True)
    patience.heed(timed_out=False)
    assert patience.seconds(120.0) == 240.0, "what took long once may again"


def test_it_is_bounded() -> None:
    patience = Patience()
    for _ in range(2 * DOUBLINGS_AT_MOST):
        patience.heed(timed_out=True)
    assert patience.seconds(1.0) == 2.0**DOUBLINGS_AT_MOST
