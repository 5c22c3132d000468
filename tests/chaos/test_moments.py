"""L1, L2, L3: whatever moment of a step a machine dies in, the ledger is that of a run without failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import Run, assert_every_sample_once, fault, largest_difference

TOLERANCE = 1e-8

pytestmark = pytest.mark.timeout(400)


def test_a_node_dies_in_every_moment_of_a_step(tmp_path: Path, reference: list[dict[str, Any]]) -> None:
    """Five machines die, each in another moment, and a trainer alone, which comes back; four spares walk on."""
    faults = [
        fault(20, "node-2", "forward"),
        fault(35, "node-3", "vote", target="trainer"),
        fault(50, "node-6", "dispatch"),
        fault(80, "node-4", "reduce"),
        fault(110, "node-1", "vote"),
        fault(140, "node-5", "optimizer"),
    ]
    with Run(tmp_path / "run", "--spares", "4", "--steps", "200", *faults, job=TINY) as run:
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, 200)
    assert largest_difference(ledger, reference) < TOLERANCE
    assert [incident["node"] for incident in summary["incidents"]] == [
        "node-2",
        "node-3",
        "node-6",
        "node-4",
        "node-1",
        "node-5",
    ]
    assert summary["incidents"][1]["kind"] == "trainer-lost"
    assert all(incident["steps_lost"] == 0 for incident in summary["incidents"])
    assert all(
        incident["phases"]["redundancy_restored_seconds"] is not None for incident in summary["incidents"]
    )
    assert summary["samples_missing"] == summary["samples_duplicated"] == 0


def test_a_death_in_a_checkpoint_and_in_the_recovery_of_that_death(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """A node dies right after its snapshot, and another one while the survivors regroup; the spare dies copying."""
    faults = [
        fault(10, "node-3", "checkpoint"),
        fault(10, "node-1", "regroup"),
        fault(10, "node-6", "acquire"),
    ]
    job = {
        **TINY,
        "cluster": {**TINY["cluster"], "nodes": 5, "replicas": 3},
        "checkpoint": {"interval_seconds": 1.0},
    }
    with Run(tmp_path / "run", "--spares", "2", "--steps", "80", *faults, job=job) as run:
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, 80)
    assert largest_difference(ledger, reference) < TOLERANCE
    assert {incident["node"] for incident in summary["incidents"]} >= {"node-3", "node-1"}
    assert all(incident["steps_lost"] == 0 for incident in summary["incidents"])
