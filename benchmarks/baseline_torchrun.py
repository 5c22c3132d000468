"""The restart baseline: the plain loop under torchrun, with a torch.distributed.checkpoint every few steps.

One rank; torchrun starts it, and starts all ranks again when one dies. It then reads the newest whole checkpoint and
trains the steps since then once more. Run by `recovery_torchrun.py`:

    torchrun ... -m benchmarks.baseline_torchrun --job JOB.json --workdir DIR --every 10
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from benchmarks.commit_log import append_commit
from benchmarks.plain_loop import Grid, PlainJob, PlainTrainer

COMMITS_FILE = "commits.jsonl"
CHECKPOINTS = "checkpoints"


def main() -> None:
    """Train until the job's last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps from checkpoint to checkpoint")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (given.workdir / f"worker-{rank}.pid").write_text(str(os.getpid()))
    dist.init_process_group("gloo")  # noqa: TID251 - the baseline is what registers groups globally
    job = PlainJob.of(json.loads(given.job.read_text()))
    world = dist.get_world_size()
    grid = Grid(rank=rank, world=world, expert_parallel=world // 2)
    trainer = PlainTrainer(job, grid, job.windows())
    checkpoints = given.workdir / CHECKPOINTS
    tensors = trainer.model.tensors(grid.index)
    begin = newest_step(checkpoints)
    if begin:
        dcp.load(tensors, checkpoint_id=folder_of(checkpoints, begin))
    for step in range(begin + 1, job.steps + 1):
        loss = trainer.run_step(step)
        if rank == 0:
            append_commit(
                given.workdir / COMMITS_FILE, step=step, generation=restarts, loss=loss, members=world
            )
        if step % given.every == 0:
            dcp.save(tensors, checkpoint_id=folder_of(checkpoints, step))
    dist.destroy_process_group()


def folder_of(checkpoints: Path, step: int) -> Path:
    """Of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def newest_step(checkpoints: Path) -> int:
    """Of the newest checkpoint that is whole: its metadata is written last. 0 when there is none."""
    found = (path.parent.name for path in checkpoints.glob("step-*/.metadata"))
    return max((int(name.rpartition("-")[2]) for name in found), default=0)


if __name__ == "__main__":
    main()
