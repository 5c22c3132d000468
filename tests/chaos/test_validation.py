"""Validation beside training: what it measures is right whatever fails, and training is bit for bit as without it."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain_loop import PlainModel
from chaos.job import TINY, TOLERANCE
from tests.chaos.oracle import plain_job, plain_ledger
from tests.chaos.runs import ENDLESS, Run, assert_every_sample_once, fault, largest_difference
from tests.waiting import wait_until
from worker.data.windows import open_dataset

STEPS = 14
EVERY = 4
DUE = [4, 8, 12, 14]
JOB: dict[str, Any] = {
    **TINY,
    "steps": STEPS,
    "validation": {"share": 0.001, "interval_steps": EVERY, "windows": 11},
}

pytestmark = pytest.mark.timeout(600)


def measured(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.workdir / "validation.jsonl").read_text().splitlines()]


def plain(job_file: Path) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """Losses of all steps, and of each window that is held out by itself, in this process."""
    job = plain_job(job_file)
    data = open_dataset(
        job.data,
        job.validation,
        sequence_length=job.model.sequence_length,
        vocabulary=job.model.vocabulary,
        seed=job.seed,
    )
    held_out = data.held_out
    assert held_out is not None
    validations = {}

    def measure(step: int, model: PlainModel) -> None:
        if step in DUE:
            with torch.no_grad():
                nats = [model.nats_of(held_out.batch([n]).window_BC) for n in range(11)]
            validations[step] = math.fsum(nats) / (11 * job.model.sequence_length)

    return plain_ledger(job, STEPS, measure), validations


@pytest.mark.parametrize(
    "cluster, pipeline, victim",
    [
        ({"nodes": 4, "spares": 1, "replicas": 2}, {}, "node-2"),
        pytest.param(
            {"nodes": 4, "spares": 0, "replicas": 2}, {"stages": 2}, "node-3", marks=pytest.mark.long
        ),
    ],
    ids=["flat", "two-stages"],
)
def test_a_death_in_the_middle_of_a_validation_costs_nothing(
    cluster: dict[str, Any], pipeline: dict[str, Any], victim: str, tmp_path: Path
) -> None:
    """All measurements are there once, with the losses of a plain loop, and training goes on as if nothing was."""
    job = {**JOB, "cluster": cluster, "pipeline": pipeline}
    with Run(tmp_path / "run", fault(8, victim, "validation"), job=job) as run:
        summary = run.finish()
        ledger, found = run.ledger(), measured(run)
    assert [each["node"] for each in summary["incidents"]] == [victim]
    assert summary["incidents"][0]["steps_lost"] == 0
    assert_every_sample_once(ledger, STEPS)
    losses, validations = plain(tmp_path / "run.yaml")
    assert largest_difference(ledger, losses) <= TOLERANCE
    assert [line["step"] for line in found] == DUE
    for line in found:
        assert line["loss"] == pytest.approx(validations[line["step"]], rel=TOLERANCE)
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2))
        assert (line["tokens"], line["windows"]) == (11 * 16, 11)
    assert summary["validation"] == found[-1]
    assert "validation step=14 loss=" in run.output


def test_a_job_that_goes_on_from_before_a_validation_measures_it_again(tmp_path: Path) -> None:
    """Two measurements that no checkpoint holds are set aside when the job is resumed; each is there once."""
    job = {**JOB, "cluster": {"nodes": 3, "spares": 0, "replicas": 2}, "snapshot": {"enabled": False}}
    with Run(tmp_path / "run", "--steps", str(ENDLESS), job=job) as run:
        run.reach(1)
        run.tell("checkpoint", "now")
        kept = wait_until(lambda: sealed_step(run), within_seconds=60, what="a checkpoint")
        after = EVERY * (kept // EVERY + 2)
        wait_until(
            lambda: (run.workdir / "validation.jsonl").exists() and measured(run)[-1]["step"] >= after,
            within_seconds=120,
            what=f"the validation of step {after}",
        )
        pids = [pid for node in run.ask("nodes") for pid in (node["agent_pid"], *node["trainer_pids"])]
        run.process.kill()
        run.process.wait(60)
        for pid in (run.controller_pid(), *pids):
            os.kill(pid, signal.SIGKILL)
        before = measured(run)
    steps = after + EVERY + 1
    with Run(tmp_path / "run", "--steps", str(steps)) as run:
        run.finish()
        found = measured(run)
        assert_every_sample_once(run.ledger(), steps)
        aside = (run.workdir / "validation.rolled-back.jsonl").read_text().splitlines()
    due = [*range(EVERY, steps + 1, EVERY), steps]
    assert [line["step"] for line in found] == due
    assert {json.loads(line)["step"] for line in aside} >= {after - EVERY, after}
    again = {line["step"]: line["loss"] for line in found}
    for line in before:
        if line["step"] in again:
            assert line["loss"] == pytest.approx(again[line["step"]], rel=TOLERANCE)


def sealed_step(run: Run) -> int:
    return max((int(each["step"]) for each in run.ask("checkpoints") if each["state"] == "sealed"), default=0)


@pytest.mark.long
def test_training_is_bit_for_bit_as_without_validation(tmp_path: Path) -> None:
    """In float32, with noise in the router: the measurement draws nothing and writes nothing."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"def measured(what):\n    return what\n" * 40)
    job = {
        **TINY,
        "steps": STEPS,
        "precision": "float32",
        "model": {**TINY["model"], "router_noise": 0.1},
        "cluster": {"nodes": 3, "spares": 0, "replicas": 2},
    }
    ledgers = []
    for name, more in (("with", {"path": str(text), "interval_steps": 2, "windows": 5}), ("without", {})):
        with Run(tmp_path / name, job={**job, "validation": more}) as run:
            run.finish()
            ledgers.append([(line["loss"], line["expert_load"]) for line in run.ledger()])
            assert (run.workdir / "validation.jsonl").exists() is (name == "with")
    assert ledgers[0] == ledgers[1]
