"""A step that is longer than the time-outs of the job: it is committed in the end, and nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.job import TINY
from tests.chaos.runs import Run, assert_every_sample_once

STEPS = 40

pytestmark = pytest.mark.timeout(400)


@pytest.mark.long
def test_a_step_that_outlasts_the_collectives_is_committed(tmp_path: Path) -> None:
    """One member computes one step hundreds of times slower than the others, which give their collectives up."""
    job = {**TINY, "steps": STEPS, "timeouts": {"collective_seconds": 3.5, "regroup_seconds": 30.0}}
    slow = "--fail=step=30,kind=slow,node=node-2,factor=300,duration_steps=1"
    with Run(tmp_path / "run", slow, job=job) as run:
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    assert {each["kind"] for each in summary["incidents"]} == {"communication"}
    assert all(each["steps_lost"] == 0 for each in summary["incidents"])
