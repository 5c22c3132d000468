"""Warm-up, peak, decay."""

from __future__ import annotations

import pytest

from worker.training.learning_rate import learning_rate


def rate(step: int, *, warmup_steps: int = 10) -> float:
    return learning_rate(step, peak=2.0, warmup_steps=warmup_steps, final_ratio=0.25, total_steps=110)


def test_the_first_step_already_moves() -> None:
    assert rate(1) == pytest.approx(0.2)


@pytest.mark.parametrize("step, value", [(5, 1.0), (10, 2.0), (60, 1.25), (110, 0.5), (5000, 0.5)])
def test_landmarks(step: int, value: float) -> None:
    assert rate(step) == pytest.approx(value)


def test_it_rises_then_falls() -> None:
    rates = [rate(step) for step in range(1, 111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_it_starts_near_the_peak() -> None:
    assert rate(1, warmup_steps=0) == pytest.approx(2.0, rel=1e-3)


def test_a_warm_up_longer_than_the_job_is_no_division_by_zero() -> None:
    assert learning_rate(9, peak=1.0, warmup_steps=8, final_ratio=0.1, total_steps=8) == pytest.approx(0.1)


def test_step_zero_is_a_wrong_program() -> None:
    with pytest.raises(AssertionError):
        rate(0)
