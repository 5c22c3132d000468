"""The safetensors layout of a shard file: a length, a JSON header, then the tensors without gaps.

PURE. `writer` lays the body out in memory exactly as it lies in the file, so that a shard is written by copying one
buffer, and `reader` reads byte ranges with `pread`: a file that is cut off under a reader is then an error with a
name, where a memory map would end the process with SIGBUS. The files are ordinary safetensors files
(https://github.com/huggingface/safetensors#format), and the tests read them with that library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from worker.checkpointing.manifest import PRECISION_BYTES, Piece
from worker.checkpointing.names import KINDS, tensor_name

LENGTH_BYTES = 8
HEADER_BYTES_MAX = 64 << 20

_LENGTH = struct.Struct("<Q")
_FORMAT_NAMES = {"float32": "F32", "float64": "F64"}
_ALIGNMENT = 8


class HeaderInvalid(Exception):
    """The header is not one that this program writes; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a tensor lies in the file, in bytes from its beginning."""

    offset: int
    bytes: int


def body_bytes(pieces: Sequence[Piece], precision: str) -> int:
    """Bytes of all tensors of the pieces."""
    return sum(piece.length for piece in pieces) * len(KINDS) * PRECISION_BYTES[precision]


def encode_header(pieces: Sequence[Piece], precision: str) -> bytes:
    """The file up to its first tensor. Tensors follow piece by piece, each as weights, m, v."""
    document: dict[str, object] = {
        "__metadata__": {"format": "pt"} | {p.part: f"elements {p.start} to {p.stop}" for p in pieces}
    }
    offset = 0
    for piece in pieces:
        size = piece.length * PRECISION_BYTES[precision]
        for kind in KINDS:
            document[tensor_name(piece.part, kind)] = {
                "dtype": _FORMAT_NAMES[precision],
                "shape": [piece.length],
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def header_length(first: bytes | bytearray, file_bytes: int) -> int:
    """Length of the JSON header, from the file's first eight bytes; raises HeaderInvalid."""
    if len(first) != LENGTH_BYTES:
        raise HeaderInvalid("the file is shorter than its length field")
    length = int(_LENGTH.unpack(first)[0])
    if not 2 <= length <= min(HEADER_BYTES_MAX, file_bytes - LENGTH_BYTES):
        raise HeaderInvalid(f"a header of {length} bytes cannot be in a file of {file_bytes} bytes")
    return length


def decode_header(text: bytes | bytearray, file_bytes: int, precision: str) -> Mapping[str, Span]:
    """Where each tensor lies. Raises HeaderInvalid unless all are of `precision`, flat, and fill the file."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise HeaderInvalid(f"the header is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise HeaderInvalid("the header is not a mapping")
    begin = LENGTH_BYTES + len(text)
    spans: dict[str, Span] = {}
    for name, entry in document.items():
        if name != "__metadata__":
            spans[name] = _span(name, entry, begin, precision)
    end = begin
    for name, span in sorted(spans.items(), key=lambda item: item[1].offset):
        if span.offset != end:
            raise HeaderInvalid(f"{name} begins at byte {span.offset}, not at {end}")
        end += span.bytes
    if end != file_bytes:
        raise HeaderInvalid(f"the tensors end at byte {end} of a file of {file_bytes} bytes")
    return spans


def _span(name: str, entry: object, begin: int, precision: str) -> Span:
    fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
    if fields.get("dtype") != _FORMAT_NAMES[precision]:
        raise HeaderInvalid(f"{name} has dtype {fields.get('dtype')}, not {_FORMAT_NAMES[precision]}")
    match fields.get("shape"), fields.get("data_offsets"):
        case [int(length)], [int(start), int(stop)] if (
            0 <= start < stop and stop - start == length * PRECISION_BYTES[precision]
        ):
            return Span(offset=begin + start, bytes=stop - start)
        case shape, offsets:
            raise HeaderInvalid(f"{name} has shape {shape} at bytes {offsets}")
