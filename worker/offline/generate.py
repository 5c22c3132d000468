"""Text out of a model, token by token.

The last `sequence_length` tokens are what the model sees; each new one is one forward pass over them. What must not
live here: tokenizers (`worker/data/tokenizer.py`), the screen (`commands.py`).

Shapes: S tokens seen; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.data.tokenizer import Tokenizer
from worker.model.router import ForwardContext
from worker.offline.opened import Loaded

REPLACEMENT = "\ufffd".encode()
"""What a decoder writes for bytes that are no whole character yet."""
LONGEST_CHARACTER = 8
"""So many tokens at most wait for their character to be whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float
    """0 takes the likeliest token every time."""
    top_k: int
    """Only among this many likeliest tokens; 0 for all."""
    vocabulary: int = 0
    """Only tokens below this, where the model has rows that no text uses; 0 for all."""
    seed: int


def generate(loaded: Loaded, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """New tokens after a prompt that is not empty, without end. The same seed gives the same tokens."""
    assert len(prompt), "a model predicts the token after another"
    generator = torch.Generator().manual_seed(sampling.seed)
    seen = list(prompt)
    device = loaded.model.embedding_VD.device
    while True:
        window_BS = torch.tensor([seen[-loaded.config.sequence_length :]], device=device)
        with torch.no_grad():
            prediction = loaded.model(window_BS, ForwardContext(step=0, microbatch=0))
        logits_V = prediction.logits_BSV[0, -1].double().cpu()
        if sampling.vocabulary:
            logits_V = logits_V[: sampling.vocabulary]
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


def streamed(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[bytes]:
    """Text as soon as it is certain: a character may need several tokens, and a word the one before it."""
    pending: list[int] = []
    shown = b""
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending)
        if text.endswith(REPLACEMENT) and len(pending) < LONGEST_CHARACTER:
            continue
        yield text[len(shown) :]
        # The last token stays as context: decoders of words drop the space of a first one.
        pending = pending[-1:]
        shown = tokenizer.decode(pending)
    if pending:
        yield tokenizer.decode(pending)[len(shown) :]
