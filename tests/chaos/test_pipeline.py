"""A pipeline whose seats are killed: the ledger is that of one process with the whole model, step by step."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.job import TINY
from tests.chaos.oracle import plain_job, plain_ledger
from tests.chaos.runs import ENDLESS, Run, assert_every_sample_once, fault, largest_difference
from tests.waiting import wait_until

TOLERANCE = 1e-8
STEPS = 40
PIPELINE: dict[str, Any] = {
    **TINY,
    "cluster": {**TINY["cluster"], "nodes": 6, "spares": 0},
    "pipeline": {"stages": 3},
    "model": {**TINY["model"], "layers": 3, "experts": 4},
    "steps": STEPS,
    "optimizer": {
        "learning_rate": 0.003,
        "warmup_steps": 5,
        "schedule": "wsd",
        "decay_steps": 12,
        "final_learning_rate_ratio": 0.1,
        "clip_norm": 0.2,
    },
}
"""Three stages of two trainers: node-2 and node-5 have the seats of the middle one. The learning rate goes down in the
last steps, and gradients are always clipped: by a norm over all parts of all stages."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The ledger of the same model without stages, in one process, nothing failing."""
    job_file = tmp_path_factory.mktemp("plain") / "job.yaml"
    job_file.write_text(yaml.safe_dump({**PIPELINE, "pipeline": {"stages": 1}}))
    return plain_ledger(plain_job(job_file), STEPS)


def widths(run: Run) -> Counter[int]:
    """How many members each stage has in the generation in force."""
    return Counter(member["stage"] for member in run.ask("generation")["members"])


def assert_as_if_nothing_had_happened(run: Run, summary: dict[str, Any], plain: list[dict[str, Any]]) -> None:
    ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    assert largest_difference(ledger, plain) < TOLERANCE
    assert all(incident["steps_lost"] == 0 for incident in summary["incidents"])
    assert summary["samples_missing"] == summary["samples_duplicated"] == 0


def test_a_seat_of_the_middle_stage_dies_and_a_spare_takes_it(
    tmp_path: Path, plain: list[dict[str, Any]]
) -> None:
    """Then one of the last stage, where the loss is; each time the stage peer computes for both until then."""
    faults = [fault(8, "node-2", "dispatch"), fault(24, "node-6", "backward")]
    with Run(tmp_path / "run", "--spares", "2", "--steps", str(STEPS), *faults, job=PIPELINE) as run:
        summary = run.finish()
        assert_as_if_nothing_had_happened(run, summary, plain)
    assert [incident["node"] for incident in summary["incidents"]] == ["node-2", "node-6"]
    assert all(each["phases"]["redundancy_restored_seconds"] is not None for each in summary["incidents"])


@pytest.mark.long
@pytest.mark.parametrize("schedule, chunks", [("interleaved", 2), ("gpipe", 1)])
def test_every_schedule_goes_on_when_a_seat_dies(schedule: str, chunks: int, tmp_path: Path) -> None:
    """Its peer computes for both until a spare has the seat; several chunks of layers die and come back with it."""
    job = {
        **PIPELINE,
        "cluster": {**TINY["cluster"], "nodes": 4, "spares": 1},
        "pipeline": {"stages": 2, "schedule": schedule, "chunks": chunks},
        "model": {**PIPELINE["model"], "layers": 4},
    }
    job_file = tmp_path / "plain.yaml"
    job_file.write_text(yaml.safe_dump({**job, "pipeline": {"stages": 1}}))
    with Run(tmp_path / "run", "--steps", str(STEPS), fault(8, "node-3", "backward"), job=job) as run:
        summary = run.finish()
        assert_as_if_nothing_had_happened(run, summary, plain_ledger(plain_job(job_file), STEPS))
    assert [incident["node"] for incident in summary["incidents"]] == ["node-3"]


@pytest.mark.long
def test_a_stage_goes_on_at_half_its_width_without_a_spare(
    tmp_path: Path, plain: list[dict[str, Any]]
) -> None:
    """In the vote, so that some members have committed the step and others complete it from what they hold."""
    job = {**PIPELINE, "recovery": {"node_starts": 1, "node_failures": 1, "quarantine_seconds": 3600.0}}
    with Run(tmp_path / "run", "--steps", str(STEPS), fault(8, "node-5", "vote"), job=job) as run:
        run.reach(20)
        assert widths(run) == {0: 2, 1: 1, 2: 2}
        summary = run.finish()
        assert_as_if_nothing_had_happened(run, summary, plain)
    assert [incident["node"] for incident in summary["incidents"]] == ["node-5"]


@pytest.mark.long
def test_a_stage_that_is_gone_comes_back_from_the_checkpoint(
    tmp_path: Path, plain: list[dict[str, Any]]
) -> None:
    """Both seats of the middle stage die in one step: all go back, and what was lost is computed again, equal."""
    job = {**PIPELINE, "checkpoint": {"interval_seconds": 1.0}}
    faults = [fault(25, node, "forward") for node in ("node-2", "node-5")]
    with Run(tmp_path / "run", "--spares", "1", "--steps", str(STEPS), *faults, job=job) as run:
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    assert largest_difference(ledger, plain) < TOLERANCE
    assert sum(incident["steps_lost"] for incident in summary["incidents"]) > 0
    assert {incident["node"] for incident in summary["incidents"]} >= {"node-2", "node-5"}


@pytest.mark.long
def test_two_trainers_change_places_for_a_node_more(tmp_path: Path) -> None:
    """Both seats of the first stage come to lie on node-4: one of them goes over to another stage, and a member of that
    one comes here, while training goes on; of each expert two nodes have a replica again."""
    job = {
        **TINY,
        "cluster": {"nodes": 3, "devices_per_node": 2, "spares": 1, "replicas": 2},
        "pipeline": {"stages": 3},
        "model": {**TINY["model"], "layers": 3, "experts": 4},
        "steps": ENDLESS,
        "recovery": {"mass_failure_wait_seconds": 1.0},
    }

    def seats(run: Run) -> dict[str, int]:
        return {member["trainer"]: member["stage"] for member in run.ask("generation")["members"]}

    with Run(tmp_path / "run", job=job) as run:
        run.reach(3)
        for node in ("node-1", "node-2"):
            run.tell("cordon", node)
        assert seats(run)["node-1/0"] == seats(run)["node-2/1"] == 0
        os.kill(run.node("node-1")["trainer_pids"][0], signal.SIGKILL)
        wait_until(lambda: seats(run).get("node-4/0") == 0, within_seconds=60, what="node-4/0 has the seat")
        os.kill(run.node("node-2")["trainer_pids"][1], signal.SIGKILL)
        wait_until(lambda: "node-4/1" in seats(run), within_seconds=60, what="node-4/1 has a seat")
        now = seats(run)
        run.reach(run.ledger()[-1]["step"] + 5)
        summary = run.stop()
        ledger = run.ledger()
    assert Counter(now.values()) == {0: 2, 1: 2, 2: 2}
    assert now["node-4/0"] != now["node-4/1"], now
    job_file = tmp_path / "plain.yaml"
    job_file.write_text(yaml.safe_dump({**job, "pipeline": {"stages": 1}}))
    assert_every_sample_once(ledger, len(ledger))
    assert largest_difference(ledger, plain_ledger(plain_job(job_file), len(ledger))) < TOLERANCE
    assert all(incident["steps_lost"] == 0 for incident in summary["incidents"])
    assert all(each["phases"]["redundancy_restored_seconds"] is not None for each in summary["incidents"])
