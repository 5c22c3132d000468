"""How a model is computed, while machines fail: recomputation changes nothing, bfloat16 stays near itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.job import TINY
from tests.chaos.oracle import plain_job, plain_ledger
from tests.chaos.runs import Run, assert_every_sample_once, fault, largest_difference

TOLERANCE = 1e-8
DRIFT = 0.05
"""Of losses in bfloat16: summation order changes with membership, and choices of experts with it."""
STEPS = 24
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(600)


def test_recomputation_changes_nothing_while_a_machine_dies_in_the_backward_pass(
    reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The reference keeps all activations, on one node."""
    job = {**TINY, "compute": {"recompute": "all"}, "steps": STEPS}
    with Run(tmp_path / "run", fault(9, "node-2", "backward"), job=job) as run:
        summary = run.finish()
    assert len(summary["incidents"]) == 1
    assert_every_sample_once(run.ledger(), STEPS)
    assert largest_difference(run.ledger(), reference) < TOLERANCE


@pytest.mark.long
def test_bfloat16_with_a_death_and_a_number_that_is_none(tmp_path: Path) -> None:
    """The step with a NaN is computed again by everybody, and counted; equal membership gives equal bits."""
    job = {**TINY, "precision": "bfloat16", "compute": {"recompute": "experts"}, "steps": STEPS}

    def losses(name: str, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with Run(tmp_path / name, "--spares", "0", *arguments, job=job) as run:
            summary = run.finish()
            assert_every_sample_once(run.ledger(), STEPS)
            return summary, run.ledger()

    calm, plain = losses("plain")
    nan = "--fail=step=6,kind=nan,node=node-3"
    bad, with_nan = losses("nan", nan)
    assert (calm["steps_not_finite"], bad["steps_not_finite"]) == (0, 1)
    assert [line["loss"] for line in with_nan] == [line["loss"] for line in plain]
    hurt, with_death = losses("death", fault(9, "node-2", "reduce"))
    assert len(hurt["incidents"]) == 1
    assert largest_difference(with_death, plain) < DRIFT
    assert plain[-1]["loss"] < plain[0]["loss"]
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump(job))
    assert largest_difference(plain, plain_ledger(plain_job(job_file), STEPS)) < DRIFT


@pytest.mark.long
def test_the_example_of_bfloat16_trains(tmp_path: Path) -> None:
    job = yaml.safe_load((EXAMPLES / "bfloat16.yaml").read_text())
    few = ["--nodes", "2", "--spares", "0", "--steps", "25"]
    with Run(tmp_path / "run", *few, job=job) as run:
        summary = run.finish()
    assert summary["steps_committed"] == 25 and summary["incidents"] == []
