"""Which experts each token goes to, and how much of each answer it takes.

Softmax over all experts, the best K chosen, their probabilities made to sum to one (Mixtral, arXiv 2401.04088). In
training, noise may be added to what experts are chosen by; weights always come from the clean probabilities. What
must not live here: where experts are (dispatch), or anything that depends on the rank.

Shapes: T tokens; D width; E all experts; K choices of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.config import ModelConfig
from worker.model.randomness import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardContext:
    """Which piece of the job's work is being done: all that a forward pass may depend on beside weights and tokens."""

    step: int
    microbatch: int
    document_BC: Tensor | None = None
    """Where documents are kept apart: the number of the document of each token of the windows, int64; C = S + 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The router's decision for the tokens of a microbatch."""

    expert_TK: Tensor
    """Global ids, best first."""
    weight_TK: Tensor
    count_E: Tensor
    """Tokens that chose each expert, int64."""
    aux_loss: Tensor
    """E * sum over experts of (share of choices * mean probability), times the coefficient; 1 * it when balanced."""


class Router(nn.Module):
    """One linear map, in float32 (float64 in a float64 model)."""

    def __init__(self, config: ModelConfig, *, layer: int, seed: int) -> None:
        super().__init__()
        self._config = config
        self._layer = layer
        self._seed = seed
        dtype = config.precision.parameter_dtype
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.width, dtype=dtype, device="meta"))

    def forward(self, x_TD: Tensor, context: ForwardContext) -> Routing:
        config = self._config
        logits_TE = functional.linear(x_TD.to(self.weight_ED.dtype), self.weight_ED)
        probability_TE = torch.softmax(logits_TE / config.router_temperature, dim=-1)
        expert_TK = self._choose(probability_TE.detach(), context)
        weight_TK = probability_TE.gather(1, expert_TK)
        if config.top_k > 1:
            # A single choice keeps its probability (as in Switch): made to sum to one it would be the constant one,
            # and the router would learn nothing from it.
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        expert_J = expert_TK.reshape(-1)
        count_E = torch.zeros(config.experts, dtype=torch.int64, device=expert_J.device)
        count_E.scatter_add_(0, expert_J, torch.ones_like(expert_J))
        return Routing(
            expert_TK=expert_TK,
            weight_TK=weight_TK,
            count_E=count_E,
            aux_loss=self._balance(probability_TE, count_E),
        )

    def _choose(self, probability_TE: Tensor, context: ForwardContext) -> Tensor:
        score_TE = probability_TE
        if self.training and self._config.router_noise > 0:
            generator = stream(self._seed, "router noise", self._layer, context.step, context.microbatch)
            # Drawn on the CPU, as float32: the same numbers whatever device computes this microbatch.
            noise_TE = torch.rand(score_TE.shape, generator=generator)
            score_TE = score_TE + self._config.router_noise * noise_TE.to(score_TE.device, score_TE.dtype)
        return score_TE.topk(self._config.top_k, dim=-1).indices

    def _balance(self, probability_TE: Tensor, count_E: Tensor) -> Tensor:
        """Of this microbatch alone (so that it does not depend on who else computes what); 0 for an empty one."""
        tokens, experts = probability_TE.shape
        if self._config.aux_loss == 0:
            return probability_TE.new_zeros(())
        mean_E = probability_TE.sum(0) / max(tokens, 1)
        share_E = count_E.to(mean_E.dtype) / max(tokens * self._config.top_k, 1)
        return self._config.aux_loss * experts * (mean_E * share_E).sum()
