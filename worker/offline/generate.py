"""Text out of a model, byte by byte.

The last `sequence_length` bytes are what the model sees; each new byte is one forward pass over them. What must not
live here: the screen (`commands.py`).

Shapes: S bytes seen; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model.router import ForwardContext
from worker.offline.opened import Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next byte is chosen."""

    temperature: float
    """0 takes the likeliest byte every time."""
    top_k: int
    """Only among this many likeliest bytes; 0 for all."""
    seed: int


def generate(loaded: Loaded, prompt: bytes, sampling: Sampling) -> Iterator[int]:
    """New bytes after a prompt that is not empty, without end. The same seed gives the same bytes."""
    assert prompt, "a model predicts the byte after another"
    generator = torch.Generator().manual_seed(sampling.seed)
    seen = list(prompt)
    device = loaded.model.embedding_VD.device
    while True:
        window_BS = torch.tensor([seen[-loaded.config.sequence_length :]], device=device)
        with torch.no_grad():
            prediction = loaded.model(window_BS, ForwardContext(step=0, microbatch=0))
        logits_V = prediction.logits_BSV[0, -1].double().cpu()
        seen.append(_choose(logits_V, sampling, generator))
        del seen[: -loaded.config.sequence_length]
        yield seen[-1]


def _choose(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    if 0 < sampling.top_k < len(logits_V):
        floor = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < floor, -torch.inf)
    chances_V = (logits_V / sampling.temperature).softmax(0)
    return int(torch.multinomial(chances_V, 1, generator=generator))
