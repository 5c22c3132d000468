"""Trainer processes: started, listened to, watched and ended. Decides nothing; `machine.py` does.

A process is started from the thread of the event loop, which lives as long as the agent, because the kernel ties the
trainer's life to the thread that started it (`parentage.py`). It gets a process group of its own, one end of a socket
pair, and a log file. Its end is told by a pidfd, after everything it said has been handed in. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from worker.agent.channel import AgentSide, pair
from worker.agent.messages import Order, Report

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For a trainer whose environment does not say otherwise: many share a machine, and thread pools fight."""
TRAINER_COMMAND = (sys.executable, "-m", "worker", "trainer")


LOG_FOLDER = "logs"
DEAF_SECONDS = 5.0
"""A trainer whose end of the socket is closed must be gone this soon, or it is killed."""
REAP_SECONDS = 5.0
"""After SIGKILL: a process that the kernel cannot end by then is reported and left."""


class SpawnError(Exception):
    """A trainer could not be started; the message says why."""


class Listener(Protocol):
    """Who is told what the processes do; on the event loop."""

    def on_report(self, trainer: str, start: int, report: Report) -> None:
        """A process said something."""
        ...

    def on_exit(self, trainer: str, start: int, exit_code: int | None, signal_number: int | None) -> None:
        """A process is gone; one of the two numbers says how."""
        ...

    def on_note(self, text: str) -> None:
        """Something that people should find in the log."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    start: int
    process: subprocess.Popen[bytes]
    pidfd: int
    channel: AgentSide
    ended: asyncio.Event


class Supervisor:
    """At most one process per trainer name. Made and used on the event loop."""

    def __init__(
        self,
        *,
        listener: Listener,
        workdir: Path,
        host: str,
        command: Sequence[str] = TRAINER_COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._listener = listener
        self._workdir = workdir
        self._host = host
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _Running] = {}

    def start(self, trainer: str, start: int, device: int, slots: Sequence[int] = ()) -> int:
        """Start a process and give its pid; it shares the memory of `slots`. Raises SpawnError."""
        assert trainer not in self._running, f"{trainer} has a process already"
        ours, theirs = pair()
        try:
            with theirs, self._open_log(trainer) as log:
                process = subprocess.Popen(
                    [*self._command, *self._arguments(trainer, start, device, theirs), *_named(slots)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), *slots),
                    process_group=0,
                    env=ONE_THREAD | self._environment,
                )
        except OSError as error:
            ours.close()
            raise SpawnError(f"{trainer} cannot be started: {error}") from error
        self._watch(trainer, start, process, ours)
        return process.pid

    def _arguments(self, trainer: str, start: int, device: int, end: socket.socket) -> list[str]:
        given = {
            "--fd": end.fileno(),
            "--trainer": trainer,
            "--start": start,
            "--device": device,
            "--workdir": self._workdir,
            "--bind-host": self._host,
            "--parent": os.getpid(),
        }
        return [str(word) for item in given.items() for word in item]

    def _open_log(self, trainer: str) -> IO[bytes]:
        folder = self._workdir / LOG_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"{trainer.replace('/', '.')}.log").open("ab")

    def _watch(self, trainer: str, start: int, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        def heard(report: Report) -> None:
            self._listener.on_report(trainer, start, report)

        def deaf(reason: str) -> None:
            # As a rule it is about to exit, and its exit says more; one that goes on without a channel must not.
            self._loop.call_later(DEAF_SECONDS, self._end_deaf, trainer, start, reason)

        running = _Running(
            start=start,
            process=process,
            pidfd=os.pidfd_open(process.pid),
            channel=AgentSide(end, on_report=heard, on_end=deaf),
            ended=asyncio.Event(),
        )
        self._running[trainer] = running
        self._loop.add_reader(running.pidfd, self._exited, trainer, running)

    def _end_deaf(self, trainer: str, start: int, reason: str) -> None:
        running = self._running.get(trainer)
        if running is not None and running.start == start:
            self._listener.on_note(f"{trainer} start {start} is killed: {reason}")
            self.kill(trainer, start)

    def _exited(self, trainer: str, running: _Running) -> None:
        """The process is a zombie: hear its last words, end what it may have started, and reap it."""
        self._loop.remove_reader(running.pidfd)
        os.close(running.pidfd)
        running.channel.drain()
        running.channel.close()
        _signal_group(running, signal.SIGKILL)
        code = running.process.wait()
        del self._running[trainer]
        running.ended.set()
        exit_code, signal_number = (code, None) if code >= 0 else (None, -code)
        self._listener.on_exit(trainer, running.start, exit_code, signal_number)

    def send(self, trainer: str, start: int, order: Order) -> None:
        """Hand an order to a process; one that is gone gets nothing."""
        running = self._running.get(trainer)
        if running is not None and running.start == start:
            running.channel.send(order)

    def kill(self, trainer: str, start: int) -> None:
        """End a process and its group at once, also a stopped one; its end is told as any other."""
        running = self._running.get(trainer)
        if running is not None and running.start == start:
            _signal_group(running, signal.SIGKILL)

    async def end_all(self, grace_seconds: float) -> None:
        """Ask all to end, kill those that have not after `grace_seconds`, and see them gone."""
        for running in self._running.values():
            _signal_group(running, signal.SIGTERM)
            _signal_group(running, signal.SIGCONT)  # a stopped one cannot die of SIGTERM
        if await self._gone(grace_seconds):
            return
        for running in self._running.values():
            _signal_group(running, signal.SIGKILL)
        if not await self._gone(REAP_SECONDS):
            left = ", ".join(str(running.process.pid) for running in self._running.values())
            self._listener.on_note(f"processes that SIGKILL did not end within {REAP_SECONDS:g} s: {left}")

    async def _gone(self, timeout_seconds: float) -> bool:
        waits = [asyncio.create_task(running.ended.wait()) for running in self._running.values()]
        if not waits:
            return True
        _, pending = await asyncio.wait(waits, timeout=timeout_seconds)
        for task in pending:
            task.cancel()
        return not pending


def _named(slots: Sequence[int]) -> list[str]:
    return ["--slots", ",".join(map(str, slots))] if slots else []


def _signal_group(running: _Running, number: signal.Signals) -> None:
    """To the process and its children. Before it is reaped its number cannot belong to anybody else."""
    assert running.process.returncode is None
    try:
        os.killpg(running.process.pid, number)
    except ProcessLookupError:
        pass  # nobody of the group is left
