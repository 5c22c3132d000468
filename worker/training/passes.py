"""The work of a member in one step: its stage's chunks forward and backward over the microbatches dealt to it.

Gradients of weights accumulate in the state's buffers; those of activations go on to the stage before. When each pass
takes place is the schedule's affair (`parallel/schedule.py`), and carrying messages the pipeline's
(`parallel/pipeline.py`): without one there is a single stage of a single chunk, and nothing to carry.

Shapes: B sequences; S positions; D width; C = S + 1 tokens of a window. Next: `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.data.errors import DataDamaged
from worker.data.windows import Batch, Windows
from worker.model.objective import ChunkPass, Scale, chunk_pass
from worker.model.router import ForwardContext
from worker.model.stages import Stages
from worker.model.transformer import Transformer
from worker.parallel.pulse import Pulse
from worker.parallel.schedule import Turn
from worker.training.batch import BatchConfig


@dataclass(slots=True)
class Sums:
    """What a member adds up over its microbatches."""

    loss: Tensor
    expert_load: Tensor
    """Of all stages' experts; this member adds to those of its stage."""
    layer_load_LE: Tensor
    """By layer of the whole model and expert of the layer; zeros for layers of other stages."""
    samples: list[int]
    """Where the loss was computed: in the last stage."""
    step_tokens: int
    """That the whole step predicts: what its loss is divided by."""
    tokens: int = 0
    """That this member predicted."""
    unreadable: str = ""
    """What could not be read of the samples, in words: then nothing here counts."""
    finite: bool = True
    """Of loss and gradients as this member computed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is the same for every pass of a step."""

    step: int
    stages: Stages
    stage: int
    model: Transformer
    windows: Windows
    batch: BatchConfig
    scale: Scale
    sequence_length: int
    pulse: Pulse
    device: torch.device
    to_device: Callable[[Tensor], Tensor]
    """From the host, without a wait for the device."""


class StepPasses:
    """See `pipeline.Passes`."""

    def __init__(self, work: Work, experts: int) -> None:
        """`experts` counts those of all stages."""
        self._work = work
        config = work.model.config
        self._shape = (work.batch.microbatch_size, work.sequence_length, config.width)
        self._dtype = config.precision.compute_dtype
        self._first_expert = work.stage * config.experts
        self._first_sample = work.batch.step_ids(work.step).start
        self._held: dict[tuple[int, int], tuple[Tensor | None, ChunkPass]] = {}
        self.sums = Sums(
            loss=torch.zeros((), dtype=torch.float64, device=work.device),
            expert_load=torch.zeros(experts, dtype=torch.int64, device=work.device),
            layer_load_LE=torch.zeros(
                (work.stages.layers, config.experts), dtype=torch.int64, device=work.device
            ),
            samples=[],
            step_tokens=work.scale.step_tokens,
        )

    def room(self) -> Tensor:
        """See `pipeline.Passes`."""
        return torch.empty(self._shape, dtype=self._dtype, device=self._work.device)

    def forward(self, turn: Turn, microbatch: int | None, x: Tensor | None) -> Tensor | None:
        """See `pipeline.Passes`."""
        work, sums = self._work, self.sums
        chunk = work.stages.chunk(work.stage, turn.chunk)
        work.pulse.enter("forward")
        ids = work.batch.microbatch_ids(work.step, microbatch) if microbatch is not None else range(0)
        # Only the ends of the model look at the text, and every chunk at where documents end, if that is to be seen.
        looked_at = ids if chunk.first or chunk.last or work.windows.apart else range(0)
        batch = self._read(looked_at).to(work.to_device)
        if not chunk.first:
            x = (self.room()[:0] if x is None else x).requires_grad_()
        context = ForwardContext(step=work.step, microbatch=microbatch or 0, document_BC=batch.document_BC)
        out = chunk_pass(work.model, chunk, x, batch.window_BC, context, work.scale)
        self._held[turn.chunk, turn.round] = x, out
        sums.expert_load[self._first_expert :][: out.count_LE.shape[1]] += out.count_LE.sum(0)
        sums.layer_load_LE[chunk.layers[0] : chunk.layers[-1] + 1] += out.count_LE
        if out.cross_entropy_sum is not None:
            sums.loss += out.cross_entropy_sum
            sums.tokens += work.windows.targets(ids)
            sums.samples.extend(sample - self._first_sample for sample in ids)
        return None if out.y_BSD is None else out.y_BSD.detach()

    def _read(self, ids: range) -> Batch:
        """The samples; blank ones where they are damaged, so that the others need not wait: all learn of it in the
        vote."""
        try:
            return self._work.windows.batch(ids)
        except DataDamaged as error:
            self.sums.unreadable = str(error)
            return self._work.windows.blank(len(ids))

    def backward(self, turn: Turn, microbatch: int | None, gradient: Tensor | None) -> Tensor | None:
        """See `pipeline.Passes`."""
        self._work.pulse.enter("backward")
        x, out = self._held.pop((turn.chunk, turn.round))
        if out.y_BSD is None:
            out.objective.backward()
        else:
            gradient = self.room()[:0] if gradient is None else gradient
            roots, gradients = [out.y_BSD], [gradient]
            if out.objective.requires_grad:  # it does not where the load-balance loss is off
                roots.append(out.objective)
                gradients.append(torch.ones_like(out.objective))
            torch.autograd.backward(roots, gradients)
        return None if x is None else x.grad
