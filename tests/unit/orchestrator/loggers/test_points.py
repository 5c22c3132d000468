"""Numbers that are worked out: goodput over a window, evenness of experts, the step of an incident."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.ids import GenerationNumber
from orchestrator.loggers.points import GOODPUT_STEPS, StepPoints, incident_point
from tests.unit.orchestrator.controller.fakes import record
from tests.unit.orchestrator.loggers.stories import incident


def test_goodput_falls_with_an_outage_and_is_back_when_the_window_has_passed_it() -> None:
    points = StepPoints()
    seen = []
    for step in range(1, 2 * GOODPUT_STEPS + 2):
        at = 0.5 * step + (30.0 if step > GOODPUT_STEPS else 0.0)
        seen.append(points.point(replace(record(step), time=at)).scalars["goodput"])
    assert seen[GOODPUT_STEPS - 1] == pytest.approx(1.0)
    assert seen[GOODPUT_STEPS] == pytest.approx(50.0 / 80.0)
    assert seen[-1] == pytest.approx(1.0)


def test_a_record_of_an_old_ledger_has_fewer_curves() -> None:
    old = replace(record(1), layer_load=(), learning_rate=None, gradient_norm=None)
    assert set(StepPoints().point(old).scalars) == {
        "loss", "step_seconds", "goodput", "generation", "tokens_per_second",
    }  # fmt: skip


def test_a_layer_that_nobody_reached_has_no_evenness() -> None:
    scalars = StepPoints().point(replace(record(1), layer_load=((0, 0), (3, 1)))).scalars
    assert "expert_load/layer_00" not in scalars
    assert scalars["expert_load/layer_01"] == 1.5
    assert scalars["expert_utilisation/mean"] == scalars["expert_utilisation/layer_01"] == 0.75


def test_the_step_of_an_incident_is_the_first_that_its_generation_or_a_later_one_committed() -> None:
    points = StepPoints()
    for step, generation in ((1, 1), (2, 1), (3, 4), (4, 4), (5, 5)):
        points.point(record(step, generation))
    assert [points.first_step_of(GenerationNumber(number)) for number in (1, 2, 4, 5, 6)] == [1, 3, 3, 5, 5]


def test_an_incident_that_took_no_replica_has_no_window() -> None:
    scalars = incident_point(incident(exposed_at=None, first_commit_at=None), 3).scalars
    assert set(scalars) == {"incident/steps_lost", "incident/steps_redone", "incident/restored_seconds"}
