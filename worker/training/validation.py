"""Validation: the same held-out windows, measured by all members at a step boundary, without a trace in training.

A forward pass over windows that are dealt over each stage's seats, in the turns of the pipeline's schedule without
its backward passes. Nothing is written but a vector with one place for each microbatch of windows: whoever has the
last stage of one fills its place, one all-reduce adds places of which all but one are 0, and all sum the places in
the same order. So the result does not depend on who measured what, beyond the rounding of a matrix product of other
height.

A validation that breaks off leaves nothing behind, and the members of the next generation, which stand at the same
step, measure again. Where all of them have the result already, nobody does.

Shapes: B windows of a microbatch; C = S + 1 tokens of a window; D width; V vocabulary; M microbatches of windows.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worker.agent.messages import Validated
from worker.data.config import ValidationConfig
from worker.data.errors import DataDamaged
from worker.data.windows import Batch, HeldOut
from worker.model.objective import NOT_PREDICTED, targets
from worker.model.router import ForwardContext
from worker.model.stages import Stages
from worker.model.transformer import Transformer
from worker.parallel import pipeline
from worker.parallel.groups import Group
from worker.parallel.pipeline import Line, line_of
from worker.parallel.pulse import Pulse
from worker.parallel.schedule import Kind, Pass, Schedule, Turn, plan
from worker.training.step import DataUnreadable

PHASE = "validation"
"""Where an injected failure strikes; for everybody else the trainer stands at a boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """What a member needs to measure in one generation."""

    group: Group
    model: Transformer
    stages: Stages
    ranks: tuple[tuple[int, ...], ...]
    """Stage -> ranks."""
    pulse: Pulse


class Validation:
    """Of one job; remembers the step that was measured last."""

    def __init__(self, config: ValidationConfig, held_out: HeldOut | None, *, batch: int, steps: int) -> None:
        """`batch` windows at a time, in a job of so many steps."""
        self._config = config
        self._held_out = held_out
        self._batch = batch
        self._steps = steps
        self._measured = -1

    def forget(self) -> None:
        """The state goes back to an earlier one."""
        self._measured = -1

    def measure(self, measuring: Measuring, step: int) -> Validated | None:
        """After `step` was committed; None when nothing is due, or all have it. Raises what a step raises."""
        held_out = self._held_out
        if held_out is None or not self._config.due(step, self._steps):
            return None
        began = time.monotonic()
        measuring.pulse.phase = "boundary"
        if _all_have(measuring.group, self._measured == step):
            return None
        nats = self._nats(measuring, held_out, step)
        self._measured = step
        loss = math.fsum(nats) / held_out.targets
        return Validated(
            step=step,
            generation=measuring.group.generation,
            loss=loss,
            bits_per_byte=loss / math.log(2.0) / held_out.bytes_per_token,
            tokens=held_out.targets,
            windows=len(held_out.windows),
            time=time.time(),
            seconds=time.monotonic() - began,
        )

    def _nats(self, measuring: Measuring, held_out: HeldOut, step: int) -> list[float]:
        """Cross entropy of each microbatch of windows."""
        group, model = measuring.group, measuring.model
        count = -(-len(held_out.windows) // self._batch)
        line = forward_line(count, measuring.stages, measuring.ranks, group.rank)
        passes = _ForwardPasses(measuring, held_out, line, batch=self._batch, count=count, step=step)
        was_training = model.training
        model.eval()  # no noise in the router
        try:
            with torch.no_grad():
                pipeline.run(line, passes, group)
        finally:
            model.train(was_training)
        unreadable = torch.tensor([float(bool(passes.unreadable))], dtype=torch.float64)
        sums = torch.cat([passes.nats_M, group.to_device(unreadable)])
        group.all_reduce(sums)
        group.settle()
        *found, damaged = sums.tolist()
        if damaged:
            raise DataUnreadable(passes.unreadable)
        return list(found)


def _all_have(group: Group, mine: bool) -> bool:
    count = torch.tensor([float(mine)], dtype=torch.float64, device=group.device)
    group.all_reduce(count)
    group.settle()
    return int(count.item()) == group.world


def forward_line(microbatches: int, stages: Stages, ranks: tuple[tuple[int, ...], ...], rank: int) -> Line:
    """A member's part in forward passes over so many microbatches, dealt in turns over the seats of each stage."""
    deals = [[list(range(seat, microbatches, len(seats))) for seat in range(len(seats))] for seats in ranks]
    both = plan(deals, kind=Kind.GPIPE, chunks=stages.chunks)
    forward = Schedule(
        kind=both.kind,
        chunks=both.chunks,
        rounds=both.rounds,
        turns=tuple(tuple(turn for turn in turns if turn.way is Pass.FORWARD) for turns in both.turns),
    )
    return line_of(forward, deals, ranks, rank)


class _ForwardPasses:
    """See `pipeline.Passes`; all microbatches have `batch` windows, the last one some twice, which are not counted."""

    def __init__(
        self, measuring: Measuring, held_out: HeldOut, line: Line, *, batch: int, count: int, step: int
    ) -> None:
        config = measuring.model.config
        self._measuring, self._held_out, self._line = measuring, held_out, line
        self._batch, self._step = batch, step
        self._shape = (batch, held_out.length, config.width)
        self._dtype = config.precision.compute_dtype
        self.unreadable = ""
        self.nats_M = torch.zeros(count, dtype=torch.float64, device=measuring.group.device)

    def room(self) -> Tensor:
        """See `pipeline.Passes`."""
        return torch.empty(self._shape, dtype=self._dtype, device=self._measuring.group.device)

    def forward(self, turn: Turn, microbatch: int | None, x: Tensor | None) -> Tensor | None:
        """See `pipeline.Passes`."""
        measuring, model = self._measuring, self._measuring.model
        measuring.pulse.on_enter(self._step, PHASE)
        chunk = measuring.stages.chunk(self._line.stage, turn.chunk)
        batch, real = self._windows(microbatch)
        if chunk.first:
            x = model.embed(batch.window_BC[:, :-1])
        elif x is None:
            x = self.room()[:0]
        assert x is not None, "a chunk computes on what the one before gave"
        context = ForwardContext(step=0, microbatch=microbatch or 0, document_BC=batch.document_BC)
        passed = model.run(x, chunk.layers, context)
        if not chunk.last:
            return passed.x_BSD
        if microbatch is not None:
            logits_BSV = model.predict(passed.x_BSD[:real])
            target_T = targets(batch.window_BC[:real], _first(batch.document_BC, real))
            self.nats_M[microbatch] = functional.cross_entropy(
                logits_BSV.flatten(0, 1).double(), target_T, reduction="sum", ignore_index=NOT_PREDICTED
            )
        return None

    def _windows(self, microbatch: int | None) -> tuple[Batch, int]:
        """A whole batch, and how many of it are not there for the second time; an empty one for none."""
        move = self._measuring.group.to_device
        if microbatch is None:
            return self._held_out.batch(()).to(move), 0
        first, last = microbatch * self._batch, len(self._held_out.windows) - 1
        numbers = [min(number, last) for number in range(first, first + self._batch)]
        return self._read(numbers).to(move), min(self._batch, last + 1 - first)

    def _read(self, numbers: list[int]) -> Batch:
        """As in training: blank ones for those that are damaged, of which all learn in the sum."""
        try:
            return self._held_out.batch(numbers)
        except DataDamaged as error:
            self.unreadable = str(error)
            return self._held_out.blank(len(numbers))

    def backward(self, turn: Turn, microbatch: int | None, gradient: Tensor | None) -> Tensor | None:
        """Nobody asks for it: the schedule has no backward turn."""
        raise AssertionError(f"{turn} of a validation")


def _first(document_BC: Tensor | None, rows: int) -> Tensor | None:
    return None if document_BC is None else document_BC[:rows]
