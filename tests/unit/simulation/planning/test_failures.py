"""What fails when: drawn from a seed or read from a trace, on hardware that is up."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import mean, pstdev

import pytest

from simulation.planning.failures import FailureKind, draw
from simulation.planning.scenario_file import ScenarioError
from simulation.planning.spares import missing_seats_share
from tests.unit.simulation.planning.small import plan, play


def test_a_count_is_kept_and_lies_within_the_time(tmp_path: Path) -> None:
    found = plan(tmp_path, "failures.count=127")
    failures = draw(found.scenario, tmp_path, 3)
    assert len(failures) == 127
    assert all(0 <= each.at < found.scenario.seconds for each in failures)
    assert list(failures) == sorted(failures, key=lambda each: each.at)


@pytest.mark.parametrize("distribution", ["exponential", "weibull"])
def test_the_mean_between_failures_is_the_one_asked_for(distribution: str, tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "days=400",
        "failures.count=0",
        "failures.mtbf_hours=2",
        "failures.repair_hours=0.1",
        f"failures.distribution={distribution}",
    )
    moments = [each.at for each in draw(found.scenario, tmp_path, 1)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert mean(gaps) == pytest.approx(7200, rel=0.05)
    bursts = pstdev(gaps) / mean(gaps)
    assert bursts == pytest.approx({"exponential": 1.0, "weibull": 1.46}[distribution], rel=0.06)


def test_a_node_that_is_away_does_not_fail_again(tmp_path: Path) -> None:
    found = plan(tmp_path, "failures.count=300", "failures.repair_hours=5")
    away: dict[int, float] = {}
    for failure in draw(found.scenario, tmp_path, 1):
        for node, back_at in zip(failure.nodes, failure.back_at, strict=True):
            assert away.get(node, 0.0) <= failure.at
            away[node] = back_at


def test_the_same_things_fail_whatever_the_replicas(tmp_path: Path) -> None:
    one, three = (plan(tmp_path, f"cluster.replicas={replicas}") for replicas in (1, 3))
    assert draw(one.scenario, tmp_path, 1) == draw(three.scenario, tmp_path, 1)


def test_a_rack_fails_as_a_whole(tmp_path: Path) -> None:
    found = plan(tmp_path, "failures.kinds.rack_crash=1", "failures.kinds.node_crash=0", "failures.count=5")
    for failure in draw(found.scenario, tmp_path, 1):
        assert failure.kind in (FailureKind.RACK_CRASH, FailureKind.NODE_SILENT)
        if failure.kind is FailureKind.RACK_CRASH:
            assert len({node // 2 for node in failure.nodes}) == 1


def test_a_trace_is_played_as_it_is_written(tmp_path: Path) -> None:
    trace = "at_hours,kind,node,repair_hours\n1.5,node_crash,3,4\n2.0,process_hang,1,0\n"
    (tmp_path / "trace.csv").write_text(trace)
    found = plan(tmp_path, "failures.count=0", "failures.trace=trace.csv")
    first, second = draw(found.scenario, tmp_path, 1)
    assert (first.at, first.kind, first.nodes) == (5400.0, FailureKind.NODE_CRASH, (2,))
    assert first.back_at == (5400.0 + 4 * 3600,)
    assert (second.kind, second.back_at) == (FailureKind.PROCESS_HANG, ())
    played = play(tmp_path, "failures.count=0", "failures.trace=trace.csv")
    assert [each.kind.value for each in played.incidents] == ["node-lost", "trainer-hung"]


@pytest.mark.parametrize(
    "row, named",
    [
        ("x,node_crash,1,1", "at_hours"),
        ("1,node_crash,99,1", "node"),
        ("1,meteor,1,1", "kind"),
        ("1,node_crash,1,nan", "repair_hours"),
        ("500,node_crash,1,1", "at_hours"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(row: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(f"at_hours,kind,node,repair_hours\n{row}\n")
    with pytest.raises(ScenarioError, match=f"line 2, {named}"):
        plan(tmp_path, "failures.count=0", "failures.trace=trace.csv")


def test_spares_are_missing_while_more_nodes_are_away_than_there_are_spares(tmp_path: Path) -> None:
    rows = "1,node_crash,1,2\n2,node_crash,2,2\n2.5,node_crash,3,0.25\n"
    (tmp_path / "trace.csv").write_text(f"at_hours,kind,node,repair_hours\n{rows}")
    found = plan(tmp_path, "failures.count=0", "failures.trace=trace.csv")
    failures = draw(found.scenario, tmp_path, 1)
    hours = [missing_seats_share(failures, spares, found.scenario.seconds) * 96 for spares in range(4)]
    assert hours == pytest.approx([3.0, 1.0, 0.25, 0.0])
