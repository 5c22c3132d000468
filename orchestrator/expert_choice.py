"""Experts to train, chosen on a sample of the task before anything is started, and written into the job.

The scores come from `python -m worker affinity`, since a controller loads no torch. What was chosen becomes
`trainable.experts` of the job, so whatever happens to it later (a restart, a resumption) trains the same ones. Next:
`core/affinity.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from orchestrator.core import affinity
from orchestrator.core.problems import Problem
from orchestrator.core.spec import JobSpec
from orchestrator.jobfile import JobFileError

LOOK_SECONDS = 1.0
WORDS = 2000
"""Of what a process said that failed."""


def settled(
    spec: JobSpec, before: JobSpec | None = None, waiting: Callable[[], None] = lambda: None
) -> JobSpec:
    """The job with its experts chosen, if it leaves them open; those of `before` where the same was asked there.

    `waiting` is called about once a second meanwhile. Raises JobFileError.
    """
    if not spec.trainable.open:
        return spec
    asked = spec.trainable.affinity
    if before is not None and before.trainable.experts and before.trainable.affinity == asked:
        return _with(spec, before.trainable.experts)
    command = [
        sys.executable, "-m", "worker", "affinity",
        "--checkpoint", spec.init.checkpoint,
        "--data", asked.sample,
        "--score", asked.score.value,
        "--windows", str(asked.windows),
        "-o", "json",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said, complained = _heard(process, waiting)
    if process.returncode != 0:
        raise _refused(spec, complained)
    scores = json.loads(said)["scores_by_layer"]
    if len(scores) != spec.model.layers or len(scores[0]) != spec.model.experts:
        raise _refused(spec, f"the model there has {len(scores)} layers of {len(scores[0])} experts")
    return _with(spec, affinity.chosen(spec, scores))


def _heard(process: subprocess.Popen[str], waiting: Callable[[], None]) -> tuple[str, str]:
    """What a process says until its end, to the one and the other of its outputs."""
    while True:
        try:
            return process.communicate(timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            waiting()


def _with(spec: JobSpec, experts: tuple[int, ...]) -> JobSpec:
    return replace(spec, trainable=replace(spec.trainable, experts=experts))


def _refused(spec: JobSpec, said: str) -> JobFileError:
    words = " ".join(said.split())[-WORDS:].removeprefix("error: ")
    remedy = f"experts cannot be chosen by it: {words}"
    problem = Problem(field="trainable.affinity.sample", value=spec.trainable.affinity.sample, remedy=remedy)
    return JobFileError((problem,))
