"""What a run must come to, computed in this process: one copy of everything, no groups, no votes, nothing that fails.

The loop is that of `benchmarks/plain_loop.py` with all experts in it: a step and an optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plain_loop import PlainJob, PlainModel
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.jobfile import load_job_file
from worker.parallel.dispatch import LocalDispatcher

Ledger = list[dict[str, Any]]


def plain_job(job_file: Path) -> PlainJob:
    """What the loop needs of a job file."""
    return PlainJob.of(to_mapping(load_job_file(str(job_file))))


def plain_ledger(
    plain: PlainJob,
    steps: int,
    after_step: Callable[[int, PlainModel], None] = lambda step, model: None,
    *,
    begin: Callable[[PlainModel], None] = lambda model: None,
    trained: Sequence[int] = (),
) -> Ledger:
    """Number, loss and tokens of the first steps; `after_step` sees the model after each.

    `begin` may give it other weights than those of the seed. With `trained` all other weights are put back after each
    step, and their gradients count nowhere: the plain way to train some experts alone.
    """
    model = PlainModel(plain, LocalDispatcher(plain.model.experts))
    begin(model)
    frozen = [expert for expert in range(plain.model.experts) if trained and expert not in trained]
    dense_P, experts_EN = model.dense_P.clone(), model.experts_EN.clone()
    windows = plain.windows()
    found: Ledger = []
    for step in range(1, steps + 1):
        model.zero()
        for microbatch in range(plain.batch.microbatches):
            model.compute(step, microbatch, windows)
        tokens = windows.targets(plain.batch.step_ids(step))
        found.append({"step": step, "loss": float(model.loss) / tokens, "tokens": tokens})
        if trained:
            model.dense_gradient_P.zero_()
            model.experts_gradient_EN[frozen] = 0.0
        model.update(step, (model.dense_norm_squared() + model.experts_norm_squared()) ** 0.5)
        if trained:
            model.dense_P.copy_(dense_P)
            model.experts_EN[frozen] = experts_EN[frozen]
        after_step(step, model)
    return found
