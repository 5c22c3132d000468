"""The whole model: bytes in, logits of the next byte out.

A decoder like Mixtral (arXiv 2401.04088): pre-norm, grouped-query attention with rotary positions, a mixture of
experts in every layer, untied output. A new model has shapes but no numbers: `parts.bind` points its parameters into
the trainer's flat buffers. An empty batch ([0, S]) runs through all of it, with the same number of exchanges.

A stage of a pipeline has a model with its share of the layers: `embed`, `run` and `predict` are what one chunk of them
does, and `forward` is all three over everything.

Shapes: B sequences; S positions; T = B*S tokens; D width; V vocabulary; L layers; E all experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.attention import Attention, Rotary
from worker.model.compute import ComputeConfig, recomputed
from worker.model.config import ModelConfig
from worker.model.moe import MoE
from worker.model.norm import RMSNorm
from worker.model.router import ForwardContext, Routing
from worker.model.stages import Share, whole
from worker.parallel.dispatch import Dispatcher

_PLAINLY = ComputeConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a forward pass gives."""

    logits_BSV: Tensor
    """float32 (float64 in a float64 model)."""
    aux_loss: Tensor
    """Load-balance loss of this microbatch, summed over layers, coefficient applied; 0 for an empty one."""
    count_LE: Tensor
    """Tokens of this microbatch that chose each expert, int64, wherever they were computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What some of the layers give; the fields are those of `Prediction`, for these layers."""

    x_BSD: Tensor
    aux_loss: Tensor
    count_LE: Tensor


class Layer(nn.Module):
    """Attention, then experts; each reads the normalised residual stream and adds to it."""

    def __init__(
        self, config: ModelConfig, *, layer: int, seed: int, dispatcher: Dispatcher, compute: ComputeConfig
    ) -> None:
        super().__init__()
        self._recompute = compute.recompute.attention
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config)
        self.moe_norm = RMSNorm(config)
        self.moe = MoE(config, layer=layer, seed=seed, dispatcher=dispatcher, compute=compute)

    def forward(self, x_BSD: Tensor, rotary: Rotary, context: ForwardContext) -> tuple[Tensor, Routing]:
        attended_BSD = (
            recomputed(self._attend, x_BSD, rotary, context.document_BC)
            if self._recompute
            else self._attend(x_BSD, rotary, context.document_BC)
        )
        x_BSD = x_BSD + attended_BSD
        y_TD, routing = self.moe(self.moe_norm(x_BSD).flatten(0, 1), context)
        return x_BSD + y_TD.view_as(x_BSD), routing

    def _attend(self, x_BSD: Tensor, rotary: Rotary, document_BC: Tensor | None) -> Tensor:
        return cast(Tensor, self.attention(self.attention_norm(x_BSD), rotary, document_BC))


class Transformer(nn.Module):
    """See the module's docstring."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int,
        dispatcher: Dispatcher,
        device: torch.device,
        share: Share | None = None,
        compute: ComputeConfig = _PLAINLY,
    ) -> None:
        """`seed` is the job's: router noise is drawn from it. `device` is where `bind` will put the weights.

        `share` is what this model has of the layers; everything, unless it is a stage's.
        """
        super().__init__()
        self.config = config
        self.share = share or whole(config.layers)
        ends = (config.vocabulary, config.width)
        dtype = config.precision.parameter_dtype
        if self.share.first:
            self.embedding_VD = nn.Parameter(torch.empty(ends, dtype=dtype, device="meta"))
        self.rotary = Rotary(config, device)
        self.layers = nn.ModuleDict(
            {
                str(layer): Layer(config, layer=layer, seed=seed, dispatcher=dispatcher, compute=compute)
                for layer in self.share.layers
            }
        )
        if self.share.last:
            self.norm = RMSNorm(config)
            self.head_VD = nn.Parameter(torch.empty(ends, dtype=dtype, device="meta"))

    def use(self, dispatcher: Dispatcher) -> None:
        """Goes over to another placement: `parts.bind` must follow, for the experts that are held now."""
        for layer in self.layers.values():
            cast(Layer, layer).moe.use(dispatcher)

    def forward(self, tokens_BS: Tensor, context: ForwardContext) -> Prediction:
        passed = self.run(self.embed(tokens_BS), self.share.layers, context)
        return Prediction(
            logits_BSV=self.predict(passed.x_BSD), aux_loss=passed.aux_loss, count_LE=passed.count_LE
        )

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """The residual stream before the first layer."""
        return functional.embedding(tokens_BS, self.embedding_VD).to(self.config.precision.compute_dtype)

    def run(self, x_BSD: Tensor, layers: Sequence[int], context: ForwardContext) -> Passed:
        """The residual stream after these layers, given by their place in the whole model."""
        routings: list[Routing] = []
        for layer in layers:
            x_BSD, routing = self.layers[str(layer)](x_BSD, self.rotary, context)
            routings.append(routing)
        return Passed(
            x_BSD=x_BSD,
            aux_loss=torch.stack([routing.aux_loss for routing in routings]).sum(),
            count_LE=torch.stack([routing.count_E for routing in routings]),
        )

    def predict(self, x_BSD: Tensor) -> Tensor:
        """Logits from the residual stream after the last layer."""
        return functional.linear(self.norm(x_BSD).to(self.head_VD.dtype), self.head_VD)
