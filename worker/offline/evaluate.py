"""How well a model predicts a text: the mean cross entropy over non-overlapping windows of the model's context.

Every byte but the first is predicted once: window k sees bytes [kS, kS + S) and predicts those one further; the last
window is as short as what is left.

Shapes: B windows at a time; S bytes of a window (the model's context); C = S + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from worker.model.router import ForwardContext
from worker.offline.opened import Loaded
from worker.training.data import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The measured text."""

    loss: float
    """Mean cross entropy of a predicted token, in nats."""
    tokens: int
    """Predicted tokens."""
    context: int
    """The longest that the model sees."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2.0)


def evaluate(
    loaded: Loaded,
    content: Bytes,
    *,
    windows_at_once: int,
    limit_windows: int | None = None,
    after_windows: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Of a text of two bytes or more. `after_windows` hears how many of how many windows are done."""
    context = loaded.config.sequence_length
    assert len(content) >= 2, "there is nothing to predict in less than two bytes"
    whole, rest = divmod(len(content) - 1, context)
    starts = [window * context for window in range(whole + (rest > 0))][:limit_windows]
    total, tokens = 0.0, 0
    for first in range(0, len(starts), windows_at_once):
        batch = starts[first : first + windows_at_once]
        # The last window may be shorter than the others, and is measured by itself.
        full = [start for start in batch if start + context < len(content)]
        for group in (full, [start for start in batch if start not in full]):
            if group:
                nats, count = _windows(loaded, content, group)
                total += nats
                tokens += count
        after_windows(min(first + windows_at_once, len(starts)), len(starts))
    return Evaluation(loss=total / tokens, tokens=tokens, context=context)


def _windows(loaded: Loaded, content: Bytes, starts: list[int]) -> tuple[float, int]:
    """Nats and tokens of some windows of one length."""
    length = loaded.config.sequence_length + 1
    rows = [content[start : start + length].astype(np.int64) for start in starts]
    window_BC = torch.from_numpy(np.stack(rows)).to(loaded.model.embedding_VD.device)
    with torch.no_grad():
        prediction = loaded.model(window_BC[:, :-1], ForwardContext(step=0, microbatch=0))
    target_T = window_BC[:, 1:].reshape(-1)
    nats = functional.cross_entropy(prediction.logits_BSV.flatten(0, 1).double(), target_T, reduction="sum")
    return float(nats), target_T.numel()
