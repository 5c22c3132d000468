"""A process that saves checkpoints until it is killed or the disk is full; run by `test_writer_faults`.

Arguments: root, first step, last step, bytes per second of the writer (0: unlimited), limit on file sizes (0: none).
It prints one line for each step: "sealed STEP", or "failed STEP REASON | REMEDY".
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from tests.unit.worker.checkpointing.states import (
    LENGTHS,
    PLACEMENT,
    full_state,
    manifest_of,
    save_shard,
)
from worker.checkpointing.names import CheckpointId
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import CheckpointWriter, SaveRequest, ShardFailed, WriteLimits


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    first, last, pace, file_bytes = (int(argument) for argument in sys.argv[2:])
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    storage = FileStorage(root)
    writer = CheckpointWriter(
        storage=storage,
        buffer=SnapshotBuffer(),
        limits=WriteLimits(chunk_bytes=4096, bytes_per_second=pace or None),
    )
    (pieces,) = plan_shards(dict.fromkeys(PLACEMENT, (0,)), 1, LENGTHS)
    for step in range(first, last + 1):
        checkpoint = CheckpointId(step=step, generation=4)
        request = SaveRequest(checkpoint=checkpoint, rank=0, pieces=pieces)
        outcome = save_shard(writer, request, full_state(step))
        if isinstance(outcome, ShardFailed):
            print(f"failed {step} {outcome.error.reason} | {outcome.error.remedy}", flush=True)
        else:
            seal(storage, manifest_of(checkpoint, (outcome.shard,)))
            print(f"sealed {step}", flush=True)
    writer.close(20.0)


if __name__ == "__main__":
    main()
