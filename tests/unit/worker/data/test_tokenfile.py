"""Token files: what was written is read, and nothing that was not written is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.datafiles import token_file_facts
from tests.unit.worker.data.corpora import random_documents, write_tokens
from worker.data.corpus import open_corpus
from worker.data.errors import DataDamaged, DataError
from worker.data.tokenfile import (
    BLOCK_BYTES,
    TOKENS_AT,
    TokenFile,
    TokenFileWriter,
    dtype_for,
    find,
    open_tokens,
)


def opened(path: Path) -> TokenFile:
    return open_tokens(path, path=str(path))


@pytest.mark.parametrize(
    "vocabulary, dtype", [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_what_was_written_is_read(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    documents = random_documents(300, vocabulary=vocabulary)
    file = opened(write_tokens(tmp_path / "made.tokens", documents, vocabulary=vocabulary))
    assert file.header.dtype == dtype == dtype_for(vocabulary)
    assert file.header.documents == 300 and file.header.vocabulary == vocabulary
    flat = [token for document in documents for token in document]
    assert file.header.tokens == len(flat) and file.header.text_bytes == 2 * len(flat)
    assert file.read(0, len(flat)).tolist() == flat
    assert file.read(17, 1000).tolist() == flat[17:1000]
    assert file.starts.tolist() == np.cumsum([0, *map(len, documents[:-1])]).tolist()
    assert file.tokenizer == b"{}"


def test_the_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "made.tokens", vocabulary=9, tokenizer_name="bytes", tokenizer=b"")
    writer.add(np.arange(9), text_bytes=9)
    assert [file.name for file in tmp_path.iterdir()] == ["made.tokens.partial"]
    writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["made.tokens"]
    writer = TokenFileWriter(tmp_path / "other.tokens", vocabulary=9, tokenizer_name="bytes", tokenizer=b"")
    writer.abandon()
    assert [file.name for file in tmp_path.iterdir()] == ["made.tokens"]


def test_a_folder_stands_for_its_training_file(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.tokens", [[1, 2]])
    assert find(tmp_path) == tmp_path / "train.tokens"
    assert open_corpus(str(tmp_path)).tokens == 2
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"abc")
    assert find(tmp_path / "text") is None and open_corpus(str(tmp_path / "text")).tokens == 3


@pytest.mark.parametrize("where", ["header", "tokens", "starts", "digests", "tokenizer"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, where: str) -> None:
    path = write_tokens(tmp_path / "made.tokens", random_documents(9000), vocabulary=1000)
    header = opened(path).header
    assert header.blocks == 3, "the damage is to be in a block of several"
    tables = TOKENS_AT + header.tokens * header.item_bytes
    place = {
        "header": 60,
        "tokens": TOKENS_AT + BLOCK_BYTES + 5,
        "starts": tables + 3,
        "digests": tables + 8 * header.documents + 20,
        "tokenizer": header.file_bytes - 1,
    }[where]
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    if where != "tokens":
        with pytest.raises(DataDamaged, match=r"made\.tokens is damaged: its (header|tables)"):
            opened(path)
        return
    file = opened(path)
    in_block = BLOCK_BYTES // header.item_bytes
    assert len(file.read(0, in_block)) == in_block, "sound blocks can be read"
    with pytest.raises(
        DataDamaged, match=f"damaged in the {BLOCK_BYTES} bytes after {TOKENS_AT + BLOCK_BYTES}"
    ):
        file.read(in_block - 1, in_block + 1)
    with pytest.raises(DataDamaged):
        file.verify()


@pytest.mark.parametrize("size", [10, 100, TOKENS_AT + 20, -1])
def test_a_torn_file_is_refused(tmp_path: Path, size: int) -> None:
    path = write_tokens(tmp_path / "made.tokens", random_documents(20))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        DataDamaged, match=r"data\.path is .*made\.tokens is damaged.*understudy data prepare"
    ):
        opened(path)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "made.tokens", [[1]])
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="its format is 2, known is 1"):
        opened(path)


def test_the_digest_of_the_header_names_the_content(tmp_path: Path) -> None:
    one = opened(write_tokens(tmp_path / "one.tokens", [[1, 2, 3], [4]]))
    same = opened(write_tokens(tmp_path / "same.tokens", [[1, 2, 3], [4]]))
    cut = opened(write_tokens(tmp_path / "cut.tokens", [[1, 2], [3, 4]]))
    other = opened(write_tokens(tmp_path / "other.tokens", [[1, 2, 3], [5]]))
    assert one.header_digest == same.header_digest
    assert len({one.header_digest, cut.header_digest, other.header_digest}) == 3


def test_the_controller_reads_the_same_header(tmp_path: Path) -> None:
    """Two programs that do not import each other read one format."""
    write_tokens(tmp_path / "train.tokens", [[1, 2, 3]], vocabulary=50257)
    for path in (tmp_path, tmp_path / "train.tokens"):
        facts = token_file_facts(str(path))
        assert facts is not None and (facts.vocabulary, facts.tokenizer) == (50257, "made up")
    (tmp_path / "text").write_bytes(b"USTOKENS but no header")
    assert token_file_facts(str(tmp_path / "text")) is None
    assert token_file_facts(str(tmp_path / "nothing")) is None
