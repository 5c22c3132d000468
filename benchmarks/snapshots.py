"""What a snapshot in host memory costs a node, part by part, in processor time.

For one member's share of so many megabytes: `copy`, for which training stands still (the comparison of replicas comes
on top, as before a checkpoint: docs/BENCHMARKS.md); `first`, the same with memory that was never touched; `hash`,
behind training; `send` and `take`, the buddy's copy over loopback on both sides, hashes included; `read`, a restore of
the share from its buddy, verified. Processor time of the threads that do it, so that a busy machine changes little.

    python -m benchmarks.snapshots --megabytes 16,128 --rounds 7
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from worker.checkpointing.manifest import Piece, Shard, StoredPiece, shard_digest, shard_to_mapping
from worker.checkpointing.names import DENSE, KINDS, shard_file
from worker.checkpointing.parts import PartTensors, all_finite, byte_view
from worker.checkpointing.snapshot import copy_pieces
from worker.checkpointing.tensorfile import body_bytes, encode_header
from worker.hostmemory.client import Caller, Copy, RemoteShard, offer
from worker.hostmemory.entry import fault_of, read_entry
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId
from worker.hostmemory.server import MemoryServer, Secret
from worker.hostmemory.slots import MappedSlot, make_slot, read_at
from worker.hostmemory.stock import Stock
from worker.transfer.pace import Pace

SECRET = Secret(job="benchmark", token="benchmark")
CHUNK_BYTES = 4 << 20
MEGABYTE = 1 << 20

T = TypeVar("T")


@dataclass(slots=True)
class Bench:
    """One share, one slot, one buddy."""

    megabytes: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def run(self, rounds: int) -> dict[str, float]:
        """Medians in milliseconds of processor time."""
        length = self.megabytes * MEGABYTE // (len(KINDS) * 4)
        piece = Piece(part=DENSE, start=0, stop=length)
        state = PartTensors.of([torch.randn(length) for _ in KINDS])
        header, size = encode_header([piece], "float32"), body_bytes([piece], "float32")
        slot = make_slot("benchmark")
        mapped = MappedSlot(slot)
        for number in range(rounds + 1):
            name = "copy" if number else "first"
            body = self._measured(name, lambda: _copy(mapped, header, size, piece, state))
            digest = self._measured("hash", partial(_hashed, body))
            stored = StoredPiece(piece=piece, sha256=digest)
            shard = Shard(
                file=shard_file(0),
                pieces=(stored,),
                bytes=len(header) + size,
                sha256=shard_digest(header, [stored]),
            )
            record = ShardRecord(
                id=ShardId(snapshot=SnapshotId(step=number, generation=1), rank=0),
                shards=1,
                bytes=shard.bytes,
                entry=json.dumps(shard_to_mapping(shard)),
            )
            self._exchange(record, slot)
        os.close(slot)
        return {name: 1000 * statistics.median(found) for name, found in self.times.items()}

    def _exchange(self, record: ShardRecord, slot: int) -> None:
        """To a buddy and back."""
        server = MemoryServer(host="127.0.0.1", stock=Stock(), arrived=lambda kept, source: None)
        server.secret = SECRET
        caller = Caller(name="benchmark", secret=SECRET)
        copy = Copy(record=record, source="node-1/0", read=lambda at, length: read_at(slot, at, length))
        before, own = time.process_time(), time.thread_time()
        offer(caller, server.address, copy, Pace(None), threading.Event())
        sent = time.thread_time() - own
        self.times.setdefault("send", []).append(sent)
        self.times.setdefault("take", []).append(time.process_time() - before - sent)
        before = time.process_time()
        with RemoteShard(caller, server.address, record.id, lambda: False) as remote:
            content = memoryview(bytearray(remote.bytes))
            remote.read_into(0, content)
            assert not fault_of(read_entry(record.entry), lambda at, length: bytes(content[at : at + length]))
        self.times.setdefault("read", []).append(time.process_time() - before)
        server.close(5.0)

    def _measured(self, name: str, what: Callable[[], T]) -> T:
        began = time.thread_time()
        result = what()
        self.times.setdefault(name, []).append(time.thread_time() - began)
        return result


def _copy(mapped: MappedSlot, header: bytes, size: int, piece: Piece, state: PartTensors) -> torch.Tensor:
    view = mapped.view(len(header) + size)
    view[: len(header)] = header
    body = torch.frombuffer(view[len(header) : len(header) + size], dtype=torch.float32, count=size // 4)
    copy_pieces(body, [piece], {piece.part: state})
    return body


def _hashed(body: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in body.split(CHUNK_BYTES // body.element_size()):
        digest.update(byte_view(chunk))
        assert all_finite(chunk)
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", default="16,128", help="shares of one member, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for megabytes in map(int, given.megabytes.split(",")):
        found = Bench(megabytes).run(given.rounds)
        print(f"{megabytes} MB: " + ", ".join(f"{name} {value:.1f} ms" for name, value in found.items()))


if __name__ == "__main__":
    main()
