"""Wishes to end are counted: each Ctrl-C, and SIGTERM once however often a supervisor repeats it at once."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.cli.interrupts import ONE_WISH_SECONDS, Interrupts


def raised(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_each_ctrl_c_counts() -> None:
    with Interrupts() as heard:
        raised(signal.SIGINT)
        raised(signal.SIGINT)
    assert heard.count == 2


def test_a_sigterm_that_comes_twice_at_once_is_one_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout 60 understudy run` sends it to the process and to its group: that is no wish for a rude end."""
    now = 100.0
    monkeypatch.setattr("orchestrator.cli.interrupts.time.monotonic", lambda: now)
    with Interrupts() as heard:
        raised(signal.SIGTERM)
        raised(signal.SIGTERM)
        assert heard.count == 1
        now += ONE_WISH_SECONDS
        raised(signal.SIGTERM)
    assert heard.count == 2


def test_afterwards_the_signals_mean_what_they_meant() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
