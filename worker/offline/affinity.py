"""Which experts a task uses: scores of every expert on a sample, and the fewest that together carry a share of it.

After ESFT (Wang and others, "Let the Expert Stick to His Last", arXiv 2407.01906): an expert's score is either the
mean weight that the router gives to it (`gate`), or the share of choices that fall on it (`tokens`). Scores of a layer
sum to one. ESFT chooses in each layer by itself; here an expert is one unit over all layers (it is placed, copied and
saved as one), so its score is the mean over layers.

Shapes: L layers; E experts; T tokens; K choices of a token; B windows at a time; S bytes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.model.router import ForwardContext, Router, Routing
from worker.offline.opened import Loaded


class Score(Enum):
    """What an expert is judged by."""

    GATE = "gate"
    """Mean weight over all tokens, 0 where it was not chosen."""
    TOKENS = "tokens"
    """Its share of all choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Of one sample."""

    scores_LE: Tensor
    """Each layer sums to one."""
    tokens: int

    @property
    def scores(self) -> tuple[float, ...]:
        """By expert, over all layers; they sum to one."""
        return tuple(self.scores_LE.mean(0).tolist())

    def chosen(self, threshold: float) -> tuple[int, ...]:
        """The fewest experts, the best first taken, whose scores reach the threshold; in ascending order."""
        total, taken = 0.0, []
        for expert in sorted(range(len(self.scores)), key=lambda expert: (-self.scores[expert], expert)):
            if total >= threshold:
                break
            taken.append(expert)
            total += self.scores[expert]
        return tuple(sorted(taken))


def affinity(
    loaded: Loaded,
    content: npt.NDArray[Any],
    score: Score,
    *,
    windows: int,
    windows_at_once: int,
    after_windows: Callable[[int, int], None] = lambda done, total: None,
) -> Affinity:
    """Of at most so many windows of the model's context, spread evenly over a text of at least one byte."""
    context = min(loaded.config.sequence_length, len(content))
    starts = _spread(len(content) - context, windows)
    routers = [module for module in loaded.model.modules() if isinstance(module, Router)]
    sums_LE = torch.zeros(len(routers), loaded.config.experts, dtype=torch.float64)

    def watch(layer: int) -> Callable[[object, object, Routing], None]:
        def add(_module: object, _inputs: object, routing: Routing) -> None:
            values_TK = routing.weight_TK if score is Score.GATE else torch.ones_like(routing.weight_TK)
            sums_LE[layer] += _by_expert(routing.expert_TK, values_TK, loaded.config.experts)

        return add

    hooks = [router.register_forward_hook(watch(layer)) for layer, router in enumerate(routers)]
    try:
        for first in range(0, len(starts), windows_at_once):
            rows = [content[start : start + context] for start in starts[first : first + windows_at_once]]
            window_BS = torch.from_numpy(np.stack(rows).astype(np.int64)).to(loaded.model.embedding_VD.device)
            with torch.no_grad():
                loaded.model(window_BS, ForwardContext(step=0, microbatch=0))
            after_windows(min(first + windows_at_once, len(starts)), len(starts))
    finally:
        for hook in hooks:
            hook.remove()
    return Affinity(scores_LE=sums_LE / sums_LE.sum(1, keepdim=True), tokens=len(starts) * context)


def _by_expert(expert_TK: Tensor, values_TK: Tensor, experts: int) -> Tensor:
    sums_E = torch.zeros(experts, dtype=torch.float64)
    return sums_E.index_add_(0, expert_TK.reshape(-1).cpu(), values_TK.reshape(-1).double().cpu())


def _spread(last: int, count: int) -> Sequence[int]:
    """At most `count` places from 0 to `last`, evenly spread."""
    count = min(count, last + 1)
    return [last * number // max(1, count - 1) for number in range(count)]
