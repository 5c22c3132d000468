"""An entry stands for every byte of its shard, and what is no entry is told apart."""

from __future__ import annotations

import json

import pytest

from tests.unit.worker.hostmemory.shards import shard
from worker.hostmemory.entry import EntryInvalid, fault_of, read_entry
from worker.hostmemory.identity import ShardRecord


def fault(record: ShardRecord, content: bytes) -> str:
    return fault_of(read_entry(record.entry), lambda offset, length: content[offset : offset + length])


def test_sound_bytes_have_no_fault() -> None:
    record, content = shard()
    assert read_entry(record.entry).bytes == len(content)
    assert not fault(record, content)


def test_each_flipped_byte_is_seen() -> None:
    record, content = shard(lengths=(2, 3))
    for place in range(len(content)):
        torn = bytearray(content)
        torn[place] ^= 0x20
        assert fault(record, bytes(torn)), place


def test_a_shard_that_ends_early_is_seen() -> None:
    record, content = shard()
    for size in (0, 7, 40, len(content) - 1):
        assert fault(record, content[:size])


@pytest.mark.parametrize(
    "change", [{"bytes": -1}, {"sha256": "zz"}, {"pieces": []}, {"pieces": 3}, {"bytes": True}]
)
def test_what_is_no_entry_is_refused(change: dict[str, object]) -> None:
    record, _ = shard()
    with pytest.raises(EntryInvalid):
        read_entry(json.dumps(json.loads(record.entry) | change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "x" * (1 << 20)])
def test_what_is_not_even_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(EntryInvalid):
        read_entry(text)
