"""When both replicas of an expert die: back to the last snapshot in the memory of those who live, and no further."""

from __future__ import annotations

import json
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

JOB = {**TINY, "checkpoint": {"interval_seconds": 3600}, "snapshot": {"interval_seconds": 2.0}}
"""No checkpoint is ever sealed: without snapshots all would go back to the seed."""


def sealed(run: Run) -> list[dict[str, Any]]:
    return [each for each in run.ask("snapshots") if each["state"] == "sealed"]


def kill_holders_of_an_expert(run: Run, *, agents: bool) -> list[str]:
    """Both at once: with their agents, or only the processes that train."""
    expert = run.ask("experts")[0]
    holders = [each.rpartition("/")[0] for each in (expert["primary"], *expert["backups"])]
    victims = [node for node in run.ask("nodes") if node["id"] in holders]
    assert len(victims) == 2
    for node in victims:
        for pid in (*([node["agent_pid"]] if agents else []), *node["trainer_pids"]):
            os.kill(pid, signal.SIGKILL)
    return holders


def went_back(run: Run) -> bool:
    """All incidents are closed, and one of them cost committed steps."""
    incidents = run.ask("incidents")
    return bool(incidents) and all(each["state"] == "closed" for each in incidents)


@pytest.mark.parametrize(
    "agents", [True, pytest.param(False, marks=pytest.mark.long)], ids=["nodes die", "trainers die"]
)
def test_both_replicas_of_an_expert_die_and_the_last_snapshot_is_restored(
    tmp_path: Path, reference: list[dict[str, Any]], agents: bool
) -> None:
    """Two nodes with the memory of their agents are gone, and their buddies hold their shards; or only the trainers
    are gone, and the memory outlives them."""
    with Run(tmp_path / "run", "--spares", "1", "--steps", str(ENDLESS), job=JOB) as run:
        run.reach(5)
        wait_until(lambda: sealed(run), within_seconds=120, what="a sealed snapshot", every_seconds=0.5)
        step = sealed(run)[0]["step"]
        run.reach(step + 3)
        before = sealed(run)[0]["step"]
        kill_holders_of_an_expert(run, agents=agents)
        wait_until(
            lambda: went_back(run), within_seconds=120, what="the end of the incidents", every_seconds=0.5
        )
        at = run.ledger()[-1]["step"]
        run.reach(at + 5)
        summary = run.stop()
        ledger = run.ledger()
    assert_every_sample_once(ledger, len(ledger))
    assert largest_difference(ledger[: len(reference)], reference) < TOLERANCE
    back = [each for each in summary["incidents"] if each["steps_lost"]]
    assert "restore from host memory" in [each["action"] for each in back]
    words = " ".join(reason for each in back for reason in each["reasons"])
    assert "last replica" in words and "in host memory" in words and "has a living holder" in words
    rolled_back = (tmp_path / "run" / "metrics.rolled-back.jsonl").read_text().splitlines()
    first = min(json.loads(line)["step"] for line in rolled_back)
    assert first > before, "nothing from before the snapshot was given up"
    assert len(rolled_back) == max(each["steps_lost"] for each in back)


@pytest.mark.long
def test_an_agent_takes_its_memory_with_it(tmp_path: Path) -> None:
    """What is shown is what living agents hold."""
    with Run(tmp_path / "run", "--nodes", "2", "--spares", "0", "--steps", str(ENDLESS), job=JOB) as run:
        run.reach(5)
        wait_until(lambda: sealed(run), within_seconds=120, what="a sealed snapshot", every_seconds=0.5)
        (found, *_) = sealed(run)
        assert found["holders"] == 2 and sorted(found["nodes"]) == ["node-1", "node-2"]
        node = run.node("node-2")
        os.kill(node["agent_pid"], signal.SIGKILL)
        wait_until(
            lambda: all(
                each["nodes"] == ["node-1"] for each in run.ask("snapshots") if each["step"] <= found["step"]
            ),
            within_seconds=60,
            what="node-2's memory to be gone",
        )
        run.reach(run.ledger()[-1]["step"] + 2)
        run.stop()
