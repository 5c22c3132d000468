"""The entry of a shard, as far as somebody without torch needs it: do these bytes have the hashes that it states?

Pure. A shard is a safetensors file: 8 bytes of length, a header, then the pieces without gaps, each as weights, m and
v. The entry's own hash is over the header and the hashes of the pieces, so it stands for every byte of the shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

TENSORS_OF_A_PIECE = 3
ENTRY_CHARACTERS_MAX = 1 << 19
HEADER_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 8
_SHA256 = re.compile(r"[0-9a-f]{64}")


class EntryInvalid(ValueError):
    """The text is not the entry of a shard; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What an entry states: the shard's size and hash, and elements and hash of each piece."""

    bytes: int
    digest: str
    pieces: tuple[tuple[int, str], ...]


def read_entry(text: str) -> Entry:
    """Raises EntryInvalid."""
    if len(text) > ENTRY_CHARACTERS_MAX:
        raise EntryInvalid(f"an entry of {len(text)} characters, the limit is {ENTRY_CHARACTERS_MAX}")
    try:
        document = json.loads(text)
        fields = cast(dict[str, object], document)
        rows = cast(list[dict[str, object]], fields["pieces"])
        pieces = tuple((_count(row["stop"]) - _count(row["start"]), _digest(row["sha256"])) for row in rows)
        entry = Entry(bytes=_count(fields["bytes"]), digest=_digest(fields["sha256"]), pieces=pieces)
    except (ValueError, TypeError, KeyError) as error:
        raise EntryInvalid(f"not the entry of a shard: {error!r}") from error
    if not pieces or any(length < 1 for length, _ in pieces):
        raise EntryInvalid("not the entry of a shard: no piece, or an empty one")
    return entry


def fault_of(entry: Entry, read: Callable[[int, int], bytes]) -> str:
    """What is wrong with the bytes that `read(offset, length)` gives; empty if they have the hashes of the entry."""
    prefix = read(0, _LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    begin = _LENGTH_BYTES + length
    if len(prefix) < _LENGTH_BYTES or length > HEADER_BYTES_MAX or begin > entry.bytes:
        return "its header has an impossible length"
    elements = TENSORS_OF_A_PIECE * sum(each for each, _ in entry.pieces)
    width, rest = divmod(entry.bytes - begin, elements)
    if rest or not width:
        return "its pieces do not fill it"
    whole = hashlib.sha256(prefix + read(_LENGTH_BYTES, length))
    for number, (each, stated) in enumerate(entry.pieces):
        size = each * TENSORS_OF_A_PIECE * width
        if _hash_of(read, begin, size) != stated:
            return f"piece {number} does not have its sha256"
        whole.update(bytes.fromhex(stated))
        begin += size
    return "" if whole.hexdigest() == entry.digest else "its header does not have the sha256 of its entry"


def _hash_of(read: Callable[[int, int], bytes], begin: int, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, CHUNK_BYTES):
        digest.update(read(begin + offset, min(CHUNK_BYTES, size - offset)))
    return digest.hexdigest()


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a number of bytes or elements")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a sha256")
    return value
