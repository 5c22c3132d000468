"""The loss of one microbatch, scaled so that the gradients of a step are the plain sum over its microbatches.

Whoever computes a microbatch, and whatever else that rank computes, the numbers are the same. What must not live
here: sums over ranks (the step's tally).

Shapes: B sequences; S positions; V vocabulary; L layers; E all experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from worker.model.router import ForwardContext
from worker.model.transformer import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchLoss:
    """Call `objective.backward()`; the rest is for the ledger."""

    objective: Tensor
    """(sum of token cross entropies) / tokens of the step + load-balance loss / microbatches of the step."""
    cross_entropy_sum: Tensor
    """In nats, over the tokens of this microbatch; detached."""
    tokens: int
    count_LE: Tensor
    """Tokens that chose each expert, by layer, int64."""


def microbatch_loss(
    model: Transformer,
    window_BC: Tensor,
    context: ForwardContext,
    *,
    step_tokens: int,
    step_microbatches: int,
) -> MicrobatchLoss:
    """Predicts bytes 1..S of each window (C = S + 1 bytes, int64) from those before. The window may be [0, C]."""
    prediction = model(window_BC[:, :-1], context)
    target_T = window_BC[:, 1:].reshape(-1)
    cross_entropy_sum = functional.cross_entropy(
        prediction.logits_BSV.flatten(0, 1), target_T, reduction="sum"
    )
    return MicrobatchLoss(
        objective=cross_entropy_sum / step_tokens + prediction.aux_loss / step_microbatches,
        cross_entropy_sum=cross_entropy_sum.detach(),
        tokens=target_T.numel(),
        count_LE=prediction.count_LE,
    )
