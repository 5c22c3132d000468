"""Event files beside a run that is broken: they say what the ledger says, and each incident with its explanation."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.curves import assert_curves_are_the_ledger, curves, told_incidents
from tests.chaos.runs import ENDLESS, Run, assert_every_sample_once, fault
from tests.waiting import wait_until

JOB: dict[str, Any] = {**TINY, "validation": {"share": 0.001, "interval_steps": 10, "windows": 11}}

pytestmark = pytest.mark.timeout(400)


def test_a_node_is_killed_the_controller_is_killed_and_the_job_is_resumed(tmp_path: Path) -> None:
    """No step is missing and none is there twice, nor any measurement; the incident is told in words."""
    with Run(tmp_path / "run", fault(15, "node-2"), "--steps", str(ENDLESS), job=JOB) as run:
        run.reach(20)
        old = run.controller_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: run.controller_pid() != old, within_seconds=60, what="another controller")
        run.reach(run.ledger()[-1]["step"] + 5)
        stopped = run.stop()
        assert_curves_are_the_ledger(run)
    end = stopped["steps_committed"] + 7
    with Run(tmp_path / "run", "--steps", str(end)) as run:
        run.finish()
        ledger = run.ledger()
        assert_every_sample_once(ledger, end)
        assert_curves_are_the_ledger(run)
        measured = [json.loads(line) for line in (run.workdir / "validation.jsonl").read_text().splitlines()]
        told = curves(run.workdir / "tensorboard" / "validation").Scalars("loss")
        assert [event.step for event in told] == [line["step"] for line in measured]
        (incident,) = told_incidents(run)
    assert "node-2" in incident and "fail over" in incident
    layers = [len(line["layer_load"]) for line in ledger]
    assert set(layers) == {TINY["model"]["layers"]}
    for line in ledger:
        by_expert = [sum(column) for column in zip(*line["layer_load"], strict=True)]
        assert by_expert == line["expert_load"], "the load by layer adds up to that by expert"
