"""Text to tokens and back, and the tokenizer that lies beside checkpoints.

`tokenizers` of Hugging Face, an optional extra, has its one door here.
`bytes` needs nothing: a token is a byte. Anything else is a tokenizer.json. What must not live here: files of tokens.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worker.data.corpus import BYTES, Tokens, Vocabulary

EXTRA = 'pip install "understudy[tokenizers]"'
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Tokens that well-known tokenizers put after a document."""
NO_END = "none"

log = logging.getLogger(__name__)
FILE = "tokenizer.json"


class TokenizerError(Exception):
    """A tokenizer that cannot be used; says what to do."""


class Tokenizer(Protocol):
    """Encodes documents, decodes tokens."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """Each document's tokens, its end among them if it has one. Raises TokenizerError for what is no UTF-8."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """A text that goes on: no end after it."""
        ...

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The text of some tokens, special ones included."""
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """Token b is byte b; documents have no end of their own."""

    vocabulary: Vocabulary = BYTES

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """See `Tokenizer`."""
        return [np.frombuffer(document, dtype=np.uint8) for document in documents]

    def encode_prompt(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> bytes:
        """See `Tokenizer`. A larger vocabulary than 256 has tokens that mean nothing."""
        return bytes(token for token in tokens if token < self.vocabulary.size)


class FileTokenizer:
    """A tokenizer.json. Batches run on one core: parallel are the processes of `prepare.py`."""

    def __init__(self, content: bytes, *, name: str, end: str | None = None) -> None:
        """`end` is the token after each document: its text, `none`, or None for the usual one if it is there."""
        library = _library()
        try:
            self._tokenizer: Any = library.Tokenizer.from_str(content.decode())
        except Exception as error:
            raise TokenizerError(
                f"tokenizer {name}: it is no tokenizer.json ({error}); name the tokenizer.json of a Hugging Face model"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary = Vocabulary(
            size=self._tokenizer.get_vocab_size(with_added_tokens=True), name=name, tokenizer=content
        )
        self._end = self._end_token(end)

    def _end_token(self, wanted: str | None) -> int | None:
        if wanted == NO_END:
            return None
        for text in _ENDS if wanted is None else (wanted,):
            found: int | None = self._tokenizer.token_to_id(text)
            if found is not None:
                return found
        if wanted is None:
            return None
        raise TokenizerError(
            f"--end-of-document is {wanted!r}: tokenizer {self.vocabulary.name} has no such token; "
            f"name one of its special tokens, or {NO_END!r}"
        )

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """See `Tokenizer`."""
        try:
            texts = [document.decode() for document in documents]
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"a document is no UTF-8 text ({error.reason} at byte {error.start}): leave it out, or use "
                "--tokenizer bytes"
            ) from error
        end = [] if self._end is None else [self._end]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.asarray([*each.ids, *end], dtype=np.uint32) for each in encoded]

    def encode_prompt(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> bytes:
        """See `Tokenizer`."""
        known = [token for token in tokens if token < self.vocabulary.size]
        return str(self._tokenizer.decode(known, skip_special_tokens=False)).encode()


def open_tokenizer(given: str, *, end: str | None = None) -> Tokenizer:
    """`bytes`, a tokenizer.json, or a folder with one. Raises TokenizerError."""
    if given == BYTES.name:
        return ByteTokenizer()
    path = Path(given)
    file = path / FILE if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {given}: {error.strerror}; name a tokenizer.json, a folder with one, or {BYTES.name!r}"
        ) from error
    name = file.parent.resolve().name if file.name == FILE else file.stem
    return FileTokenizer(content, name=name, end=end)


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """The one that made a corpus. Raises TokenizerError where the library is missing."""
    if not vocabulary.tokenizer:
        return ByteTokenizer()
    return FileTokenizer(vocabulary.tokenizer, name=vocabulary.name)


def keep(folder: Path, vocabulary: Vocabulary) -> None:
    """Put the tokenizer into a folder for whoever reads the model later; all write the same, training does without."""
    if not vocabulary.tokenizer or (folder / FILE).exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{FILE}.", delete=False) as scratch:
            scratch.write(vocabulary.tokenizer)
        Path(scratch.name).replace(folder / FILE)
    except OSError as error:
        log.warning("the tokenizer could not be put into %s: %s", folder, error)


def kept(folder: Path) -> Tokenizer | None:
    """The one that `keep` put there. Raises TokenizerError."""
    return open_tokenizer(str(folder / FILE)) if (folder / FILE).is_file() else None


def _library() -> Any:  # Any: the library is optional, and its types are not always there
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(f"the library tokenizers is not installed: {EXTRA}") from error
    return tokenizers
