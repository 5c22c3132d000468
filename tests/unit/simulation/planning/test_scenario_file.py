"""Scenario files: what is wrong is named with its field, its value and a remedy; what is shipped is right."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from simulation.planning.costs import PACKAGED, Costs, Source
from simulation.planning.scenario_file import ScenarioError, load
from tests.unit.simulation.planning.small import plan

EXAMPLES = sorted((Path(__file__).parents[4] / "examples" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_scenarios_that_are_shipped_can_be_played(path: Path) -> None:
    found = load(str(path))
    assert found.scenario.name == path.stem
    assert found.scenario.cluster.gpus == 1024


@pytest.mark.parametrize(
    "override, field, remedy",
    [
        ("cluster.gpus=30", "cluster.gpus", "28 or 32|multiple of cluster.gpus_per_node"),
        ("cluster.replicas=9", "cluster.replicas", "set it to that or less"),
        ("cluster.repliacs=3", "cluster.repliacs", "did you mean 'replicas'"),
        ("failures.mtbf_hours=3", "failures.mtbf_hours", "one of the two"),
        ("failures.count=1000000", "failures.count", "at most"),
        ("days=0", "days", "more than 0"),
        ("days=.inf", "days", "finite"),
        ("checkpoint.interval=often", "checkpoint.interval", "choose one of fixed, auto"),
        ("goals.goodput=95", "goals.goodput", "share from 0 to 1"),
        ("timeouts.lease_seconds=0.1", "timeouts.lease_seconds", "must be longer than"),
        ("costs=nowhere.yaml", "costs", "give the path of a costs"),
        ("failures.kinds={node_crash: 0, node_silent: 0}", "failures.kinds", "at least one kind"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override: str, field: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=remedy) as caught:
        plan(tmp_path, override)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_a_file_of_costs_can_take_the_place_of_the_packaged_one(tmp_path: Path) -> None:
    costs = yaml.safe_load(PACKAGED.read_text())
    costs["crash_notice_seconds"]["value"] = 7.5
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(costs))
    assert plan(tmp_path, "costs=mine.yaml").costs.crash_notice_seconds.value == 7.5
    costs["crash_notice_seconds"]["value"] = -1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(costs))
    with pytest.raises(ScenarioError, match=r"crash_notice_seconds\.value"):
        plan(tmp_path, "costs=mine.yaml")


def test_whatever_is_not_measured_is_said(tmp_path: Path) -> None:
    costs = plan(tmp_path).costs
    notes = " ".join(costs.notes())
    for each in fields(Costs):
        cost = getattr(costs, each.name)
        assert cost.where
        assert cost.scales
        assert (each.name in notes) == (cost.source is not Source.MEASURED)
