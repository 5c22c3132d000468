"""L7 while training: a flipped bit is found, its owner is named, and the trajectory is that of sound machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import Run, assert_every_sample_once, largest_difference

TOLERANCE = 1e-8
STEPS = 36

pytestmark = pytest.mark.timeout(400)


def run(workdir: Path, fail: str, *arguments: str, **sections: dict[str, Any]) -> tuple[Any, Any]:
    """The summary and the ledger of a run with one fault."""
    job = {**TINY, **sections}
    with Run(workdir, "--steps", str(STEPS), f"--fail={fail}", *arguments, job=job) as whole:
        summary = whole.finish()
        ledger = whole.ledger()
    assert_every_sample_once(ledger, STEPS)
    return summary, ledger


def test_a_bit_that_flips_within_a_step_is_known_by_its_owner(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """Two replicas suffice: nobody writes to a replica within a step, so its owner testifies against itself."""
    summary, ledger = run(
        tmp_path / "run",
        "step=12,kind=bitflip,node=node-2,phase=backward,tensor=v",
        integrity={"interval_steps": 4},
    )
    (incident,) = summary["incidents"]
    assert (incident["kind"], incident["node"], incident["steps_lost"]) == ("corruption", "node-2", 0)
    assert "nobody writes to it then" in incident["reasons"][0]
    assert_nobody_wrote_the_secret_down(tmp_path / "run")
    assert incident["phases"]["redundancy_restored_seconds"] is not None
    assert largest_difference(ledger, reference) < TOLERANCE


def assert_nobody_wrote_the_secret_down(workdir: Path) -> None:
    """State was copied with it; it is in no log, no database, no manifest."""
    kept = workdir / "copy-token"
    secret = kept.read_bytes()
    files = [path for path in workdir.rglob("*") if path.is_file() and path != kept]
    assert any(path.suffix == ".db" for path in files)
    assert not [path for path in files if secret in path.read_bytes()]


def test_a_bit_of_one_of_three_replicas_is_outvoted(tmp_path: Path, reference: list[dict[str, Any]]) -> None:
    """Flipped in the middle of a commit, which no look at one's own state can tell from a write."""
    summary, ledger = run(
        tmp_path / "run",
        "step=12,kind=bitflip,node=node-3,phase=optimizer",
        cluster={**TINY["cluster"], "replicas": 3},
        integrity={"interval_steps": 1},
    )
    (incident,) = summary["incidents"]
    assert (incident["kind"], incident["node"], incident["steps_lost"]) == ("corruption", "node-3", 0)
    assert "2 of 3 replicas" in incident["reasons"][0]
    assert incident["phases"]["redundancy_restored_seconds"] is not None
    assert largest_difference(ledger, reference) < TOLERANCE


def test_where_nobody_can_say_who_is_right_all_go_back_to_what_was_compared(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """One of two replicas, long before the next comparison: the steps in between are wrong, and are computed again."""
    summary, ledger = run(
        tmp_path / "run",
        "step=13,kind=bitflip,node=node-2,phase=optimizer",
        checkpoint={"interval_seconds": 0.3},
        integrity={"interval_steps": 10},
        snapshot={"enabled": False},
    )
    (incident,) = summary["incidents"]
    assert incident["kind"] == "corruption"
    assert "no majority says which is right" in incident["reasons"][0]
    assert incident["action"] == "restore from checkpoint"
    rolled_back = (tmp_path / "run" / "metrics.rolled-back.jsonl").read_text().splitlines()
    assert len(rolled_back) == incident["steps_lost"] > 0
    assert largest_difference(ledger, reference) < TOLERANCE


@pytest.mark.long  # the fault itself is one of `understudy chaos --short`
def test_a_number_that_is_none_costs_one_step(tmp_path: Path, reference: list[dict[str, Any]]) -> None:
    """Computed again from the same samples, sound, and the member whose error it was is named."""
    summary, ledger = run(tmp_path / "run", "step=12,kind=nan,node=node-4")
    (incident,) = summary["incidents"]
    assert (incident["kind"], incident["node"]) == ("not-finite", "node-4")
    assert (incident["steps_lost"], incident["steps_redone"]) == (0, 1)
    assert incident["action"] == "compute the step again"
    assert {line["generation"] for line in ledger} == {1}
    assert largest_difference(ledger, reference) < TOLERANCE
