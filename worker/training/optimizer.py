"""AdamW (arXiv 1711.05101) on flat parts: rows of numbers, whatever layers they hold.

Replicas of an expert lie beside other rows on each rank, at other addresses, yet must stay equal to the last bit. The
update is therefore torch's fused kernel, whose result for an element depends on that element alone: not on the row's
length, position, alignment, company or the number of threads (the tests compare bits). There is no state beside the
moments: the step number gives bias correction and learning rate, so one row can be replayed alone from logged
gradients, as well as all rows be updated as one. What must not live here: collectives, and the decision to commit.

Shapes: P elements of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model.fields import read_fields, require
from worker.training.learning_rate import Decay, LearningRate

# Keeps the division finite where all gradients are zero (torch.nn.utils.clip_grad_norm_ uses the same).
CLIP_EPSILON = 1e-6
# Elements updated at a time: few calls, and little room for the clipped gradient.
_BLOCK_CPU = 1 << 20
_BLOCK_DEVICE = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule, and clipping by the global norm."""

    learning_rate: float
    warmup_steps: int
    schedule: Decay
    final_learning_rate_ratio: float
    decay_steps: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> OptimizerConfig:
        """Reads the job's `optimizer` section, strictly. Raises FieldError."""
        return read_fields(cls, values, "optimizer")

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "clip_norm"):
            require(
                getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "more than 0 is needed"
            )
        for name in ("warmup_steps", "decay_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more is needed")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, "0 or more, and less than 1, is needed")
        ratio = self.final_learning_rate_ratio
        require(0 <= ratio <= 1, "optimizer.final_learning_rate_ratio", ratio, "between 0 and 1 is needed")

    def rate(self, total_steps: int) -> LearningRate:
        """The schedule of a job of so many steps."""
        return LearningRate(
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            final_ratio=self.final_learning_rate_ratio,
            total_steps=total_steps,
            decay=self.schedule,
            decay_steps=self.decay_steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartState:
    """Weights and moments of one part (a row): three flat tensors of one shape, changed in place by updates."""

    weight_P: Tensor
    m_P: Tensor
    v_P: Tensor
    decay_length: int
    """Weight decay applies to [0, decay_length)."""


def clip_coefficient(norm: float, clip_norm: float) -> float:
    """What gradients are multiplied with, given their norm over all parts: at most 1."""
    return min(1.0, clip_norm / (norm + CLIP_EPSILON))


class AdamW:
    """Brings parts from version s - 1 to version s."""

    def __init__(self, config: OptimizerConfig, *, total_steps: int) -> None:
        self._config = config
        self._rate = config.rate(total_steps)
        self._clipped_P: Tensor | None = None

    def learning_rate(self, step: int) -> float:
        """The rate of one step."""
        return self._rate.at(step)

    @torch.no_grad()
    def update(self, part: PartState, grad_P: Tensor, *, step: int, clip: float) -> None:
        """Applies step `step` (from 1) to one part; `grad_P` is left as it is, for a later replay.

        `clip` is the coefficient of the whole step, from the norm over all parts.
        """
        assert part.weight_P.shape == grad_P.shape == part.m_P.shape == part.v_P.shape, "one shape for all"
        rate = self.learning_rate(step)
        cut, length = part.decay_length, len(grad_P)
        block = _BLOCK_CPU if grad_P.device.type == "cpu" else _BLOCK_DEVICE
        for first, last, decay in ((0, cut, self._config.weight_decay), (cut, length, 0.0)):
            for start in range(first, last, block):
                span = slice(start, min(start + block, last))
                weight, m, v, grad = part.weight_P[span], part.m_P[span], part.v_P[span], grad_P[span]
                if clip != 1.0:
                    grad = torch.mul(grad, clip, out=self._scratch(grad))
                self._update_span(weight, grad, m, v, step, rate, decay)

    def _update_span(
        self, weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, decay: float
    ) -> None:
        # What torch.optim.AdamW(fused=True) calls, without its grouping of tensors, which costs more than the update.
        torch._fused_adamw_(
            [weight],
            [grad],
            [m],
            [v],
            [],
            [torch.tensor(float(step), dtype=torch.float32, device=weight.device)],
            amsgrad=False,
            maximize=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=rate,
            weight_decay=decay,
            eps=self._config.epsilon,
        )

    def _scratch(self, grad_P: Tensor) -> Tensor:
        """Room for one block of a clipped gradient, kept between calls."""
        scratch = self._clipped_P
        if (
            scratch is None
            or len(scratch) < len(grad_P)
            or (scratch.dtype, scratch.device) != (grad_P.dtype, grad_P.device)
        ):
            scratch = self._clipped_P = torch.empty_like(grad_P)
        return scratch[: len(grad_P)]
