"""Every example runs: a few steps without spares, each sample once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.chaos.runs import Run, assert_every_sample_once

EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    if "\nkind:" not in path.read_text()  # an object of Kubernetes, which holds a job
]
STEPS = 3

pytestmark = pytest.mark.timeout(300)
LARGE = ("pipeline-4x4",)
"""Left to `make test-long`: eight trainers for what `test_pipeline.py` does with six."""


@pytest.mark.parametrize(
    "example",
    [pytest.param(each, marks=[pytest.mark.long] if each.stem in LARGE else []) for each in EXAMPLES],
    ids=[each.stem for each in EXAMPLES],
)
def test_every_example_trains(example: Path, tmp_path: Path) -> None:
    small = ["--spares", "0", "--steps", str(STEPS), "--set", "optimizer.warmup_steps=1"]
    with Run(tmp_path / "run", *small, job=example) as run:
        summary = run.finish()
        batch = yaml.safe_load(example.read_text()).get("batch", {})
        samples = batch.get("microbatches", 12) * batch.get("microbatch_size", 2)
        assert_every_sample_once(run.ledger(), STEPS, samples)
    assert summary["steps_committed"] == STEPS and summary["incidents"] == []
