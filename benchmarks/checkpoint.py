"""What a checkpoint costs training: ours against torch.distributed.checkpoint, on the same state, in the same run.

Each round lets every contender save once, one after the other, so that what the machine does besides falls on all of
them alike. While a save goes on, each rank runs small training steps, as it would. Measured: `blocked`, the time until
the call returns and the state may be written (worst rank); `durable`, the time until the checkpoint could be read after
a loss of power (worst rank); `processor`, the processor time that the save took from training, in all ranks and their
helper processes. Printed: medians over the rounds, and how many times ours each contender is.

    python benchmarks/checkpoint.py --megabytes 256 --ranks 1,4 --rounds 5

The contenders are given their best: one stager kept for the whole run where torch allows it (its buffers are then used
again), a process group of their own, and a first save that does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from worker.checkpointing.manifest import Manifest, PartEntry, shard_from_mapping, shard_to_mapping
from worker.checkpointing.names import DENSE, KINDS, CheckpointId, expert_index, expert_part, tensor_name
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import (
    Accepted,
    CheckpointWriter,
    Outcome,
    SaveRequest,
    ShardSaved,
    WriteLimits,
)

OURS = "understudy"
WAIT_SECONDS = 600.0
WAIT = timedelta(seconds=WAIT_SECONDS)
DENSE_SHARE = 0.25
# Before 2.13 a save closes the stager that it was given, which cannot be used again.
KEEPS_STAGER = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One rank's part in the run."""

    rank: int
    world: int
    port: int
    root: Path
    megabytes: int
    experts: int
    rounds: int
    results: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One save, in seconds: `blocked` and `durable` of the worst rank, `processor` of all together."""

    contender: str
    blocked: float
    durable: float
    processor: float


class Contender(Protocol):
    """Something that saves the state. `begin` returns when the state may be written again."""

    name: str

    def begin(self, folder: Path, step: int) -> None:
        """Starts a save."""

    def durable_at(self) -> float | None:
        """When this rank knew that its save was durable (time.monotonic), or None if it is not yet."""

    def close(self) -> None:
        """Ends what runs in the background."""


class Job:
    """The state that all contenders save, and the steps that training goes on with."""

    def __init__(self, setup: Setup) -> None:
        world = setup.world
        self.placement = {e: tuple(dict.fromkeys((e % world, (e + 1) % world))) for e in range(setup.experts)}
        elements = setup.megabytes * (1 << 20) // (4 * len(KINDS))
        dense = int(elements * DENSE_SHARE)
        expert = (elements - dense) // setup.experts
        self.lengths = {DENSE: dense} | {expert_part(e): expert for e in self.placement}
        self.states = {
            part: PartTensors(weights=torch.randn(n), m=torch.randn(n), v=torch.rand(n))
            for part, n in self.lengths.items()
            if part == DENSE or setup.rank in self.placement[cast(int, expert_index(part))]
        }
        self._matrix = torch.randn(384, 384) / 20.0
        self._activation = torch.randn(384, 384)

    def step(self) -> None:
        """A little training: some milliseconds of matrix products."""
        for _ in range(8):
            self._activation = torch.tanh(self._activation @ self._matrix)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state as torch.distributed.checkpoint wants it."""
        return {
            tensor_name(part, kind): tensor
            for part, state in self.states.items()
            for kind, tensor in zip(KINDS, state.in_order(), strict=True)
        }


class Ours:
    """The checkpoint writer of this repository; rank 0 seals when all shards are there."""

    name = OURS

    def __init__(self, setup: Setup, job: Job, store: dist.Store) -> None:
        self._setup, self._job, self._store = setup, job, store
        self._pieces = plan_shards(job.placement, setup.world, job.lengths)[setup.rank]
        self._buffer = SnapshotBuffer()
        self._buffer.reserve(3 * sum(piece.length for piece in self._pieces), torch.float32)
        self._writer: CheckpointWriter | None = None
        self._folder = setup.root
        self._done_at: float | None = None

    def begin(self, folder: Path, step: int) -> None:
        self._done_at = None
        if self._folder != folder or self._writer is None:
            self._folder = folder
            self._writer = CheckpointWriter(
                storage=FileStorage(folder), buffer=self._buffer, limits=WriteLimits()
            )
        request = SaveRequest(
            checkpoint=CheckpointId(step=step, generation=1), rank=self._setup.rank, pieces=self._pieces
        )
        answer = self._writer.save(request, self._job.states, self._written)
        assert isinstance(answer, Accepted), answer

    def _written(self, outcome: Outcome) -> None:
        assert isinstance(outcome, ShardSaved), outcome
        step = outcome.request.checkpoint.step
        self._store.set(f"shard/{step}/{self._setup.rank}", json.dumps(shard_to_mapping(outcome.shard)))
        if self._setup.rank == 0:
            self._seal(outcome.request.checkpoint)
        self._done_at = time.monotonic()

    def _seal(self, checkpoint: CheckpointId) -> None:
        keys = [f"shard/{checkpoint.step}/{rank}" for rank in range(self._setup.world)]
        self._store.wait(keys, WAIT)
        manifest = Manifest(
            job="benchmark",
            step=checkpoint.step,
            generation=checkpoint.generation,
            created=0.0,
            config={},
            data_fingerprint="none",
            layout="flat",
            precision="float32",
            parts={
                part: PartEntry(version=checkpoint.step, length=n) for part, n in self._job.lengths.items()
            },
            shards=tuple(shard_from_mapping(json.loads(self._store.get(key))) for key in keys),
        )
        seal(FileStorage(self._folder), manifest)

    def durable_at(self) -> float | None:
        return self._done_at

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close(WAIT_SECONDS)


class TorchSave:
    """torch.distributed.checkpoint.save: training stands still."""

    name = "dcp.save"

    def __init__(self, job: Job, group: dist.ProcessGroup) -> None:
        self._job, self._group = job, group
        self._done_at: float | None = None

    def begin(self, folder: Path, step: int) -> None:
        self._done_at = None
        writer = dcp.FileSystemWriter(folder / f"step-{step}")
        dcp.save(self._job.state_dict(), storage_writer=writer, process_group=self._group)
        self._done_at = time.monotonic()

    def durable_at(self) -> float | None:
        return self._done_at

    def close(self) -> None:
        pass


class TorchAsyncSave:
    """torch.distributed.checkpoint.async_save with a thread or a process; buffers are kept between saves."""

    def __init__(self, job: Job, group: dist.ProcessGroup, kind: AsyncCheckpointerType) -> None:
        self.name = f"dcp.async_save ({kind.value})"
        self._job, self._group, self._kind = job, group, kind
        self._stager = self._new_stager()
        self._done_at: float | None = None

    def _new_stager(self) -> DefaultStager:
        shared = self._kind is AsyncCheckpointerType.PROCESS
        return DefaultStager(StagingOptions(False, shared, False, False))

    def begin(self, folder: Path, step: int) -> None:
        self._done_at = None
        if not KEEPS_STAGER:
            self._stager = self._new_stager()
        answer = dcp.async_save(
            self._job.state_dict(),
            storage_writer=dcp.FileSystemWriter(folder / f"step-{step}"),
            process_group=self._group,
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )
        if isinstance(answer, AsyncSaveResponse):
            answer.staging_completion.result()  # before this the optimizer may not write
            upload = cast("Future[object]", answer.upload_completion)
        else:
            upload = cast("Future[object]", answer)
        upload.add_done_callback(self._finished)

    def _finished(self, upload: Future[object]) -> None:
        upload.result()
        self._done_at = time.monotonic()

    def durable_at(self) -> float | None:
        return self._done_at

    def close(self) -> None:
        self._stager.close()


class Rank:
    """One process of the run."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        torch.set_num_threads(1)
        torch.manual_seed(setup.rank)
        self._store = self._connect(setup.rank == 0)
        dist.init_process_group(  # noqa: TID251 (what the contenders need; nothing of ours uses it)
            "gloo", store=dist.PrefixStore("default", self._store), rank=setup.rank, world_size=setup.world
        )
        self._job = Job(setup)

    def _connect(self, serves: bool) -> dist.TCPStore:
        setup = self._setup
        return dist.TCPStore("127.0.0.1", setup.port, is_master=serves, timeout=WAIT, wait_for_workers=False)

    def run(self) -> list[Sample]:
        """All rounds; the same samples on every rank."""
        own_store = self._connect(
            False
        )  # a waiting client answers nobody else, so the writer's thread has its own
        contenders: list[Contender] = [
            Ours(self._setup, self._job, dist.PrefixStore("ours", own_store)),
            TorchSave(self._job, self._new_group()),
            TorchAsyncSave(self._job, self._new_group(), AsyncCheckpointerType.THREAD),
            TorchAsyncSave(self._job, self._new_group(), AsyncCheckpointerType.PROCESS),
        ]
        samples: list[Sample] = []
        for number in range(self._setup.rounds + 1):
            for contender in contenders:
                sample = self._measure(contender, number)
                if number > 0:  # the first round only warms up
                    samples.append(sample)
        for contender in contenders:
            contender.close()
        self._barrier()
        dist.destroy_process_group()
        return samples

    def _new_group(self) -> dist.ProcessGroup:
        return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def _measure(self, contender: Contender, number: int) -> Sample:
        folder = self._setup.root / contender.name.partition(" ")[0]
        if self._setup.rank == 0:
            os.sync()
        self._barrier()
        processor = processor_seconds()
        training = 0.0
        begun = time.monotonic()
        contender.begin(folder, number)
        blocked = time.monotonic() - begun
        while (durable_at := contender.durable_at()) is None:
            assert time.monotonic() - begun < WAIT_SECONDS, f"{contender.name} did not finish"
            step_begun = time.thread_time()
            self._job.step()
            training += time.thread_time() - step_begun
        worst = torch.tensor([blocked, durable_at - begun])
        total = torch.tensor([processor_seconds() - processor - training])
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        dist.all_reduce(total)
        if self._setup.rank == 0:
            shutil.rmtree(folder)
        self._barrier()
        return Sample(
            contender=contender.name,
            blocked=float(worst[0]),
            durable=float(worst[1]),
            processor=float(total[0]),
        )

    def _barrier(self) -> None:
        dist.barrier()


def processor_seconds() -> float:
    """Processor time of this process and of its children, so far."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def run_world(setup_of: Callable[[int], Setup]) -> list[Sample]:
    """Starts the ranks as processes of this file and reads what rank 0 wrote."""
    first = setup_of(0)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--as-rank", json.dumps(asdict(setup_of(rank)), default=str)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(first.world)
    ]
    try:
        for process in processes:
            if process.wait(WAIT_SECONDS):
                raise SystemExit(f"a rank ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [Sample(**entry) for entry in json.loads(first.results.read_text())]


def run_rank(text: str) -> None:
    """The program of one rank."""
    fields = json.loads(text)
    setup = Setup(**(fields | {"root": Path(fields["root"]), "results": Path(fields["results"])}))
    samples = Rank(setup).run()
    if setup.rank == 0:
        setup.results.write_text(json.dumps([asdict(sample) for sample in samples]))


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def summarise(world: int, samples: Sequence[Sample]) -> list[dict[str, object]]:
    """Medians by contender, and each as a multiple of ours."""
    rows: list[dict[str, object]] = []
    names = list(dict.fromkeys(sample.contender for sample in samples))
    measures = ("blocked", "durable", "processor")
    medians = {
        name: {
            measure: statistics.median(getattr(s, measure) for s in samples if s.contender == name)
            for measure in measures
        }
        for name in names
    }
    for name in names:
        row: dict[str, object] = {"ranks": world, "contender": name}
        for measure in measures:
            row[f"{measure}_seconds"] = round(medians[name][measure], 4)
            row[f"{measure}_ratio"] = round(medians[name][measure] / max(medians[OURS][measure], 1e-9), 2)
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, object]]) -> None:
    """The table for people."""
    print(
        f"{'ranks':>5}  {'contender':<26}{'blocked s':>11}{'x':>7}{'durable s':>11}{'x':>7}{'cpu s':>11}{'x':>7}"
    )
    for row in rows:
        cells = "".join(
            f"{row[f'{measure}_seconds']:>11.3f}{row[f'{measure}_ratio']:>7.1f}"
            for measure in ("blocked", "durable", "processor")
        )
        print(f"{row['ranks']:>5}  {row['contender']:<26}{cells}")


def main() -> None:
    """Reads the options and runs each number of ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, default=256, help="distinct state in all (replicas not counted)"
    )
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--ranks", default="1,4", help="numbers of processes, by comma")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to save; default: the system's temporary one"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    parser.add_argument("--as-rank", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank is not None:
        run_rank(options.as_rank)
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-benchmark-") as folder:
        for world in (int(ranks) for ranks in options.ranks.split(",")):
            port = free_port()

            def setup_of(rank: int, world: int = world, port: int = port) -> Setup:
                return Setup(
                    rank=rank,
                    world=world,
                    port=port,
                    root=Path(folder),
                    megabytes=options.megabytes,
                    experts=options.experts,
                    rounds=options.rounds,
                    results=Path(folder) / f"results-{world}.json",
                )

            rows += summarise(world, run_world(setup_of))
    print(
        f"{options.megabytes} MB of state, torch {torch.__version__}, {os.cpu_count()} cores, {options.rounds} rounds"
    )
    show(rows)
    report = {
        "megabytes": options.megabytes,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "rows": rows,
    }
    print(json.dumps(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
