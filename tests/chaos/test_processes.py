"""Frozen, killed and revived processes; a controller that goes away; a human who presses Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import Run, assert_every_sample_once, largest_difference
from tests.waiting import wait_until

TOLERANCE = 1e-8

pytestmark = pytest.mark.timeout(400)


def test_a_frozen_node_is_fenced_and_changes_nothing_when_it_wakes(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """SIGSTOP closes no socket: found by silence, replaced, and after SIGCONT it is a spare like any other (L4)."""
    with Run(tmp_path / "run", "--steps", "200", job=TINY) as run:
        run.reach(20)
        frozen = run.signal_node("node-2", signal.SIGSTOP)
        wait_until(lambda: run.ask("incidents"), within_seconds=60, what="an incident")
        before = run.ledger()[-1]["step"]
        run.reach(before + 10)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, 200)
    assert largest_difference(ledger, reference) < TOLERANCE
    (incident,) = summary["incidents"]
    assert incident["node"] == "node-2"
    assert incident["steps_lost"] == 0


def test_training_goes_on_while_the_controller_is_dead(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """L6: a killed controller is started again, finds everything as it was, and the ledger has no gap."""
    with Run(tmp_path / "run", "--steps", "300", job=TINY) as run:
        run.reach(20)
        nodes = run.ask("nodes")
        old = run.controller_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: run.controller_pid() != old, within_seconds=60, what="another controller")
        run.reach(run.ledger()[-1]["step"] + 20)
        again = run.ask("nodes")
        summary = run.finish()
        ledger = run.ledger()
    assert [(n["id"], n["agent_pid"], n["trainer_pids"]) for n in nodes] == [
        (n["id"], n["agent_pid"], n["trainer_pids"]) for n in again
    ]
    assert_every_sample_once(ledger, 300)
    assert {line["generation"] for line in ledger} == {1}
    assert summary["incidents"] == []
    assert largest_difference(ledger[:200], reference) < TOLERANCE


def test_a_node_that_dies_while_the_controller_is_dead_is_handled_when_it_is_back(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """The survivors wait at the broken collective; nothing committed is lost."""
    with Run(tmp_path / "run", "--steps", "150", job=TINY) as run:
        run.reach(20)
        victim = run.node("node-3")
        old = run.controller_pid()
        os.kill(old, signal.SIGKILL)
        for pid in (victim["agent_pid"], *victim["trainer_pids"]):
            os.kill(pid, signal.SIGKILL)
        summary = run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, 150)
    assert largest_difference(ledger, reference) < TOLERANCE
    assert [incident["node"] for incident in summary["incidents"]] == ["node-3"]
    assert summary["incidents"][0]["steps_lost"] == 0


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on_at_the_next_step(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """Stopped in the middle on four nodes, resumed on three: the same trajectory, every sample once."""
    workdir = tmp_path / "run"
    with Run(workdir, "--steps", "120", "--spares", "0", job=TINY) as run:
        run.reach(30)
        run.stop()
        stopped_at = run.ledger()[-1]["step"]
    assert 30 <= stopped_at < 120
    with Run(workdir, "--nodes", "3", "--spares", "0") as run:
        run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, 120)
    assert largest_difference(ledger, reference) < TOLERANCE
    assert not (workdir / "metrics.rolled-back.jsonl").exists()
