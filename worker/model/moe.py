"""A mixture-of-experts layer: route, dispatch, compute, combine, and add up by weight.

What must not live here: ranks, groups, counts of what others do: the dispatcher knows.

Shapes: T tokens; D width; K choices of a token; R rows for the experts held here.
"""

from __future__ import annotations

from torch import Tensor, nn

from worker.model.compute import ComputeConfig, recomputed
from worker.model.config import ModelConfig
from worker.model.experts import Experts
from worker.model.router import ForwardContext, Router, Routing
from worker.parallel.dispatch import Dispatcher


class MoE(nn.Module):
    """Takes the place of the feed-forward block."""

    def __init__(
        self, config: ModelConfig, *, layer: int, seed: int, dispatcher: Dispatcher, compute: ComputeConfig
    ) -> None:
        super().__init__()
        self._recompute = compute.recompute.experts
        self.router = Router(config, layer=layer, seed=seed)
        self.experts = Experts(config)
        self.use(dispatcher)

    def use(self, dispatcher: Dispatcher) -> None:
        """Goes over to another dispatcher, and holds the experts that it serves."""
        self._dispatcher = dispatcher
        self.experts.hold(tuple(dispatcher.held))

    def forward(self, x_TD: Tensor, context: ForwardContext) -> tuple[Tensor, Routing]:
        routing = self.router(x_TD, context)
        dispatched = self._dispatcher.dispatch(x_TD, routing.expert_TK)
        rows = dispatched.rows_RD, dispatched.count_H, dispatched.counts
        y_RD = recomputed(self.experts, *rows) if self._recompute else self.experts(*rows)
        y_TKD = self._dispatcher.combine(y_RD, dispatched.receipt)
        # Choice after choice, best first: the order of the sum is fixed.
        weighted_TKD = y_TKD * routing.weight_TK.unsqueeze(-1)
        return weighted_TKD.sum(1).to(x_TD.dtype), routing
