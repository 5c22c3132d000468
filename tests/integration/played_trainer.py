"""A trainer without torch, for tests of the agent: speaks the channel's protocol and does nothing else.

Run by the real supervisor with the real arguments. Its part is named on the command line; what it was ordered and
when it began is appended to `DIR/played/TRAINER.START.jsonl`, so that a test can read what arrived.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path

from worker.agent.channel import ChannelClosed, TrainerChannel
from worker.agent.messages import (
    AcquireParts,
    Beat,
    CheckpointSealed,
    GenerationJoined,
    Order,
    PartsAcquired,
    Ready,
    SealCheckpoint,
    ShardWritten,
    StepCommitted,
    StopTraining,
    TakeCheckpoint,
    TakeSeat,
    TrainingEnded,
)
from worker.agent.parentage import die_with_parent
from worker.settings import TrainerSettings, parse

BEAT_SECONDS = 0.02
STEPS_PER_SEAT = 3


class PlayedTrainer:
    """Ready at once; commits a few steps for every seat that it is given; does what it is told."""

    def __init__(self, channel: TrainerChannel, settings: TrainerSettings) -> None:
        self._channel = channel
        self._settings = settings
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._generation = 0
        self._step = 0
        self._rank = -1
        folder = settings.workdir / "played"
        folder.mkdir(exist_ok=True)
        self._diary = folder / f"{settings.trainer.replace('/', '.')}.{settings.start}.jsonl"

    def play(self, part: str) -> int:
        self._channel.listen(self._orders.put, lambda: self._orders.put(None))
        configure = self._orders.get()
        self._write(configure)
        if part != "mute":
            threading.Thread(target=self._beat, daemon=True).start()
        port = f"{self._settings.bind_host}:{os.getpid()}"
        self._channel.send(Ready(store_address=port, peer_address=port, device_name="played"))
        if part == "dies":
            return 7
        while (order := self._orders.get()) is not None:
            self._write(order)
            self._obey(order)
        return 0

    def _obey(self, order: Order) -> None:
        match order:
            case TakeSeat() if order.assignment.rank >= 0:
                self._generation, self._rank = order.assignment.number, order.assignment.rank
                self._train(order.assignment.restore_step)
            case AcquireParts():
                self._channel.send(PartsAcquired(acquisition=order.acquisition, version=self._step))
            case TakeCheckpoint():
                self._write_shard(order)
            case SealCheckpoint():
                self._seal(order)
            case StopTraining():
                self._channel.send(
                    TrainingEnded(generation=self._generation, step=self._step, finished=False)
                )
            case _:
                pass

    def _train(self, restored: int) -> None:
        self._step = max(self._step, restored)
        self._channel.send(
            GenerationJoined(
                generation=self._generation,
                committed=self._step,
                completed_held=False,
                redoes=False,
                copied_parts=0,
            )
        )
        for _ in range(STEPS_PER_SEAT):
            self._step += 1
            self._channel.send(
                StepCommitted(
                    step=self._step,
                    generation=self._generation,
                    loss=1.0 / self._step,
                    tokens=128,
                    time=1000.0 + self._step,
                    step_seconds=0.1,
                    sample_ids=(2 * self._step, 2 * self._step + 1),
                    expert_load=(64, 64),
                    layer_load=((32, 64), (32, 0)),
                    learning_rate=0.001,
                    gradient_norm=1.5,
                )
            )

    def _write_shard(self, order: TakeCheckpoint) -> None:
        self._channel.send(
            ShardWritten(
                request=order.request,
                generation=self._generation,
                step=self._step,
                name=f"step-{self._step:08}.g{self._generation:04}",
                rank=self._rank,
                shard="{}",
                bytes=1,
                stall_seconds=0.25,
            )
        )

    def _seal(self, order: SealCheckpoint) -> None:
        self._channel.send(
            CheckpointSealed(
                request=order.request, step=order.step, name=order.name, path=f"/{order.name}", bytes=1
            )
        )

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_SECONDS):
            try:
                self._channel.send(
                    Beat(
                        generation=self._generation,
                        step=self._step,
                        phase="ready" if self._rank < 0 else "forward",
                        operation=self._step,
                        waiting=False,
                    )
                )
            except ChannelClosed:
                return

    def _write(self, order: Order | None) -> None:
        with self._diary.open("a", encoding="utf-8") as diary:
            diary.write(json.dumps({"order": type(order).__name__, "pid": os.getpid()}) + "\n")


def main(arguments: list[str]) -> int:
    part, *rest = arguments
    settings = parse(["trainer", *rest])
    assert isinstance(settings, TrainerSettings)
    die_with_parent(settings.parent)
    if part == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return PlayedTrainer(TrainerChannel(socket.socket(fileno=settings.fd)), settings).play(part)


def command(part: str = "plays") -> tuple[str, ...]:
    """The start of the command line for a supervisor."""
    return (sys.executable, "-m", "tests.integration.played_trainer", part)


def ordered(workdir: Path, trainer: str, start: int) -> list[str]:
    """The orders that a process got, by class name."""
    diary = workdir / "played" / f"{trainer.replace('/', '.')}.{start}.jsonl"
    lines = diary.read_text(encoding="utf-8").splitlines() if diary.exists() else []
    return [json.loads(line)["order"] for line in lines]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
