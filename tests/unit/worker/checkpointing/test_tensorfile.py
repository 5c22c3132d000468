"""The header is a safetensors header, and anything else is refused by name."""

from __future__ import annotations

import json
import struct

import pytest
from safetensors import deserialize

from worker.checkpointing.manifest import Piece
from worker.checkpointing.tensorfile import (
    HeaderInvalid,
    Span,
    body_bytes,
    decode_header,
    encode_header,
    header_length,
)

PIECES = (Piece(part="dense", start=10, stop=15), Piece(part="expert-00003", start=0, stop=2))


def split(head: bytes, total: int) -> bytes:
    length = header_length(head[:8], total)
    assert len(head) == 8 + length
    return head[8:]


@pytest.mark.parametrize("precision, width", [("float32", 4), ("float64", 8)])
def test_the_safetensors_library_reads_the_layout(precision: str, width: int) -> None:
    head = encode_header(PIECES, precision)
    assert len(head) % 8 == 0
    body = bytes(range(body_bytes(PIECES, precision) % 256)) + bytes(body_bytes(PIECES, precision))
    body = body[: body_bytes(PIECES, precision)]
    tensors = dict(deserialize(head + body))  # type: ignore[no-untyped-call]
    assert set(tensors) == {
        f"{part}.{kind}" for part in ("dense", "expert-00003") for kind in ("weights", "m", "v")
    }
    assert tensors["dense.m"]["shape"] == [5]
    assert bytes(tensors["dense.m"]["data"]) == body[5 * width : 10 * width]


def test_spans_read_back() -> None:
    head = encode_header(PIECES, "float32")
    total = len(head) + body_bytes(PIECES, "float32")
    spans = decode_header(split(head, total), total, "float32")
    assert spans["dense.v"] == Span(offset=len(head) + 40, bytes=20)
    assert spans["expert-00003.v"] == Span(offset=total - 8, bytes=8)


@pytest.mark.parametrize(
    "first, total",
    [
        (b"\x05", 100),
        (struct.pack("<Q", 1), 100),
        (struct.pack("<Q", 93), 100),
        (struct.pack("<Q", 1 << 60), 1 << 62),
    ],
)
def test_an_impossible_header_length_is_refused(first: bytes, total: int) -> None:
    with pytest.raises(HeaderInvalid):
        header_length(first, total)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "document, complaint",
    [
        ("{", "not JSON"),
        ([], "not a mapping"),
        ({"a": 5}, "dtype None"),
        ({"a": GOOD | {"dtype": "F64"}}, "dtype F64"),
        ({"a": GOOD | {"shape": [1, 2]}}, "shape"),
        ({"a": GOOD | {"data_offsets": [0, 12]}}, "shape"),
        ({"a": GOOD | {"data_offsets": [8, 0]}}, "shape"),
        ({"a": GOOD, "b": GOOD}, "begins at byte"),
        ({"a": GOOD | {"data_offsets": [8, 16]}}, "begins at byte"),
        ({}, "end at byte"),
    ],
)
def test_a_header_of_something_else_is_refused(document: object, complaint: str) -> None:
    text = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    with pytest.raises(HeaderInvalid, match=complaint):
        decode_header(text, 8 + len(text) + 8, "float32")
