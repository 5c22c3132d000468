"""Warm-up, peak, and the three ways on."""

from __future__ import annotations

import pytest

from worker.training.learning_rate import Decay, LearningRate


def rate(step: int, decay: Decay = Decay.COSINE, *, warmup_steps: int = 10, decay_steps: int = 0) -> float:
    return LearningRate(
        peak=2.0,
        warmup_steps=warmup_steps,
        final_ratio=0.25,
        total_steps=110,
        decay=decay,
        decay_steps=decay_steps,
    ).at(step)


@pytest.mark.parametrize("decay", Decay)
def test_the_first_step_already_moves(decay: Decay) -> None:
    assert rate(1, decay) == pytest.approx(0.2)
    assert rate(10, decay) == pytest.approx(2.0)


@pytest.mark.parametrize("step, value", [(5, 1.0), (10, 2.0), (60, 1.25), (110, 0.5), (5000, 0.5)])
def test_landmarks_of_the_cosine(step: int, value: float) -> None:
    assert rate(step) == pytest.approx(value)


@pytest.mark.parametrize(
    "step, value", [(11, 2.0), (70, 2.0), (80, 2.0 - 1.5 * 0.5), (110, 0.5), (5000, 0.5)]
)
def test_landmarks_of_warm_up_stable_decay(step: int, value: float) -> None:
    """The last 40 steps go down by 1 - sqrt: half of the way after a quarter of them."""
    assert rate(step, Decay.WSD, decay_steps=40) == pytest.approx(value)


def test_a_fifth_of_the_job_decays_unless_said_otherwise() -> None:
    assert rate(88, Decay.WSD) == 2.0
    assert rate(89, Decay.WSD) < 2.0
    assert rate(89, Decay.WSD) == rate(89, Decay.WSD, decay_steps=22)


def test_the_stable_part_does_not_depend_on_the_length_of_the_job() -> None:
    """So a job can be prolonged from a checkpoint of it."""
    short, long = (
        LearningRate(
            peak=2.0, warmup_steps=10, final_ratio=0.0, total_steps=total, decay=Decay.WSD, decay_steps=20
        )
        for total in (100, 900)
    )
    assert [short.at(step) for step in range(1, 81)] == [long.at(step) for step in range(1, 81)]


def test_constant_stays() -> None:
    assert {rate(step, Decay.CONSTANT) for step in range(10, 500)} == {2.0}


@pytest.mark.parametrize("decay", Decay)
def test_it_rises_then_falls(decay: Decay) -> None:
    rates = [rate(step, decay) for step in range(1, 111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_it_starts_near_the_peak() -> None:
    assert rate(1, warmup_steps=0) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("decay", [Decay.COSINE, Decay.WSD])
def test_a_warm_up_longer_than_the_job_is_no_division_by_zero(decay: Decay) -> None:
    late = LearningRate(peak=1.0, warmup_steps=8, final_ratio=0.1, total_steps=8, decay=decay)
    assert late.at(9) == pytest.approx(0.1)


def test_step_zero_is_a_wrong_program() -> None:
    with pytest.raises(AssertionError):
        rate(0)
