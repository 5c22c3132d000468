"""Token files: documents as tokens on disk, memory-mapped, each byte under a digest.

    offset        content
    0             b"USTOKENS"
    8             u32 version (1), u32 length of the header
    16            blake2b-16 of the header
    32            the header: JSON, UTF-8; its fields are those of `Header`
    4096          tokens, one after the other: uint8, uint16 or uint32
    then          u64 [documents]: where each document begins, counted in tokens, ascending, the first at 0
    then          16 bytes [blocks]: blake2b-16 of each `block_bytes` of the tokens
    then          the tokenizer: a Hugging Face tokenizer.json, or nothing where tokens are bytes

All numbers are little-endian. The header holds a digest of the three tables, the tables one of each block of tokens:
so the header's digest names everything. Size, header and tables are verified when a file is opened, a block of tokens
when something in it is read for the first time. A file is written under another name and renamed when it is whole.

What must not live here: text, samples. Next: `corpus.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from worker.data.errors import TO_TRAIN_ON, DataDamaged, DataError

MAGIC = b"USTOKENS"
VERSION = 1
SUFFIX = ".tokens"
TRAIN_FILE = f"train{SUFFIX}"
VALIDATION_FILE = f"validation{SUFFIX}"
TOKENS_AT = 4096
"""Where the tokens begin, so that the header can be written last."""
BLOCK_BYTES = 1 << 18
DIGEST_BYTES = 16
_FIXED = struct.Struct(f"<8sII{DIGEST_BYTES}s")
_DTYPES: Mapping[str, np.dtype[Any]] = {name: np.dtype(f"<u{size}") for name, size in (
    ("uint8", 1), ("uint16", 2), ("uint32", 4),
)}  # fmt: skip

Tokens = npt.NDArray[np.integer]
Starts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a token file says about itself."""

    dtype: str
    """uint8 | uint16 | uint32"""
    vocabulary: int
    """Every token is less than this."""
    tokens: int
    documents: int
    text_bytes: int
    """Of the text that the tokens stand for."""
    block_bytes: int
    tokenizer_name: str
    tokenizer_bytes: int
    """Length of the tokenizer in the file; 0 where tokens are bytes."""
    tables_digest: str
    """blake2b-16 of starts, block digests and tokenizer, as they follow one another."""

    @property
    def item_bytes(self) -> int:
        return _DTYPES[self.dtype].itemsize

    @property
    def blocks(self) -> int:
        return -(-self.tokens * self.item_bytes // self.block_bytes)

    @property
    def file_bytes(self) -> int:
        tables = 8 * self.documents + DIGEST_BYTES * self.blocks + self.tokenizer_bytes
        return TOKENS_AT + self.tokens * self.item_bytes + tables


def dtype_for(vocabulary: int) -> str:
    """The smallest kind of number that holds every token."""
    return next(
        name for name, dtype in _DTYPES.items() if vocabulary - 1 <= np.iinfo(dtype).max or name == "uint32"
    )


def digest_of(content: bytes | bytearray | memoryview) -> bytes:
    """blake2b-16."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def find(path: Path) -> Path | None:
    """The token file that is meant: this file, or `train.tokens` in this folder; None for anything else."""
    candidate = path / TRAIN_FILE if path.is_dir() else path
    if not candidate.is_file():
        return None
    with candidate.open("rb") as file:
        return candidate if file.read(len(MAGIC)) == MAGIC else None


class TokenFileWriter:
    """Writes one token file, document after document. Nothing has its name before `finish`."""

    def __init__(self, path: Path, *, vocabulary: int, tokenizer_name: str, tokenizer: bytes) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._dtype = dtype_for(vocabulary)
        self._vocabulary = vocabulary
        self._name = tokenizer_name
        self._tokenizer = tokenizer
        self._starts: list[int] = []
        self._digests: list[bytes] = []
        self._block = bytearray()
        self._tokens = self._text_bytes = 0
        self._file: BinaryIO = self._partial.open("wb")
        self._file.seek(TOKENS_AT)

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def documents(self) -> int:
        return len(self._starts)

    def add(self, tokens: Tokens, *, text_bytes: int) -> None:
        """One document; an empty one leaves no trace."""
        if len(tokens) == 0:
            return
        assert int(tokens.max()) < self._vocabulary, "a tokenizer gives tokens of its vocabulary"
        self._starts.append(self._tokens)
        self._tokens += len(tokens)
        self._text_bytes += text_bytes
        content = tokens.astype(_DTYPES[self._dtype]).tobytes()
        self._file.write(content)
        self._block += content
        while len(self._block) >= BLOCK_BYTES:
            self._digests.append(digest_of(memoryview(self._block)[:BLOCK_BYTES]))
            del self._block[:BLOCK_BYTES]

    def finish(self) -> Header:
        """Make the file whole, durable and visible. Raises OSError."""
        if self._block:
            self._digests.append(digest_of(self._block))
        starts = np.asarray(self._starts, dtype="<u8").tobytes()
        tables = starts + b"".join(self._digests) + self._tokenizer
        header = Header(
            dtype=self._dtype,
            vocabulary=self._vocabulary,
            tokens=self._tokens,
            documents=len(self._starts),
            text_bytes=self._text_bytes,
            block_bytes=BLOCK_BYTES,
            tokenizer_name=self._name,
            tokenizer_bytes=len(self._tokenizer),
            tables_digest=digest_of(tables).hex(),
        )
        text = json.dumps(asdict(header)).encode()
        assert _FIXED.size + len(text) <= TOKENS_AT, "a header has a few hundred bytes"
        self._file.write(tables)
        self._file.seek(0)
        self._file.write(_FIXED.pack(MAGIC, VERSION, len(text), digest_of(text)) + text)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
        _sync_folder(self._path.parent)
        return header

    def abandon(self) -> None:
        """Leave nothing behind; harmless after `finish`."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class TokenFile:
    """An opened token file. Blocks are verified when they are first read; threads may read at once."""

    def __init__(
        self, file: Path, *, header: Header, header_digest: str, tables: bytes, path: str, field: str
    ) -> None:
        self.header, self.header_digest = header, header_digest
        first, second = 8 * header.documents, 8 * header.documents + DIGEST_BYTES * header.blocks
        self.starts: Starts = np.frombuffer(tables[:first], dtype="<u8").astype(np.int64)
        self.tokenizer = tables[second:]
        self._digests = tables[first:second]
        self._file, self._path, self._field = file, path, field
        self._content = np.memmap(
            file, dtype=np.uint8, mode="r", offset=TOKENS_AT, shape=(header.tokens * header.item_bytes,)
        )
        self._sound = np.zeros(header.blocks, dtype=bool)

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop). Raises DataDamaged."""
        header = self.header
        assert 0 <= start <= stop <= header.tokens, (start, stop, header.tokens)
        first, last = start * header.item_bytes, stop * header.item_bytes
        for block in range(first // header.block_bytes, -(-last // header.block_bytes)):
            if not self._sound[block]:
                self._verify(block)
        return self._content[first:last].view(_DTYPES[header.dtype])

    def verify(self) -> None:
        """Read everything. Raises DataDamaged."""
        for block in range(self.header.blocks):
            self._verify(block)

    def _verify(self, block: int) -> None:
        size = self.header.block_bytes
        content = self._content[block * size : (block + 1) * size].tobytes()
        if digest_of(content) != self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:
            raise DataDamaged(
                self._path,
                f"{self._file.name} is damaged in the {size} bytes after {TOKENS_AT + block * size}",
                "copy it again, or write it anew with understudy data prepare",
                field=self._field,
            )
        self._sound[block] = True


def open_tokens(file: Path, *, path: str, field: str = TO_TRAIN_ON) -> TokenFile:
    """Verifies size, header and tables. Raises DataError, DataDamaged."""
    try:
        return _open(file, path, field)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
        raise DataError(path, problem, "make it readable on every node", field=field) from error


def _open(file: Path, path: str, field: str) -> TokenFile:
    def damaged(what: str) -> DataDamaged:
        remedy = "copy it again, or write it anew with understudy data prepare"
        return DataDamaged(path, f"{file.name} is damaged: {what}", remedy, field=field)

    with file.open("rb") as opened:
        fixed = opened.read(_FIXED.size)
        if len(fixed) < _FIXED.size:
            raise damaged("it ends in its header")
        magic, version, length, digest = _FIXED.unpack(fixed)
        assert magic == MAGIC, "`find` has looked at it"
        if version != VERSION:
            problem, remedy = f"its format is {version}, known is {VERSION}", "use the version that wrote it"
            raise DataError(path, problem, remedy, field=field)
        text = opened.read(min(length, TOKENS_AT))
        if digest_of(text) != digest:
            raise damaged("its header is not the one that was written")
        header = read_header(text)
        size = file.stat().st_size
        if size != header.file_bytes:
            raise damaged(f"it has {size} bytes, its header says {header.file_bytes}")
        opened.seek(TOKENS_AT + header.tokens * header.item_bytes)
        tables = opened.read()
    if digest_of(tables).hex() != header.tables_digest:
        raise damaged("its tables are not those that were written")
    if header.tokens == 0:
        raise DataError(path, f"{file.name} holds no token", "prepare it from text", field=field)
    return TokenFile(file, header=header, header_digest=digest.hex(), tables=tables, path=path, field=field)


def read_header(text: bytes) -> Header:
    """Of bytes whose digest was right."""
    said = json.loads(text)
    return Header(**{field.name: said[field.name] for field in fields(Header)})
