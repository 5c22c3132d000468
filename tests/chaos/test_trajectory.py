"""L2 in float32: equal membership gives equal bits; failures move the losses no more than other node counts do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.runs import TINY, Run, assert_every_sample_once, fault

STEPS = 200
FACTOR = 3.0
"""The moment at which a token's second-best expert changes places with its third is chance; from there on runs drift
apart. Three undisturbed runs are a small sample of that."""
JOB = {**TINY, "precision": "float32", "steps": STEPS}

pytestmark = pytest.mark.timeout(400)


def losses(workdir: Path, nodes: int, *arguments: str) -> list[float]:
    """The trajectory of a run on so many nodes."""
    with Run(workdir, "--nodes", str(nodes), "--spares", "0", *arguments, job=JOB) as run:
        run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    return [line["loss"] for line in ledger]


def differences(one: list[float], other: list[float]) -> list[float]:
    """Relative, step by step."""
    return [abs(mine - theirs) / theirs for mine, theirs in zip(one, other, strict=True)]


def test_float32_stays_within_the_spread_of_undisturbed_runs(tmp_path: Path) -> None:
    """Undisturbed on 3, 4, 4 and 5 nodes, and disturbed on 4: the second run on 4 is bitwise the first.

    Before any choice of experts changes the runs agree to 1e-7; what comes after is compared by its size.
    """
    by_nodes = {nodes: losses(tmp_path / f"on-{nodes}", nodes) for nodes in (3, 4, 5)}
    assert losses(tmp_path / "on-4-again", 4) == by_nodes[4]
    disturbed = losses(tmp_path / "disturbed", 4, fault(20, "node-2", "reduce"))
    pairs = [(3, 4), (3, 5), (4, 5)]
    spread = max(max(differences(by_nodes[one], by_nodes[other])) for one, other in pairs)
    away = min(max(differences(disturbed, undisturbed)) for undisturbed in by_nodes.values())
    assert away <= FACTOR * spread, f"disturbed by {away:.2e}, undisturbed runs differ by {spread:.2e}"


def test_a_run_of_another_seed_is_another_trajectory(reference: list[dict[str, Any]], tmp_path: Path) -> None:
    """The comparisons above can fail."""
    with Run(tmp_path / "run", "--spares", "0", "--steps", "5", "--set", "seed=8", job=TINY) as run:
        run.finish()
        ledger = run.ledger()
    assert abs(ledger[0]["loss"] - reference[0]["loss"]) > 1e-4
