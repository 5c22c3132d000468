"""A controller that goes away; a node that sleeps while others go on; a human who presses Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import ENDLESS, Run, assert_every_sample_once, largest_difference
from tests.waiting import wait_until

TOLERANCE = 1e-8

pytestmark = pytest.mark.timeout(400)


def test_training_goes_on_while_the_controller_is_dead(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """L6: a killed controller is started again, finds everything as it was, and the ledger has no gap."""
    with Run(tmp_path / "run", "--steps", str(ENDLESS), job=TINY) as run:

        def processes() -> list[tuple[Any, ...]]:
            return [(each["id"], each["agent_pid"], each["trainer_pids"]) for each in run.ask("nodes")]

        run.reach(20)
        before = processes()
        old = run.controller_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: run.controller_pid() != old, within_seconds=60, what="another controller")
        # The first agent to come back tells of all steps at once; the others come back when they do.
        run.reach(run.ledger()[-1]["step"] + 20)
        wait_until(
            lambda: processes() == before, within_seconds=60, what="all agents, with the trainers they had"
        )
        summary = run.stop()
        ledger = run.ledger()
    assert_every_sample_once(ledger, len(ledger))
    assert {line["generation"] for line in ledger} == {1}
    assert summary["incidents"] == []
    assert largest_difference(ledger[: len(reference)], reference) < TOLERANCE


def test_a_node_that_wakes_up_after_it_was_given_up_changes_nothing(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """L4: frozen, replaced by the spare, woken: its trainer stands in an old step, and is ended for a fresh one."""
    with Run(tmp_path / "run", "--steps", str(ENDLESS), job=TINY) as run:
        run.reach(20)
        agent, trainer = run.signal_node("node-2", signal.SIGSTOP)
        wait_until(
            lambda: is_replaced(run), within_seconds=60, what="the spare in the seat of the frozen node"
        )
        assert Path(f"/proc/{trainer}").exists(), "it is given up, not ended: it will wake"
        before = run.ledger()[-1]["step"]
        for pid in (trainer, agent):
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: is_fresh(run.node("node-2"), trainer), within_seconds=60, what="a fresh trainer")
        run.reach(before + 20)
        woken = run.node("node-2")
        summary = run.stop()
        ledger = run.ledger()
    assert woken["agent_pid"] == agent, "the agent is the one that slept"
    (incident,) = summary["incidents"]
    assert (incident["kind"], incident["node"], incident["steps_lost"]) == ("node-lost", "node-2", 0)
    assert "no heartbeat for" in incident["cause"]
    assert summary["generations"] == 3, "lost, replaced, and nothing since"
    assert_every_sample_once(ledger, len(ledger))
    assert largest_difference(ledger[: len(reference)], reference) < TOLERANCE


def is_replaced(run: Run) -> bool:
    incidents = run.ask("incidents")
    return bool(incidents) and all(each["state"] == "closed" for each in incidents)


def is_fresh(node: dict[str, Any], old: int) -> bool:
    trainers = [each for each in node["trainers"] if each["ready"] and each["pid"] != old]
    return bool(node["state"] == "spare" and trainers)


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on_at_the_next_step(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """Stopped in the middle on four nodes, resumed on three: the same trajectory, every sample once."""
    workdir = tmp_path / "run"
    with Run(workdir, "--steps", str(ENDLESS), "--spares", "0", job=TINY) as run:
        run.reach(20)
        run.stop()
        stopped_at = run.ledger()[-1]["step"]
    assert stopped_at >= 20
    with Run(workdir, "--nodes", "3", "--spares", "0") as run:
        run.reach(stopped_at + 50)
        run.stop()
        ledger = run.ledger()
    assert_every_sample_once(ledger, len(ledger))
    assert largest_difference(ledger[: len(reference)], reference) < TOLERANCE
    assert not (workdir / "metrics.rolled-back.jsonl").exists()
