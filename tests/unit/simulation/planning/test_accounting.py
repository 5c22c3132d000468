"""Every GPU-second is in one cause, and what is lost has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulation.planning.meter import Cause
from tests.unit.simulation.planning.small import play, report

VARIANTS = (
    (),
    ("cluster.spare_nodes=0",),
    ("cluster.replicas=1",),
    ("cluster.replicas=3", "checkpoint.interval_seconds=120"),
    ("checkpoint.interval=auto",),
    ("cluster.gpus=64", "cluster.gpus_per_node=32"),
    ("failures.kinds.rack_crash=1", "failures.kinds.node_silent=0"),
    ("failures.kinds.process_crash=1", "failures.kinds.process_hang=1"),
    ("failures.count=0", "failures.mtbf_hours=0.5", "failures.distribution=weibull", "days=1"),
)


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_gpu_hours_add_up_to_gpus_times_time(overrides: tuple[str, ...], tmp_path: Path) -> None:
    found = report(tmp_path, *overrides)
    scenario = found["scenario"]
    gpus = (scenario["nodes"] + scenario["spare_nodes"]) * scenario["gpus_per_node"]
    played = (found, found["baseline"], found["replica_groups"])
    for hours in (each["gpu_hours"] for each in played):
        causes = [value for name, value in hours.items() if name != "total"]
        assert sum(causes) == pytest.approx(gpus * scenario["days"] * 24, rel=1e-6)
        assert min(causes) > -1e-6
    assert 0 < found["goodput"] < 1
    assert not found["ended"]


def test_nothing_fails_and_only_saves_cost(tmp_path: Path) -> None:
    found = report(tmp_path, "failures.count=0")
    stall = (found["gpu_hours"]["checkpoint_stall"] + found["gpu_hours"]["snapshot_stall"]) / (32 * 96)
    protection = found["gpu_hours"]["protection"] / (32 * 96)
    assert found["goodput"] == pytest.approx(1 - stall - protection, abs=1e-4)
    assert found["incidents"] == found["steps_lost"] == found["steps_redone"] == 0
    for cause in ("detection", "regroup", "rollback", "degraded_capacity", "under_repair", "copy_stall"):
        assert found["gpu_hours"][cause] == pytest.approx(0, abs=1e-6), cause


def test_the_same_seed_gives_the_same_report_and_another_seed_another(tmp_path: Path) -> None:
    first, again = report(tmp_path), report(tmp_path)
    assert json.dumps(first) == json.dumps(again)
    assert json.dumps(first) != json.dumps(report(tmp_path, "seed=2"))


def test_more_replicas_never_lose_more_steps_on_the_same_failures(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        lost = [
            play(
                tmp_path,
                f"cluster.replicas={replicas}",
                f"seed={seed}",
                "days=2",
                "failures.count=30",
                "failures.kinds.rack_crash=0.5",
            ).steps_lost
            for replicas in (1, 2, 3)
        ]
        assert lost == sorted(lost, reverse=True), (seed, lost)
        assert lost[0] > 0, "with one replica a lost node takes an expert with it"


def test_useful_hours_are_the_steps_that_count(tmp_path: Path) -> None:
    played = play(tmp_path, "cluster.replicas=1")
    useful = played.meter.gpu_seconds[Cause.USEFUL]
    assert useful == pytest.approx(played.steps * 6.0 * 32, rel=1e-4)  # the last step may be half done


def test_without_spares_work_is_shared_out_and_that_is_counted(tmp_path: Path) -> None:
    spared, bare = report(tmp_path), report(tmp_path, "cluster.spare_nodes=0")
    assert bare["gpu_hours"]["degraded_capacity"] > 5 * spared["gpu_hours"]["degraded_capacity"]
    assert bare["spares"]["missing_seats_share"] > spared["spares"]["missing_seats_share"]
    assert bare["goodput"] < spared["goodput"]
    assert bare["steps_lost"] == 0


def test_the_spares_called_enough_are_enough_in_the_game(tmp_path: Path) -> None:
    found = report(tmp_path, "failures.count=60")
    needed = found["spares"]["needed"]
    enough = report(tmp_path, "failures.count=60", f"cluster.spare_nodes={needed}")
    assert enough["spares"]["missing_seats_share"] < 0.02, (
        "the allowed 1 % and the seconds in which spares are seated"
    )
    assert needed > 0
    fewer = report(tmp_path, "failures.count=60", f"cluster.spare_nodes={needed - 1}")
    assert fewer["spares"]["missing_seats_share"] > 0.01
