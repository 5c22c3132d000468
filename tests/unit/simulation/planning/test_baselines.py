"""The baseline agrees with the closed form, where the form's assumptions hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.intervals import efficiency, young_daly_seconds
from simulation.planning.baselines import restart_everybody
from simulation.planning.failures import draw
from simulation.planning.play import BINS
from simulation.planning.replica_groups import leave_out_groups
from simulation.planning.report import goodput
from tests.unit.simulation.planning.small import plan

PROCESSES = ("failures.kinds.process_crash=1", "failures.kinds.node_crash=0", "failures.kinds.node_silent=0")


@pytest.mark.parametrize("mtbf_hours, interval", [(6.6, 900), (1.0, 900), (0.5, 300), (0.5, 1800)])
def test_restarts_from_checkpoints_cost_what_daly_says(
    mtbf_hours: float, interval: float, tmp_path: Path
) -> None:
    """Processes fail, so that no node is away; 3,000 failures, so that luck has little say."""
    found = plan(
        tmp_path,
        *PROCESSES,
        f"days={mtbf_hours * 3000 / 24}",
        "failures.count=0",
        f"failures.mtbf_hours={mtbf_hours}",
        f"checkpoint.interval_seconds={interval}",
        "training.step_seconds=0.5",
    )
    baseline = restart_everybody(
        found.scenario, found.costs, draw(found.scenario, tmp_path, found.scenario.seed), BINS
    )
    assert 1 - goodput(found.scenario, baseline.steps) == pytest.approx(1 - baseline.closed_form, rel=0.05)


def test_the_interval_of_young_and_daly_is_the_best_of_the_closed_form() -> None:
    for stall, mean in ((1.0, 24_000.0), (17.0, 24_000.0), (10.0, 600.0)):
        best = young_daly_seconds(stall, mean)
        at_best = efficiency(best, stall, 60.0, mean)
        assert at_best > efficiency(best * 1.3, stall, 60.0, mean)
        assert at_best > efficiency(best / 1.3, stall, 60.0, mean)


def test_a_quarter_of_an_hour_is_right_for_a_stall_of_seventeen_seconds() -> None:
    mean = 35 * 86_400 / 127
    assert young_daly_seconds(17.0, mean) == pytest.approx(900, rel=0.02)
    assert young_daly_seconds(1.0, mean) == pytest.approx(218, rel=0.02)


def test_nonsense_has_no_interval() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        young_daly_seconds(1.0, 0.0)


def test_leaving_out_a_replica_group_drops_its_samples_until_it_is_healed(tmp_path: Path) -> None:
    """Groups are of two nodes: one of four is away for the two hours that its node is."""
    trace = "at_hours,kind,node,repair_hours\n10,node_crash,3,2\n"
    (tmp_path / "trace.csv").write_text(trace)
    found = plan(tmp_path, "failures.count=0", "failures.trace=trace.csv", "cluster.spare_nodes=0")
    failures = draw(found.scenario, tmp_path, 1)
    groups = leave_out_groups(found.scenario, found.costs, failures, BINS)
    assert groups.groups == 4
    assert groups.dropped_share == pytest.approx(2 / 96 / 4, rel=0.02)
    assert 1 - groups.goodput == pytest.approx(2 / 96 / 4 + 0.02 / 6.02, rel=0.03), (
        "and a quorum in each step"
    )
