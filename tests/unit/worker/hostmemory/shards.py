"""Shards for the tests of this folder: bytes with an entry that states their hashes, as a trainer makes them."""

from __future__ import annotations

import hashlib
import json

from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId

SNAPSHOT = SnapshotId(step=40, generation=3)


def shard(
    rank: int = 0, *, snapshot: SnapshotId = SNAPSHOT, lengths: tuple[int, ...] = (5, 9)
) -> tuple[ShardRecord, bytes]:
    """A record and its bytes: pieces of so many elements of 4 bytes, three tensors each."""
    text = json.dumps({"rank": rank}).encode().ljust(32)
    header = len(text).to_bytes(8, "little") + text
    bodies = [
        bytes((rank + number + index) % 251 for index in range(12 * length))
        for number, length in enumerate(lengths)
    ]
    whole = hashlib.sha256(header)
    pieces: list[dict[str, object]] = []
    for number, (length, body) in enumerate(zip(lengths, bodies, strict=True)):
        digest = hashlib.sha256(body)
        whole.update(digest.digest())
        pieces.append(
            {"part": f"expert-{number:05d}", "start": 0, "stop": length, "sha256": digest.hexdigest()}
        )
    content = header + b"".join(bodies)
    entry = {
        "file": f"rank-{rank:05d}.safetensors",
        "pieces": pieces,
        "bytes": len(content),
        "sha256": whole.hexdigest(),
    }
    record = ShardRecord(
        id=ShardId(snapshot=snapshot, rank=rank), shards=4, bytes=len(content), entry=json.dumps(entry)
    )
    return record, content
