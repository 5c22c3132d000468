"""How well a model predicts a text: the mean cross entropy over non-overlapping windows of the model's context.

Every token but the first is predicted once: window k sees tokens [kS, kS + S) and predicts those one further; the last
window is as short as what is left.

Shapes: B windows at a time; S tokens of a window (the model's context); C = S + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from worker.data.corpus import Corpus
from worker.model.router import ForwardContext
from worker.offline.opened import Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The measured text."""

    loss: float
    """Mean cross entropy of a predicted token, in nats."""
    tokens: int
    """Predicted tokens."""
    context: int
    """The longest that the model sees."""
    bytes_per_token: float
    """Of the whole text."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2.0) / self.bytes_per_token


def evaluate(
    loaded: Loaded,
    corpus: Corpus,
    *,
    windows_at_once: int,
    limit_windows: int | None = None,
    after_windows: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Of two tokens or more. `after_windows` hears how many of how many windows are done."""
    context = loaded.config.sequence_length
    assert corpus.tokens >= 2, "there is nothing to predict in less than two tokens"
    whole, rest = divmod(corpus.tokens - 1, context)
    starts = [window * context for window in range(whole + (rest > 0))][:limit_windows]
    total, tokens = 0.0, 0
    for first in range(0, len(starts), windows_at_once):
        batch = starts[first : first + windows_at_once]
        # The last window may be shorter than the others, and is measured by itself.
        full = [start for start in batch if start + context < corpus.tokens]
        for group in (full, [start for start in batch if start not in full]):
            if group:
                nats, count = _windows(loaded, corpus, group)
                total += nats
                tokens += count
        after_windows(min(first + windows_at_once, len(starts)), len(starts))
    return Evaluation(
        loss=total / tokens,
        tokens=tokens,
        context=context,
        bytes_per_token=corpus.text_bytes / corpus.tokens,
    )


def _windows(loaded: Loaded, corpus: Corpus, starts: list[int]) -> tuple[float, int]:
    """Nats and tokens of some windows of one length."""
    length = loaded.config.sequence_length + 1
    rows = [corpus.read(start, min(start + length, corpus.tokens)).astype(np.int64) for start in starts]
    window_BC = torch.from_numpy(np.stack(rows)).to(loaded.model.embedding_VD.device)
    with torch.no_grad():
        prediction = loaded.model(window_BC[:, :-1], ForwardContext(step=0, microbatch=0))
    target_T = window_BC[:, 1:].reshape(-1)
    nats = functional.cross_entropy(prediction.logits_BSV.flatten(0, 1).double(), target_T, reduction="sum")
    return float(nats), target_T.numel()
