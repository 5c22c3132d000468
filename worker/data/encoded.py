"""A text as the tokens of a tokenizer, in memory: for measuring a model on text that nobody has prepared."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from worker.data.corpus import Corpus, Starts, Tokens
from worker.data.errors import DataError
from worker.data.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 64


class EncodedCorpus:
    """See `Corpus`; a document of the text is one here."""

    def __init__(self, text: Corpus, tokenizer: Tokenizer) -> None:
        """Raises TokenizerError."""
        self.path, self.text_bytes, self.vocabulary = text.path, text.text_bytes, tokenizer.vocabulary
        spans = list(pairwise([*text.starts.tolist(), text.tokens]))
        documents: list[Tokens] = []
        for first in range(0, len(spans), DOCUMENTS_AT_ONCE):
            batch = spans[first : first + DOCUMENTS_AT_ONCE]
            documents += tokenizer.encode([text.read(start, stop).tobytes() for start, stop in batch])
        self._content: Tokens = np.concatenate(documents) if documents else np.empty(0, dtype=np.uint32)
        self.tokens = len(self._content)
        sizes = np.asarray([len(document) for document in documents], dtype=np.int64)
        self.starts: Starts = np.unique((np.cumsum(sizes) - sizes)[sizes > 0])
        self._fingerprint = f"{text.fingerprint()}-{tokenizer.vocabulary.digest[:16]}"

    def read(self, start: int, stop: int) -> Tokens:
        """See `Corpus`."""
        return self._content[start:stop]

    def fingerprint(self) -> str:
        """See `Corpus`."""
        return self._fingerprint


def as_tokens_of(corpus: Corpus, tokenizer: Tokenizer, *, field: str) -> Corpus:
    """The corpus in the tokenizer's tokens: as it is, or encoded. Raises DataError, TokenizerError."""
    wanted, found = tokenizer.vocabulary, corpus.vocabulary
    if wanted.digest == found.digest:
        return corpus
    if found.tokenizer:
        raise DataError(
            corpus.path,
            f"its tokens are of {found.name}, the model's of {wanted.name}",
            "name text, or a token file of the model's tokenizer",
            field=field,
        )
    return EncodedCorpus(corpus, tokenizer)
