"""The summary's JSON: its names are a promise to scripts, its values come from the state and the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.controller.ledger_lines import encode_line, sum_up
from orchestrator.core.state import ClusterState, JobState
from orchestrator.service import snapshot, summary
from orchestrator.service.ledger_view import LedgerFollower
from tests.cluster_states import NOW, ended, record, working


def _summary(state: ClusterState, tmp_path: Path, steps: int) -> dict[str, Any]:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(encode_line(record(step)) for step in range(1, steps + 1)))
    taken = snapshot.take(state)
    ledger = LedgerFollower(path, recent=1).look(since=1000.0)
    text = summary.summary(taken, sum_up(path, summary.samples_per_step(taken)), ledger, NOW)
    made = json.loads(text)
    assert isinstance(made, dict)
    return made


def test_every_promised_name_is_there(tmp_path: Path) -> None:
    made = _summary(working(), tmp_path, 12)
    assert list(made) == [
        "job", "steps_committed", "final_loss", "samples_expected", "samples_counted", "samples_duplicated",
        "samples_missing", "steps_not_finite", "goodput", "generations", "incidents", "checkpoints", "snapshots",
        "validation",
    ]  # fmt: skip
    assert list(made["incidents"][0]) == [
        "id", "kind", "node", "cause", "action", "reasons", "phases", "steps_lost", "steps_redone",
        "window_seconds",
    ]  # fmt: skip
    assert list(made["checkpoints"][0]) == ["step", "path", "bytes", "seconds"]


def test_the_numbers_are_those_of_ledger_and_state(tmp_path: Path) -> None:
    made = _summary(ended(JobState.FINISHED), tmp_path, 12)
    assert (made["job"], made["steps_committed"], made["final_loss"], made["generations"]) == (
        "small",
        12,
        5.0,
        3,
    )
    assert (made["samples_expected"], made["samples_counted"]) == (72, 72)
    assert (made["samples_duplicated"], made["samples_missing"]) == (0, 0)
    assert made["goodput"] == 6.0 / 900.0
    assert made["checkpoints"] == [
        {"step": 10, "path": "/w/checkpoints/step-00000010.g0003", "bytes": 4096, "seconds": 1.5}
    ]


def test_a_phase_that_is_not_over_is_null(tmp_path: Path) -> None:
    closed, open_one = _summary(working(), tmp_path, 1)["incidents"]
    assert closed["phases"] == {
        "detect_seconds": 0.25,
        "decide_seconds": 0.25,
        "regroup_seconds": 1.0,
        "first_commit_seconds": 2.0,
        "redundancy_restored_seconds": 10.0,
    }
    assert open_one["phases"] == {
        "detect_seconds": 0.5,
        "decide_seconds": None,
        "regroup_seconds": None,
        "first_commit_seconds": None,
        "redundancy_restored_seconds": None,
    }


def test_nothing_is_known_of_a_job_that_has_not_begun(tmp_path: Path) -> None:
    made = _summary(ClusterState(), tmp_path, 0)
    assert (made["job"], made["final_loss"], made["steps_committed"], made["incidents"]) == (
        None,
        None,
        0,
        [],
    )
