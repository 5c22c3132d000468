"""The scenarios that are shipped reach their goals at their full size: 1,024 trainers through the real core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulation.planning.simulate import load, simulate

FOLDER = Path(__file__).parents[2] / "examples" / "scenarios"


def play(name: str, *overrides: str) -> dict[str, Any]:
    plan = load(str(FOLDER / f"{name}.yaml"), overrides)
    return simulate(plan, 1, lambda run, share, incidents: None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_127_failures_in_35_days_on_1024_gpus() -> None:
    found = play("1024-gpus-127-failures")
    assert sum(found["failures"].values()) == 127
    assert found["goodput"] >= 0.995
    assert found["steps_lost"] == 0
    assert not found["ended"]
    assert found["goodput"] > found["baseline"]["goodput"] + 0.02
    total = sum(hours for name, hours in found["gpu_hours"].items() if name != "total")
    assert total == pytest.approx((1024 + 6 * 8) * 35 * 24, rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failure_every_ten_minutes_on_1024_gpus() -> None:
    found = play("1024-gpus-10-minute-mtbf", "days=1")
    assert sum(found["failures"].values()) > 100
    assert found["goodput"] >= 0.95
    assert found["steps_lost"] == 0
    assert not found["ended"]
