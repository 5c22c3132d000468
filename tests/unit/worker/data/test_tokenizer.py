"""Text to tokens and back, and refusals that say what to do."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.data.corpora import SAYINGS, tokenizer_json
from worker.data.corpus import TextCorpus, Vocabulary
from worker.data.encoded import as_tokens_of
from worker.data.errors import DataError
from worker.data.text import Text
from worker.data.tokenizer import (
    ByteTokenizer,
    FileTokenizer,
    TokenizerError,
    keep,
    kept,
    open_tokenizer,
    tokenizer_of,
)
from worker.offline.generate import streamed


def bpe(end: str | None = None) -> FileTokenizer:
    return FileTokenizer(tokenizer_json(), name="bpe", end=end)


@given(st.text())
def test_text_comes_back(text: str) -> None:
    document = text.encode()
    for tokenizer in (ByteTokenizer(), bpe("none")):
        (tokens,) = tokenizer.encode([document])
        assert tokenizer.decode(tokens.tolist()) == document
        assert b"".join(streamed(tokenizer, tokens.tolist())) == document


def test_documents_end_with_the_usual_token_unless_told_otherwise() -> None:
    (usual,), (plain,), (own,) = (bpe(end).encode([b"fox"]) for end in (None, "none", "a"))
    assert usual.tolist() == [*plain.tolist(), 0]
    assert own.tolist() == [*plain.tolist(), bpe().encode_prompt("a")[0]]
    assert bpe().encode_prompt("fox") == plain.tolist()
    with pytest.raises(TokenizerError, match="--end-of-document is '<eot>': tokenizer bpe has no such token"):
        bpe("<eot>")


def test_a_tokenizer_is_a_file_a_folder_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    file = tmp_path / "small" / "tokenizer.json"
    file.write_bytes(tokenizer_json())
    assert open_tokenizer(str(file.parent)).vocabulary == open_tokenizer(str(file)).vocabulary
    assert open_tokenizer(str(file)).vocabulary.name == "small"
    assert open_tokenizer("bytes").vocabulary.size == 256
    with pytest.raises(TokenizerError, match=r"No such file .*name a tokenizer\.json"):
        open_tokenizer(str(tmp_path / "nothing"))
    file.write_bytes(b"[]")
    with pytest.raises(TokenizerError, match=r"it is no tokenizer\.json"):
        open_tokenizer(str(file))


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no UTF-8 text .* at byte 1.*--tokenizer bytes"):
        bpe().encode([b"a\xff"])


def test_the_tokenizer_lies_beside_checkpoints_for_whoever_comes_later(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    keep(tmp_path, Vocabulary(size=256, name="bytes"))
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        keep(tmp_path / "checkpoints", bpe().vocabulary)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["tokenizer.json"]
    found = kept(tmp_path / "checkpoints")
    assert found is not None and found.vocabulary.digest == bpe().vocabulary.digest


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TokenizerError, match=r"not installed: pip install \"understudy\[tokenizers\]\""):
        tokenizer_of(Vocabulary(size=300, name="bpe", tokenizer=tokenizer_json()))
    assert isinstance(tokenizer_of(Vocabulary(size=256, name="bytes")), ByteTokenizer)


def text_of(*documents: str) -> TextCorpus:
    contents = [np.frombuffer(document.encode(), dtype=np.uint8) for document in documents]
    return TextCorpus("text", Text.of(tuple(f"{n}" for n in range(len(documents))), contents))


def test_a_text_is_read_in_a_model_s_tokens() -> None:
    text = text_of(SAYINGS[0], "", SAYINGS[1])
    corpus = as_tokens_of(text, bpe(), field="--data")
    first, second = bpe().encode([SAYINGS[0].encode(), SAYINGS[1].encode()])
    assert corpus.read(0, corpus.tokens).tolist() == [*first.tolist(), *second.tolist()]
    assert corpus.starts.tolist() == [0, len(first)]
    assert corpus.text_bytes == text.tokens
    assert as_tokens_of(text, ByteTokenizer(), field="--data") is text
    with pytest.raises(DataError, match="--data is 'text': its tokens are of bpe, the model's of bytes"):
        as_tokens_of(corpus, ByteTokenizer(), field="--data")
