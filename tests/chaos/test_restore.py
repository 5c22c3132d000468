"""When the last replica of something is gone: back to the newest sound checkpoint, said in words."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.curves import assert_curves_are_the_ledger
from tests.chaos.runs import ENDLESS, Run, assert_every_sample_once, largest_difference
from tests.waiting import wait_until

TOLERANCE = 1e-8

pytestmark = pytest.mark.timeout(400)


def sealed(run: Run) -> list[dict[str, Any]]:
    return [each for each in run.ask("checkpoints") if each["state"] == "sealed"]


def test_both_replicas_of_an_expert_die_and_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """The holders of an expert die at once. The newest checkpoint has a flipped byte: the one before is used."""
    job = {**TINY, "checkpoint": {"interval_seconds": 3600, "keep": 5}, "snapshot": {"enabled": False}}
    with Run(tmp_path / "run", "--spares", "1", "--steps", str(ENDLESS), job=job) as run:
        run.reach(10)
        run.tell("checkpoint", "now")
        wait_until(lambda: len(sealed(run)) == 1, within_seconds=60, what="a first checkpoint")
        run.tell("checkpoint", "now")
        wait_until(lambda: len(sealed(run)) == 2, within_seconds=60, what="a second checkpoint")
        older, newer = sorted(sealed(run), key=lambda each: int(each["step"]))
        flip_a_byte(Path(newer["path"]))
        run.reach(int(newer["step"]) + 2)  # something is lost whichever checkpoint is used
        expert = run.ask("experts")[0]
        holders = [each.rpartition("/")[0] for each in (expert["primary"], *expert["backups"])]
        victims = [node for node in run.ask("nodes") if node["id"] in holders]
        for pid in [pid for node in victims for pid in (node["agent_pid"], *node["trainer_pids"])]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: damage_is_answered(run), within_seconds=120, what="a restore from the older one")
        run.reach(older["step"] + 5)
        summary = run.stop()
        ledger = run.ledger()
        assert_curves_are_the_ledger(run)
    assert_every_sample_once(ledger, len(ledger))
    assert largest_difference(ledger[: len(reference)], reference) < TOLERANCE
    words = " ".join(reason for incident in summary["incidents"] for reason in incident["reasons"])
    assert "last replica" in words
    assert Path(newer["path"]).name in words
    assert Path(older["path"]).name in words
    assert "damaged" in words
    lost = {incident["kind"]: incident["steps_lost"] for incident in summary["incidents"]}
    assert lost["checkpoint-damaged"] == newer["step"] - older["step"]
    rolled_back = (tmp_path / "run" / "metrics.rolled-back.jsonl").read_text().splitlines()
    assert len(rolled_back) == lost["node-lost"] > lost["checkpoint-damaged"]


def damage_is_answered(run: Run) -> bool:
    return any(
        each["kind"] == "checkpoint-damaged" and each["state"] == "closed" for each in run.ask("incidents")
    )


def flip_a_byte(checkpoint: Path) -> None:
    """In the middle of one shard's tensor data."""
    shard = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
