"""A node that makes the others wait, where only one other could tell: the spare is asked, and takes its seat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import RUN_SECONDS, Run, assert_every_sample_once
from tests.waiting import wait_until

SLOW = "--fail=step=20,kind=slow,node=node-2,factor=4,duration_steps=100000"
SOON: dict[str, Any] = {**TINY, "steps": 100_000, "recovery": {"straggler_seconds": 3.0}}
TWO_STAGES: dict[str, Any] = {
    **SOON,
    "pipeline": {"stages": 2},
    "model": {**TINY["model"], "layers": 4, "experts": 4},
}
ONE_PAIR: dict[str, Any] = {**SOON, "cluster": {**TINY["cluster"], "nodes": 2}}

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("job", [TWO_STAGES, pytest.param(ONE_PAIR, marks=pytest.mark.long)])
def test_a_slow_one_of_two_gives_its_seat_to_the_spare(job: dict[str, Any], tmp_path: Path) -> None:
    """Suspected beside its only peer, found slow beside the spare, replaced at a boundary; no step is redone."""
    with Run(tmp_path / "run", SLOW, job=job) as run:
        run.reach(20)
        wait_until(
            lambda: [each for each in run.ask("incidents") if each["state"] == "closed"],
            within_seconds=RUN_SECONDS,
            what="an incident that is closed",
            every_seconds=0.5,
        )
        summary = run.stop()
        ledger = run.ledger()
    (incident,) = summary["incidents"]
    assert (incident["kind"], incident["node"], incident["steps_lost"]) == ("straggler", "node-2", 0)
    assert incident["steps_redone"] == 0
    assert "pair checks confirm it" in incident["cause"]
    assert_every_sample_once(ledger, len(ledger))
