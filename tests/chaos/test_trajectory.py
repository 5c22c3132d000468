"""L2 in float32: equal membership gives equal bits; failures move the losses no more than other node counts do.

What the sums' order changes is rounding, until a token's second-best expert changes places with its third: when that
happens is chance, and from there on two runs drift apart like any two runs of different rounding. So losses are
compared with the spread of undisturbed runs up to the first changed choice, and by a plain bound after it. The proof
that nothing but rounding differs is the one in float64 (`test_moments.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.job import TINY
from tests.chaos.oracle import plain_job, plain_ledger
from tests.chaos.runs import Run, assert_every_sample_once, fault

STEPS = 32
FAULT_STEP = 12
FACTOR = 3.0
"""A few undisturbed runs are a small sample of a spread."""
DRIFT = 0.02
"""After a choice has changed: far above what is seen, far below what a lost or doubled sample does."""
JOB = {**TINY, "precision": "float32", "steps": STEPS}

Ledger = list[dict[str, Any]]

pytestmark = pytest.mark.timeout(600)


def ledger_of(workdir: Path, nodes: int, *arguments: str) -> Ledger:
    """The trajectory of a run on so many nodes."""
    with Run(workdir, "--nodes", str(nodes), "--spares", "0", *arguments, job=JOB) as run:
        run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    return ledger


def differences(one: Ledger, other: Ledger) -> list[float]:
    """Of the losses, relative, step by step."""
    pairs = [(float(mine["loss"]), float(theirs["loss"])) for mine, theirs in zip(one, other, strict=True)]
    return [abs(mine - theirs) / theirs for mine, theirs in pairs]


def same_choices(one: Ledger, other: Ledger) -> int:
    """For how many steps the same number of tokens went to each expert."""
    pairs = zip(one, other, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a["expert_load"] != b["expert_load"]), len(one))


@pytest.mark.parametrize(
    "others", [(3,), pytest.param((3, 5), marks=pytest.mark.long)], ids=["beside 3", "beside 3 and 5"]
)
def test_float32_stays_within_the_spread_of_undisturbed_runs(tmp_path: Path, others: tuple[int, ...]) -> None:
    """Undisturbed on 4 nodes, twice, and on others, and disturbed on 4: the second run on 4 is bitwise the first."""
    mine = ledger_of(tmp_path / "on-4", 4)
    again = ledger_of(tmp_path / "on-4-again", 4)
    assert [line["loss"] for line in again] == [line["loss"] for line in mine]
    undisturbed = [ledger_of(tmp_path / f"on-{nodes}", nodes) for nodes in others]
    disturbed = ledger_of(tmp_path / "disturbed", 4, fault(FAULT_STEP, "node-2", "reduce"))
    alike = min(same_choices(ledger, mine) for ledger in (*undisturbed, disturbed))
    assert alike >= FAULT_STEP + 10, "too short a stretch to compare: choose another seed"
    spread = max(max(differences(ledger, mine)[:alike]) for ledger in undisturbed)
    away = differences(disturbed, mine)
    assert max(away[:alike]) <= FACTOR * spread
    assert max(away) <= DRIFT


def test_a_job_of_another_seed_has_another_trajectory(reference: Ledger, tmp_path: Path) -> None:
    """The comparisons of all chaos tests can fail."""
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump({**TINY, "seed": TINY["seed"] + 1}))
    (other,) = plain_ledger(plain_job(job_file), 1)
    assert abs(other["loss"] - reference[0]["loss"]) > 1e-4
