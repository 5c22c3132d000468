"""The plan of memory against what was really used: whole jobs by their resident memory, single steps by every tensor.

On a CPU nobody counts tensors, so a job is run with a C library that gives large blocks back at once, and the kernel
counts pages: within 10 % either way. In bfloat16 that would count the matrix library's own buffers too (here: twice the
tensors), so there every tensor that torch allocates is counted instead, in one process: within 3 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from orchestrator.core import memory
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import from_mapping, to_mapping
from worker.model.compute import ComputeConfig
from worker.model.config import ModelConfig
from worker.model.objective import microbatch_loss
from worker.model.router import ForwardContext
from worker.model.transformer import Transformer
from worker.parallel.dispatch import AllToAllDispatcher
from worker.parallel.routing import plan_route
from worker.training.memory import FOLDER
from worker.training.optimizer import AdamW, OptimizerConfig
from worker.training.state import TrainingState

TOLERANCE = 0.1
TENSOR_TOLERANCE = 0.03
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
BASE: Mapping[str, Any] = {
    "name": "memory",
    "steps": 2,
    "data": {"path": "stdlib"},
    "cluster": {"nodes": 2, "spares": 0, "replicas": 2},
    "batch": {"microbatches": 4, "microbatch_size": 4},
    "model": {
        "width": 256,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "experts": 8,
        "expert_width": 512,
        "sequence_length": 256,
    },
    "checkpoint": {"interval_seconds": 3600},
}


def job(**changes: Mapping[str, Any] | str) -> dict[str, Any]:
    sections = {
        name: {**BASE.get(name, {}), **value} if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return {**BASE, **sections}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Resident memory is a rough measure of so little: 7 to 13 % below the plan have been seen.
        pytest.param({"compute": {"recompute": "all"}, "cluster": {"replicas": 1}}, marks=pytest.mark.long),
    ],
)
def test_trainers_use_what_was_planned(changes: dict[str, Any], tmp_path: Path) -> None:
    mapping = job(**changes)
    file, workdir = tmp_path / "job.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(mapping))
    done = subprocess.run(
        [UNDERSTUDY, "run", str(file), "--workdir", str(workdir), "--plain"],
        env={**os.environ, **GIVE_BACK},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = [json.loads(each.read_text())["peak_bytes"] for each in (workdir / FOLDER).glob("*.json")]
    assert len(measured) == 2
    plan = memory.plan(from_mapping(mapping))
    # The memory of a CPU's device is the node's, where the copy for a checkpoint is made ready behind the first steps.
    planned = plan.peak + plan.node_snapshot
    assert abs(planned / max(measured) - 1) < TOLERANCE, (planned, measured)


class Idle:
    """The exchange of a rank with one that sends nothing and holds no expert."""

    rank = 0
    world = 2

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        output.copy_(input)

    def settle(self) -> None:
        """Nothing is queued."""


@pytest.mark.parametrize(
    "precision, recompute, model",
    [
        ("float32", "nothing", {}),
        ("float32", "nothing", {"vocabulary": 16_000}),
        ("float32", "experts", {"expert_width": 64, "top_k": 4}),
        ("bfloat16", "nothing", {}),
        ("bfloat16", "nothing", {"expert_width": 64, "top_k": 4}),
        ("bfloat16", "attention", {"vocabulary": 16_000}),
        ("float64", "all", {}),
    ],
)
def test_tensors_at_most_are_what_was_planned(precision: str, recompute: str, model: dict[str, int]) -> None:
    cluster = {"nodes": 1, "replicas": 1, "spares": 0}
    spec = from_mapping(
        job(
            precision=precision,
            compute={"recompute": recompute},
            model={"layers": 2, **model},
            batch={"microbatch_size": 2},
            cluster=cluster,
        )
    )
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        two_steps(spec)
    allocations = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    live = peak = 0
    for _, count in allocations:
        live += count
        peak = max(peak, live)
    planned = memory.plan(spec).peak
    assert abs(planned / peak - 1) < TENSOR_TOLERANCE, (planned, peak)


def two_steps(spec: JobSpec) -> None:
    """A trainer's state and steps of two microbatches each, without the processes around it."""
    mapping, device = to_mapping(spec), torch.device("cpu")
    config = ModelConfig.from_mapping(mapping["model"], mapping["precision"])
    experts = range(config.experts)
    dispatcher = AllToAllDispatcher(Idle(), plan_route([[0] for _ in experts], [0, 1], 0), device)
    compute = ComputeConfig.from_mapping(mapping["compute"])
    model = Transformer(config, seed=1, dispatcher=dispatcher, device=device, compute=compute)
    state = TrainingState(config, 1, device)
    state.initialise(experts)
    state.attach(model, dispatcher)
    optimizer = AdamW(OptimizerConfig.from_mapping(mapping["optimizer"]), total_steps=10)
    size, length = spec.batch.microbatch_size, config.sequence_length
    for step in (1, 2):
        state.zero_gradients()
        for index in range(2):
            window_BC = torch.randint(
                0, 256, (size, length + 1), generator=torch.Generator().manual_seed(step)
            )
            context = ForwardContext(step=step, microbatch=index)
            out = microbatch_loss(
                model, window_BC, context, step_tokens=2 * size * length, step_microbatches=2
            )
            out.objective.backward()
        for row in (state.dense_gradient_P, *state.experts_gradient_TN):
            torch.linalg.vector_norm(row, dtype=torch.float64)
        state.ready = step
        state.commit(optimizer, step, 0.5, halfway=lambda: None)
