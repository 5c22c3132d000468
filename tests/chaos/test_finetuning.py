"""Some experts of a trained model are trained further while machines die; everything else keeps its bits."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.plain_loop import PlainModel
from chaos.job import TINY
from tests.chaos.oracle import Ledger, plain_job, plain_ledger
from tests.chaos.runs import UNDERSTUDY, Run, assert_every_sample_once, fault, largest_difference

TOLERANCE = 1e-8
STEPS = 30
EXPERTS = [2, 5]
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(600)

Parts = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest checkpoint of a run of 10 steps on one node."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    alone = {**TINY, "name": "base", "cluster": {"nodes": 1, "spares": 0, "replicas": 1}, "steps": 10}
    with Run(workdir, job=alone) as run:
        run.finish()
    return checkpoint_of(workdir)


def checkpoint_of(workdir: Path) -> Path:
    return max((workdir / "checkpoints").glob("step-*"))


def job(base: Path, **changes: Any) -> dict[str, Any]:
    return {
        **TINY,
        "name": "task",
        "seed": 11,
        "steps": STEPS,
        "init": {"checkpoint": str(base)},
        "trainable": {"experts": EXPERTS},
        **changes,
    }


def weights(checkpoint: Path) -> Parts:
    """Weights and moments by part and kind, put together from the pieces of all shards."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for shard in manifest["shards"]:
        tensors = load_file(checkpoint / shard["file"])
        for piece in shard["pieces"]:
            for kind in ("weights", "m", "v"):
                name = f"{piece['part']}.{kind}"
                pieces.setdefault(name, []).append((piece["start"], tensors[name]))
    return {
        name: torch.cat([each for _, each in sorted(found, key=lambda pair: pair[0])])
        for name, found in pieces.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """What a plain loop in this process comes to, which puts all other weights back after each step."""

    ledger: Ledger
    experts_EN: torch.Tensor


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    job_file = tmp_path_factory.mktemp("plain") / "job.yaml"
    job_file.write_text(yaml.safe_dump(job(base)))
    begun, models = weights(base), []

    def begin(model: PlainModel) -> None:
        models.append(model)
        model.dense_P.copy_(begun["dense.weights"])
        for expert, row in enumerate(model.experts_EN):
            row.copy_(begun[f"expert-{expert:05d}.weights"])

    ledger = plain_ledger(plain_job(job_file), STEPS, begin=begin, trained=EXPERTS)
    return Plain(ledger=ledger, experts_EN=models[0].experts_EN)


def test_a_run_with_deaths_equals_the_plain_loop(base: Path, plain: Plain, tmp_path: Path) -> None:
    """A holder of trained experts dies in mid-step, a spare learns its part; losses and weights are the same."""
    with Run(
        tmp_path / "run", fault(8, "node-2", "reduce"), fault(16, "node-1", "vote"), job=job(base)
    ) as run:
        summary = run.finish()
    assert len(summary["incidents"]) >= 2
    assert_every_sample_once(run.ledger(), STEPS)
    assert largest_difference(run.ledger(), plain.ledger) < TOLERANCE
    ours, begun = weights(checkpoint_of(run.workdir)), weights(base)
    assert set(ours) == {f"expert-{e:05d}.{kind}" for e in EXPERTS for kind in ("weights", "m", "v")}
    for expert in EXPERTS:
        name = f"expert-{expert:05d}.weights"
        torch.testing.assert_close(ours[name], plain.experts_EN[expert], rtol=1e-6, atol=1e-9)
        assert not torch.equal(ours[name], begun[name])


def test_experts_chosen_by_a_sample_are_those_of_the_command_and_stay_when_a_job_is_resumed(
    base: Path, tmp_path: Path
) -> None:
    """A node dies, the job stops and goes on: losses are those of a run that names these experts, undisturbed."""
    sample = tmp_path / "task.txt"
    sample.write_text("for each in range(10):\n    print(each)\n" * 40)
    asked = {"sample": str(sample), "threshold": 0.3}
    first = job(base, trainable={"affinity": asked})
    with Run(tmp_path / "run", fault(8, "node-2", "reduce"), "--steps", "12", job=first) as run:
        summary = run.finish()
        assert "to be trained: experts" in run.output
    assert len(summary["incidents"]) >= 1
    told = [UNDERSTUDY, "affinity", "--checkpoint", str(base), "--data", str(sample), "--threshold", "0.3"]
    proposed = json.loads(
        subprocess.run([*told, "-o", "json"], check=True, capture_output=True, timeout=120).stdout
    )
    recorded = yaml.safe_load((run.workdir / "job.yaml").read_text())["trainable"]
    assert recorded["experts"] == proposed["experts"]
    assert 0 < len(recorded["experts"]) < TINY["model"]["experts"]
    sample.write_text("something else entirely: 0123456789\n" * 40)
    with Run(run.workdir, "--steps", "20") as again:
        again.finish()
    assert_every_sample_once(again.ledger(), 20)
    named = job(
        base, trainable={"experts": proposed["experts"]}, cluster={"nodes": 1, "spares": 0, "replicas": 1}
    )
    with Run(tmp_path / "named", "--steps", "20", job=named) as reference:
        reference.finish()
    assert largest_difference(again.ledger(), reference.ledger()) < TOLERANCE
    trained = {name.partition(".")[0] for name in weights(checkpoint_of(run.workdir))}
    assert trained == {f"expert-{each:05d}" for each in proposed["experts"]}


def test_a_sample_that_cannot_be_read_is_refused_before_anything_starts(base: Path, tmp_path: Path) -> None:
    asked = {"sample": str(tmp_path / "nothing.txt")}
    with Run(tmp_path / "run", job=job(base, trainable={"affinity": asked})) as run:
        assert run.process.wait(60) == 2
        assert "trainable.affinity.sample" in run.output
    assert not (tmp_path / "run" / "controller.json").exists()


@pytest.mark.long
def test_training_goes_on_from_a_checkpoint_that_holds_the_trained_experts_alone(
    base: Path, plain: Plain, tmp_path: Path
) -> None:
    """It is small, names its base, and is refused once the base is another one."""
    with Run(tmp_path / "run", "--steps", "12", job=job(base)) as run:
        run.finish()
    half = checkpoint_of(run.workdir)
    manifest = json.loads((half / "manifest.json").read_text())
    assert manifest["base"]["path"] == str(base)
    assert size(half) < size(base) * 0.4
    with Run(run.workdir, "--steps", str(STEPS)) as again:
        again.finish()
    assert largest_difference(again.ledger(), plain.ledger) < TOLERANCE


def size(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


@pytest.mark.long
def test_the_example_trains_what_it_says(tmp_path: Path) -> None:
    """On a base made by the first example."""
    first, second = (
        yaml.safe_load((EXAMPLES / name).read_text())
        for name in ("stdlib-moe.yaml", "finetuning/experts.yaml")
    )
    few = ["--nodes", "2", "--spares", "0", "--steps", "2", "--set", "optimizer.warmup_steps=1"]
    with Run(tmp_path / "base", *few, job=first) as run:
        run.finish()
    with Run(tmp_path / "task", *few, "--set", f"init.checkpoint={tmp_path / 'base'}", job=second) as run:
        assert run.finish()["steps_committed"] == 2
    trained = weights(checkpoint_of(tmp_path / "task"))
    assert {name.partition(".")[0] for name in trained} == {"expert-00003", "expert-00007"}
