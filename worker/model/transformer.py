"""The whole model: bytes in, logits of the next byte out.

A decoder like Mixtral (arXiv 2401.04088): pre-norm, grouped-query attention with rotary positions, a mixture of
experts in every layer, untied output. A new model has shapes but no numbers: `parts.bind` points its parameters into
the trainer's flat buffers. An empty batch ([0, S]) runs through all of it, with the same number of exchanges.

Shapes: B sequences; S positions; T = B*S tokens; D width; V vocabulary; L layers; E all experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.attention import Attention, Rotary
from worker.model.config import ModelConfig
from worker.model.moe import MoE
from worker.model.norm import RMSNorm
from worker.model.router import ForwardContext, Routing
from worker.parallel.dispatch import Dispatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a forward pass gives."""

    logits_BSV: Tensor
    """float32 (float64 in a float64 model)."""
    aux_loss: Tensor
    """Load-balance loss of this microbatch, summed over layers, coefficient applied; 0 for an empty one."""
    count_LE: Tensor
    """Tokens of this microbatch that chose each expert, int64, wherever they were computed."""


class Layer(nn.Module):
    """Attention, then experts; each reads the normalised residual stream and adds to it."""

    def __init__(self, config: ModelConfig, *, layer: int, seed: int, dispatcher: Dispatcher) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config)
        self.moe_norm = RMSNorm(config)
        self.moe = MoE(config, layer=layer, seed=seed, dispatcher=dispatcher)

    def forward(self, x_BSD: Tensor, rotary: Rotary, context: ForwardContext) -> tuple[Tensor, Routing]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary)
        y_TD, routing = self.moe(self.moe_norm(x_BSD).flatten(0, 1), context)
        return x_BSD + y_TD.view_as(x_BSD), routing


class Transformer(nn.Module):
    """See the module's docstring."""

    def __init__(
        self, config: ModelConfig, *, seed: int, dispatcher: Dispatcher, device: torch.device
    ) -> None:
        """`seed` is the job's: router noise is drawn from it. `device` is where `bind` will put the weights."""
        super().__init__()
        self.config = config
        dtype = config.precision.parameter_dtype
        self.embedding_VD = nn.Parameter(
            torch.empty(config.vocabulary, config.width, dtype=dtype, device="meta")
        )
        self.rotary = Rotary(config, device)
        self.layers = nn.ModuleList(
            Layer(config, layer=layer, seed=seed, dispatcher=dispatcher) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config)
        self.head_VD = nn.Parameter(torch.empty(config.vocabulary, config.width, dtype=dtype, device="meta"))

    def use(self, dispatcher: Dispatcher) -> None:
        """Goes over to another placement: `parts.bind` must follow, for the experts that are held now."""
        for layer in self.layers:
            cast(Layer, layer).moe.use(dispatcher)

    def forward(self, tokens_BS: Tensor, context: ForwardContext) -> Prediction:
        x_BSD = functional.embedding(tokens_BS, self.embedding_VD).to(self.config.precision.compute_dtype)
        routings: list[Routing] = []
        for layer in self.layers:
            x_BSD, routing = layer(x_BSD, self.rotary, context)
            routings.append(routing)
        logits_BSV = functional.linear(self.norm(x_BSD).to(self.head_VD.dtype), self.head_VD)
        return Prediction(
            logits_BSV=logits_BSV,
            aux_loss=torch.stack([routing.aux_loss for routing in routings]).sum(),
            count_LE=torch.stack([routing.count_E for routing in routings]),
        )
