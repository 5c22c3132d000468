"""The shell around the machine: turns what happens into events and carries instructions out, at once and in order.

Everything runs on one event loop and in its callbacks, so that the machine handles one event at a time without a
lock. No decision is made here. Next: `machine.py` for the decisions, `supervisor.py` and `client.py` for the doing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from worker.agent.client import ControllerClient, TlsFiles
from worker.agent.controller_messages import ControllerMessage
from worker.agent.events import (
    ClockTicked,
    ControllerConnected,
    ControllerLost,
    ControllerSpoke,
    CopyArrived,
    CopyEnded,
    EndAsked,
    Event,
    TrainerEnded,
    TrainerReported,
    TrainerStarted,
)
from worker.agent.instructions import (
    AdmitCallers,
    EndAgent,
    ForgetShards,
    Instruction,
    KillTrainer,
    ListShard,
    Note,
    SendShard,
    SendToController,
    SendToTrainer,
    StartTrainer,
)
from worker.agent.machine import Machine
from worker.agent.memory import HostMemory
from worker.agent.messages import Report
from worker.agent.supervisor import TRAINER_COMMAND, SpawnError, Supervisor
from worker.agent.vitals import processor_seconds
from worker.hostmemory.identity import ShardRecord

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05
"""How late a heartbeat, a restart or the notice of a silent trainer may be."""
END_GRACE_SECONDS = 5.0
"""For trainers to end after SIGTERM, before SIGKILL."""
SPAWN_FAILED_EXIT_CODE = 127
"""As a shell has it; reported for a process that could not be started."""
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an agent works and whom it answers to."""

    controller: str
    token: str
    host: str
    """This node's address for the trainers of other nodes."""
    workdir: Path
    trainer_command: Sequence[str] = TRAINER_COMMAND
    tls: TlsFiles | None = None


class Driver:
    """One agent at work. Made on the event loop; `run` is its life."""

    def __init__(self, machine: Machine, place: Place, memory: HostMemory | None = None) -> None:
        """`memory` is what snapshots are held in; the driver closes it."""
        self._machine = machine
        self._memory = memory
        if memory is not None:
            memory.listen(self)
        self._loop = asyncio.get_running_loop()
        self._supervisor = Supervisor(
            listener=self, workdir=place.workdir, host=place.host, command=place.trainer_command
        )
        self._client = ControllerClient(
            address=place.controller, node=machine.node, token=place.token, listener=self, tls=place.tls
        )
        self._events: deque[Event] = deque()
        self._handling = False
        self._over = False
        """Nothing is decided any more: the trainers are being ended."""
        self._end: asyncio.Future[EndAgent] = self._loop.create_future()

    async def run(self) -> int:
        """Until the machine says that it is over; gives the exit code. No trainer is left behind."""
        for number in _END_SIGNALS:
            self._loop.add_signal_handler(number, self._signalled, number)
        streaming = asyncio.create_task(self._client.run())
        ticking = asyncio.create_task(self._tick())
        try:
            forever: list[asyncio.Future[Any]] = [streaming, ticking, self._end]
            await asyncio.wait(forever, return_when=asyncio.FIRST_COMPLETED)
            for task in (streaming, ticking):
                if task.done():
                    task.result()  # never returns by itself: this raises
            end = self._end.result()
            log.info("ending: %s", end.reason)
            return end.exit_code
        finally:
            self._over = True
            await self._supervisor.end_all(END_GRACE_SECONDS)
            for task in (ticking, streaming):
                task.cancel()
            await asyncio.gather(ticking, streaming, return_exceptions=True)
            for number in _END_SIGNALS:
                self._loop.remove_signal_handler(number)
            if self._memory is not None:
                self._memory.close()

    async def _tick(self) -> None:
        while True:
            at = self._now()
            looks = {trainer: processor_seconds(pid) for trainer, pid in self._machine.quiet(at).items()}
            used = {trainer: seconds for trainer, seconds in looks.items() if seconds is not None}
            self._feed(ClockTicked(at=at, processor_seconds=used))
            await asyncio.sleep(TICK_SECONDS)

    def _signalled(self, number: signal.Signals) -> None:
        self._feed(EndAsked(at=self._now(), reason=f"{number.name} received", exit_code=128 + number))

    # ---- what the client and the supervisor tell ----

    def on_connected(self) -> None:
        self._feed(ControllerConnected(at=self._now()))

    def on_message(self, message: ControllerMessage) -> None:
        self._feed(ControllerSpoke(at=self._now(), message=message))

    def on_lost(self, reason: str) -> None:
        self._feed(ControllerLost(at=self._now(), reason=reason))

    def on_report(self, trainer: str, start: int, report: Report) -> None:
        self._feed(TrainerReported(at=self._now(), trainer=trainer, start=start, report=report))

    def on_exit(self, trainer: str, start: int, exit_code: int | None, signal_number: int | None) -> None:
        how = f"exit code {exit_code}" if signal_number is None else f"signal {signal_number}"
        log.info("%s start %d ended: %s", trainer, start, how)
        self._feed(
            TrainerEnded(
                at=self._now(), trainer=trainer, start=start, exit_code=exit_code, signal=signal_number
            )
        )

    def on_copy_arrived(self, record: ShardRecord, source: str) -> None:
        self._feed(CopyArrived(at=self._now(), record=record, source=source))

    def on_copy_ended(self, record: ShardRecord, buddy: str, reason: str) -> None:
        self._feed(CopyEnded(at=self._now(), record=record, buddy=buddy, reason=reason))

    def on_note(self, text: str) -> None:
        log.warning("%s", text)

    # ---- the machine ----

    def _now(self) -> float:
        return self._loop.time()

    def _feed(self, event: Event) -> None:
        """Handle an event; what carrying out its instructions brings about is handled after it."""
        self._events.append(event)
        if self._handling or self._over:
            return
        self._handling = True
        try:
            while self._events:
                for instruction in self._machine.handle(self._events.popleft()):
                    self._carry_out(instruction)
        except BaseException as error:
            # A fault of the program in a callback: the loop would log it and go on with a machine in doubt.
            if not self._end.done():
                self._end.set_exception(error)
            raise
        finally:
            self._handling = False

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case SendToController():
                self._client.send(instruction.message)
            case SendToTrainer():
                self._supervisor.send(instruction.trainer, instruction.start, instruction.order)
            case StartTrainer():
                self._start(instruction)
            case KillTrainer():
                log.warning(
                    "killing %s start %d: %s", instruction.trainer, instruction.start, instruction.reason
                )
                self._supervisor.kill(instruction.trainer, instruction.start)
            case AdmitCallers() | ListShard() | SendShard() | ForgetShards():
                if self._memory is not None:
                    self._memory.carry_out(instruction)
            case Note():
                log.info("%s", instruction.text)
            case EndAgent():
                if not self._end.done():
                    self._end.set_result(instruction)
            case _:
                assert_never(instruction)

    def _start(self, instruction: StartTrainer) -> None:
        trainer, start = instruction.trainer, instruction.start
        try:
            slots = self._memory.slots(trainer) if self._memory is not None else ()
            pid = self._supervisor.start(trainer, start, instruction.device, slots)
        except SpawnError as error:
            log.error("%s", error)
            self.on_exit(trainer, start, SPAWN_FAILED_EXIT_CODE, None)
            return
        log.info("%s start %d has pid %d: %s", trainer, start, pid, instruction.reason)
        self._feed(TrainerStarted(at=self._now(), trainer=trainer, start=start, pid=pid))
