"""The loss of one microbatch, scaled so that the gradients of a step are the plain sum over its microbatches.

Whoever computes a microbatch, and whatever else that rank computes, the numbers are the same. In a pipeline each chunk
of layers has an objective of its own: its load-balance loss, and the last one also the cross entropy. What must not
live here: sums over ranks (the step's tally).

Shapes: B sequences; S positions; C = S + 1; T = B*S; D width; V vocabulary; L layers; E all experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from worker.model.router import ForwardContext
from worker.model.stages import Share
from worker.model.transformer import Transformer

NOT_PREDICTED = -100
"""In place of a target: no text before it says anything about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchLoss:
    """Call `objective.backward()`; the rest is for the ledger."""

    objective: Tensor
    """(sum of token cross entropies) / tokens of the step + load-balance loss / microbatches of the step."""
    cross_entropy_sum: Tensor
    """In nats, over the tokens of this microbatch; detached."""
    count_LE: Tensor
    """Tokens that chose each expert, by layer, int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What sums are divided by, so that those of all microbatches of a step add up."""

    step_tokens: int
    step_microbatches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPass:
    """What the forward pass of a chunk of layers gives."""

    objective: Tensor
    """This chunk's own addend to the loss: the last chunk's has the cross entropy in it."""
    y_BSD: Tensor | None
    """For the next chunk; None from the last one."""
    cross_entropy_sum: Tensor | None
    """Of the last chunk: in nats, over the tokens of this microbatch; detached."""
    count_LE: Tensor
    """Tokens that chose each expert, by layer of the chunk, int64."""


def chunk_pass(
    model: Transformer,
    chunk: Share,
    x_BSD: Tensor | None,
    window_BC: Tensor,
    context: ForwardContext,
    scale: Scale,
) -> ChunkPass:
    """One chunk over one microbatch. Inputs of the first chunk are the windows, [B, C] with C = S + 1 bytes (int64); of
    the others what the chunk before gave. The batch may be empty."""
    if chunk.first:
        x_BSD = model.embed(window_BC[:, :-1])
    assert x_BSD is not None, "a chunk computes on what the one before gave"
    passed = model.run(x_BSD, chunk.layers, context)
    objective = passed.aux_loss / scale.step_microbatches
    if not chunk.last:
        return ChunkPass(
            objective=objective, y_BSD=passed.x_BSD, cross_entropy_sum=None, count_LE=passed.count_LE
        )
    logits_BSV = model.predict(passed.x_BSD)
    target_T = targets(window_BC, context.document_BC)
    cross_entropy_sum = functional.cross_entropy(
        logits_BSV.flatten(0, 1), target_T, reduction="sum", ignore_index=NOT_PREDICTED
    )
    return ChunkPass(
        objective=cross_entropy_sum / scale.step_tokens + objective,
        y_BSD=None,
        cross_entropy_sum=cross_entropy_sum.detach(),
        count_LE=passed.count_LE,
    )


def microbatch_loss(
    model: Transformer,
    window_BC: Tensor,
    context: ForwardContext,
    *,
    step_tokens: int,
    step_microbatches: int,
) -> MicrobatchLoss:
    """The whole model: predicts tokens 1..S of each window (int64) from those before. The window may be [0, C]."""
    scale = Scale(step_tokens=step_tokens, step_microbatches=step_microbatches)
    passed = chunk_pass(model, model.share, None, window_BC, context, scale)
    assert passed.cross_entropy_sum is not None, "the whole model predicts"
    return MicrobatchLoss(
        objective=passed.objective,
        cross_entropy_sum=passed.cross_entropy_sum,
        count_LE=passed.count_LE,
    )


def targets(window_BC: Tensor, document_BC: Tensor | None) -> Tensor:
    """The token after each position, [B * S]; `NOT_PREDICTED` for the first of a document that is kept apart."""
    target_BS = window_BC[:, 1:]
    if document_BC is not None:
        begins_BS = document_BC[:, 1:] != document_BC[:, :-1]
        target_BS = target_BS.masked_fill(begins_BS, NOT_PREDICTED)
    return target_BS.reshape(-1)
