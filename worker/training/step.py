"""One optimizer step of one member: compute, reduce, vote, commit.

Nothing is written to a parameter before the vote is left, and nothing after it needs a peer. An exception anywhere
before the commit leaves the last whole state. What each line means for recovery: docs/PROTOCOL.md.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.agent.messages import StepCommitted
from worker.data.windows import Windows
from worker.model.objective import Scale
from worker.model.transformer import Transformer
from worker.parallel import pipeline
from worker.parallel.groups import Group
from worker.parallel.pipeline import Line
from worker.parallel.pulse import Pulse
from worker.parallel.reduce import ReplicaReduction, reduce_dense
from worker.training.batch import BatchConfig
from worker.training.integrity import ReplicaCheck
from worker.training.learning_rate import LearningRate
from worker.training.optimizer import AdamW, clip_coefficient
from worker.training.passes import StepPasses, Sums, Work
from worker.training.state import TrainingState
from worker.training.tally import NOBODY, Pending, Tally, TallyLayout, Vote


class NotFinite(Exception):
    """Loss or gradients of some member are NaN or infinite: the step is not committed. All members know it."""

    def __init__(self, step: int, tally: Tally) -> None:
        super().__init__(f"loss or gradients of step {step} are not finite{_whose(tally)}")
        self.step = step
        self.culprit = tally.culprit


class DataUnreadable(Exception):
    """Some member cannot read its data: nothing is committed. All members know it; `words` are of those that cannot."""

    def __init__(self, words: str) -> None:
        super().__init__(words or "another member cannot read its data")
        self.words = words


def _whose(tally: Tally) -> str:
    return "" if tally.culprit == NOBODY else f" on rank {tally.culprit} alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What is the same for every step of a job."""

    batch: BatchConfig
    sequence_length: int
    clip_norm: float
    rate: LearningRate


@dataclass(slots=True, kw_only=True)
class Session:
    """What a member needs to train in one generation."""

    group: Group
    placement: tuple[tuple[int, ...], ...]
    line: Line
    """This member's place in the pipeline, if it is only one of one stage: its microbatches, in the order of turns."""
    replicas: ReplicaReduction
    model: Transformer
    state: TrainingState
    windows: Windows
    optimizer: AdamW
    pulse: Pulse
    shape: StepShape
    layout: TallyLayout
    check: ReplicaCheck
    last_clip: float = 1.0
    """Clip factor of the newest commit."""


def run_step(session: Session, step: int, pending: dict[Pending, str]) -> tuple[StepCommitted, Tally]:
    """Train step `step` and commit it.

    Raises GenerationEnded, CommunicationError (nothing was committed here; the gradients may be held), NotFinite,
    DataUnreadable or ReplicasDiffer.
    """
    pulse = session.pulse
    began, waited = time.monotonic(), pulse.waited_seconds
    session.state.zero_gradients()
    session.check.begin(session.state, step)
    sums = compute(session, step)
    reduce(session, sums)
    session.check.compare_in_step(session.group, session.state)
    session.state.ready_seconds = time.monotonic() - began
    tally = vote(session, step, sums, pending)
    commit(session, step, tally)
    seconds = time.monotonic() - began
    pulse.work_seconds = max(0.0, seconds - (pulse.waited_seconds - waited))
    return record_of(session.shape, session.group.generation, step, tally, seconds), tally


def compute(session: Session, step: int) -> Sums:
    """Forward and backward over the dealt microbatches; gradients accumulate in the state's buffers."""
    shape, group, pulse, state = session.shape, session.group, session.pulse, session.state
    work = Work(
        step=step,
        stages=state.stages,
        stage=session.line.stage,
        model=session.model,
        windows=session.windows,
        batch=shape.batch,
        scale=Scale(
            step_tokens=session.windows.targets(shape.batch.step_ids(step)),
            step_microbatches=shape.batch.microbatches,
        ),
        sequence_length=shape.sequence_length,
        pulse=pulse,
        device=group.device,
        to_device=group.to_device,
    )
    passes = StepPasses(work, session.layout.experts)
    group.on_operation = lambda _name: pulse.on_enter(step, "dispatch")
    pipeline.run(session.line, passes, group)
    group.on_operation = None
    return passes.sums


def reduce(session: Session, sums: Sums) -> None:
    """Sum gradients over the members that share a part; what is not finite is seen before it is everybody's."""
    session.pulse.enter("reduce")
    sums.finite = _finite(session.group, session.state, sums.loss)
    state, members = session.state, session.group.stage
    session.replicas.reduce(members, state.experts_gradient_TN)
    if not state.frozen(state.dense):
        reduce_dense(members, state.dense_gradient_P)


def _finite(group: Group, state: TrainingState, loss: Tensor) -> bool:
    """A sum is finite where all addends are; cheap, and one wait for the device."""
    totals = (loss, state.dense_gradient_P.sum(), state.experts_gradient_TN.sum())
    total = torch.stack([total.double() for total in totals]).sum()
    group.settle()
    return math.isfinite(float(total))


def vote(session: Session, step: int, sums: Sums, pending: dict[Pending, str]) -> Tally:
    """Cast this member's vote and wait for the result: the tally. Its gradients are held from here on."""
    state, group, pulse = session.state, session.group, session.pulse
    values = session.layout.cast(_vote_of(session, sums, pending))
    tally_V = group.to_device(torch.tensor(values, dtype=torch.float64))
    pulse.phase = "vote"
    state.ready = step
    group.all_reduce(tally_V, after_start=lambda: pulse.on_enter(step, "vote"))
    group.settle()
    result = tuple(tally_V.tolist())
    tally = session.layout.read(result)
    if tally.unreadable:
        state.ready = -1
        raise DataUnreadable(sums.unreadable)
    if tally.not_finite:
        state.ready = -1
        raise NotFinite(step, tally)
    state.tally_step, state.tally = step, result
    return tally


def _vote_of(session: Session, sums: Sums, pending: dict[Pending, str]) -> Vote:
    state, rank = session.state, session.group.rank
    # Everybody has looked at what it computed; norms, of what was summed, are the work of one rank each.
    leads = session.group.stage.rank == 0
    mine = [e for e in state.trained if session.placement[e][0] == rank]
    rows = [state.gradient(state.numbers.expert(e)) for e in mine]
    rows += [state.dense_gradient_P] if leads else []
    norms = [torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows]
    session.group.settle()
    squares = torch.stack(norms).square().tolist() if norms else []
    dense_norm = squares.pop() if leads else 0.0
    primary = [0.0] * session.layout.experts
    for expert, square in zip(mine, squares, strict=True):
        primary[expert] = square
    loss = float(sums.loss) / sums.step_tokens
    finite = all(map(math.isfinite, (loss, dense_norm, *squares)))
    return Vote(
        expert_norms_squared=primary if finite else [0.0] * len(primary),
        dense_norm_squared=dense_norm if leads and finite else 0.0,
        expert_load=sums.expert_load.tolist(),
        layer_load=sums.layer_load_LE.tolist(),
        samples=sums.samples,
        loss=loss if finite else 0.0,
        tokens=sums.tokens,
        rank=rank,
        own_finite=sums.finite,
        sums_finite=finite,
        unreadable=bool(sums.unreadable),
        pending=pending,
    )


def commit(session: Session, step: int, tally: Tally) -> None:
    """Clip by the global norm and apply the optimizer; local from here on."""
    pulse = session.pulse
    pulse.phase = "optimizer"
    clip = session.last_clip = clip_factor(session.shape, tally)
    session.state.commit(session.optimizer, step, clip, halfway=lambda: pulse.on_enter(step, "optimizer"))
    pulse.step = step


def clip_factor(shape: StepShape, tally: Tally) -> float:
    """What every gradient of the step is multiplied by; the same bits on every member."""
    return clip_coefficient(tally.norm, shape.clip_norm)


def record_of(shape: StepShape, generation: int, step: int, tally: Tally, seconds: float) -> StepCommitted:
    """The line of the ledger: counted, not assumed."""
    first = shape.batch.step_ids(step).start
    return StepCommitted(
        step=step,
        generation=generation,
        loss=tally.loss,
        tokens=tally.tokens,
        time=time.time(),
        step_seconds=seconds,
        sample_ids=tuple(
            first + index for index, count in enumerate(tally.sample_counts) for _ in range(count)
        ),
        expert_load=tally.expert_load,
        layer_load=tally.layer_load,
        learning_rate=shape.rate.at(step),
        gradient_norm=tally.norm,
    )
