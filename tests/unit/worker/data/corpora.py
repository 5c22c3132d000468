"""Corpora for tests: written token files, text, and a tokenizer that was trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from worker.data.tokenfile import TokenFileWriter

SAYINGS = (
    "the quick brown fox jumps over the lazy dog",
    "the lazy dog sleeps while the quick fox jumps",
    "größe und höhe: 漢字, and some more of the quick brown words",
)


@cache
def tokenizer_json() -> bytes:
    """A byte-level BPE of 300 tokens and an end of text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    made.train_from_iterator(SAYINGS * 20, trainer)
    return json.dumps(json.loads(made.to_str())).encode()


def write_tokens(path: Path, documents: Sequence[Sequence[int]], *, vocabulary: int = 1000) -> Path:
    """A token file of these documents; two bytes of text for each token."""
    writer = TokenFileWriter(path, vocabulary=vocabulary, tokenizer_name="made up", tokenizer=b"{}")
    for document in documents:
        writer.add(np.asarray(document, dtype=np.uint32), text_bytes=2 * len(document))
    writer.finish()
    return path


def random_documents(
    count: int, *, longest: int = 60, vocabulary: int = 1000, seed: int = 0
) -> list[list[int]]:
    """Documents of 1 to `longest` tokens."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, longest + 1, count)
    return [random.integers(0, vocabulary, size).tolist() for size in sizes]
