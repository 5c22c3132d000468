"""A corpus: documents as tokens, one after the other, wherever they come from. Opened by what a person types.

A path is a token file (`tokenfile.py`, or a folder that `understudy data prepare` wrote), or text, whose tokens are its
bytes (`text.py`). What must not live here: samples, epochs, mixtures (`windows.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worker.data import text, tokenfile
from worker.data.errors import TO_TRAIN_ON

BYTE_TOKENS = 256
Tokens = npt.NDArray[np.integer]
Starts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """How text became tokens."""

    size: int
    name: str
    """`bytes`, or the name of the tokenizer."""
    tokenizer: bytes = b""
    """A Hugging Face tokenizer.json; empty for bytes."""

    @property
    def digest(self) -> str:
        """Names the tokenizer whatever it is called."""
        return hashlib.sha256(self.tokenizer).hexdigest() if self.tokenizer else "bytes"


BYTES = Vocabulary(size=BYTE_TOKENS, name="bytes")


class Corpus(Protocol):
    """Tokens of documents. Reading needs no lock and keeps no position."""

    @property
    def path(self) -> str:
        """As it was asked for."""
        ...

    @property
    def tokens(self) -> int: ...

    @property
    def text_bytes(self) -> int:
        """Of the text that the tokens stand for."""
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def starts(self) -> Starts:
        """Where each document that is not empty begins, ascending, the first at 0."""
        ...

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop). Raises DataDamaged."""
        ...

    def fingerprint(self) -> str:
        """Names content and order; the same on every machine."""
        ...


def open_corpus(path: str, *, field: str = TO_TRAIN_ON) -> Corpus:
    """Raises DataError, which names `field`."""
    prepared = tokenfile.find(Path(path))
    if prepared is not None:
        return TokenCorpus(path, tokenfile.open_tokens(prepared, path=path, field=field))
    return TextCorpus(path, text.open_text(path, field=field))


class TextCorpus:
    """Text whose tokens are its bytes; a file is a document."""

    def __init__(self, path: str, content: text.Text) -> None:
        self.path = path
        self.text = content
        self.tokens = self.text_bytes = content.bytes
        self.vocabulary = BYTES
        begins = np.cumsum([0, *content.sizes[:-1]], dtype=np.int64)
        self.starts: Starts = np.unique(begins[np.asarray(content.sizes, dtype=np.int64) > 0])

    def read(self, start: int, stop: int) -> Tokens:
        """See `Corpus`."""
        return self.text.read(start, stop)

    def fingerprint(self) -> str:
        """See `Corpus`. Reads everything: about a second per gigabyte."""
        return self.text.fingerprint()


class TokenCorpus:
    """A token file."""

    def __init__(self, path: str, file: tokenfile.TokenFile) -> None:
        self.path = path
        self.file = file
        header = file.header
        self.tokens, self.text_bytes = header.tokens, header.text_bytes
        self.vocabulary = Vocabulary(
            size=header.vocabulary, name=header.tokenizer_name, tokenizer=file.tokenizer
        )
        self.starts: Starts = file.starts

    def read(self, start: int, stop: int) -> Tokens:
        """See `Corpus`."""
        return self.file.read(start, stop)

    def fingerprint(self) -> str:
        """See `Corpus`. The header's, which holds a digest of everything else: nothing is read."""
        return self.file.header_digest
