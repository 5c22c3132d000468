"""The other fault-tolerant baseline: the same model under torchft's Manager, each process a replica group of its own.

torchft replicates whole models, so every process holds all experts and computes its own tokens alone; gradients are
summed by the manager over whoever is there, and a step is committed when its vote passes. It is not among the
project's dependencies: `recovery_torchft.py` installs it elsewhere for the time of a measurement, and starts

    python -m benchmarks.baseline_torchft lighthouse ...
    python -m benchmarks.baseline_torchft replica ...
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.commit_log import append_commit
from benchmarks.plain_loop import PlainJob, PlainModel
from worker.parallel.dispatch import LocalDispatcher

COMMITS_FILE = "commits.jsonl"
LOOPBACK = "127.0.0.1"
MANAGER_SECONDS = 30.0


def main() -> None:
    """Be the lighthouse or a replica."""
    parser = argparse.ArgumentParser()
    programs = parser.add_subparsers(dest="program", required=True)
    lighthouse = programs.add_parser("lighthouse")
    lighthouse.add_argument("--heartbeat-ms", type=int, required=True)
    lighthouse.add_argument("--join-ms", type=int, required=True)
    replica = programs.add_parser("replica")
    replica.add_argument("--number", type=int, required=True)
    replica.add_argument("--replicas", type=int, required=True)
    replica.add_argument("--job", type=Path, required=True)
    replica.add_argument("--workdir", type=Path, required=True)
    replica.add_argument("--lighthouse", required=True)
    replica.add_argument("--collective-seconds", type=float, required=True)
    given = parser.parse_args()
    if given.program == "lighthouse":
        serve(given.heartbeat_ms, given.join_ms)
    else:
        Replica(given).run()


def serve(heartbeat_ms: int, join_ms: int) -> None:
    """A lighthouse until standard input ends; its address is the first line of output."""
    coordination: Any = importlib.import_module("torchft.coordination")  # ships no types, and may be absent
    server = coordination.LighthouseServer(
        bind="[::]:0",
        min_replicas=2,
        join_timeout_ms=join_ms,
        quorum_tick_ms=50,
        heartbeat_timeout_ms=heartbeat_ms,
    )
    print(server.address(), flush=True)
    sys.stdin.read()
    server.shutdown()


class Replica:
    """One replica group of one process."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self._given = given
        self._job = PlainJob.of(json.loads(given.job.read_text()))
        self._model = PlainModel(self._job, LocalDispatcher(self._job.model.experts))
        self._windows = self._job.windows()
        self._store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        torchft: Any = importlib.import_module("torchft")  # as above
        groups: Any = importlib.import_module("torchft.process_group")
        self._manager: Any = torchft.Manager(
            pg=groups.ProcessGroupGloo(timeout=timedelta(seconds=given.collective_seconds)),
            load_state_dict=self._load,
            state_dict=self._state,
            min_replica_size=2,
            timeout=timedelta(seconds=MANAGER_SECONDS),
            rank=0,
            world_size=1,
            store_addr=LOOPBACK,
            store_port=self._store.port,
            lighthouse_addr=given.lighthouse,
            replica_id=f"replica-{given.number}",
            hostname=LOOPBACK,
            init_sync=False,
        )

    def _state(self) -> dict[str, Tensor]:
        return self._model.tensors(0)

    def _load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._model.tensors(0).items():
            tensor.copy_(state[name])

    def run(self) -> None:
        """Steps until the last one, or until the launcher is gone; one that is not committed is tried again."""
        launcher = os.getppid()
        (self._given.workdir / f"replica-{self._given.number}.pid").write_text(str(os.getpid()))
        manager, job = self._manager, self._job
        while manager.current_step() < job.steps and os.getppid() == launcher:
            self._try_step(manager.current_step() + 1)
        manager.shutdown()

    def _try_step(self, step: int) -> None:
        manager, model, given = self._manager, self._model, self._given
        manager.start_quorum()
        model.zero()
        for microbatch in range(given.number, self._job.batch.microbatches, given.replicas):
            model.compute(step, microbatch, self._windows)
        for gradient in (model.dense_gradient_P, model.experts_gradient_EN):
            manager.allreduce(gradient, reduce_op=dist.ReduceOp.SUM).wait()
        if not manager.should_commit():
            return
        step = manager.current_step()  # a replica that has just been healed has skipped some
        norm = (model.dense_norm_squared() + model.experts_norm_squared()) ** 0.5
        model.update(step, norm)
        append_commit(
            given.workdir / COMMITS_FILE,
            step=step,
            generation=manager._quorum_id,
            members=manager.num_participants(),
        )


if __name__ == "__main__":
    main()
