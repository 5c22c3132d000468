"""An agent process: the real machine of `worker/agent`, in a shell that carries its instructions out in virtual time.

The shell is the counterpart of `driver.py`, `client.py` and `supervisor.py`: it dials, ticks, starts and kills
trainers, and hands events to the machine one at a time. It decides nothing. Next: `nodes.py`, which starts agents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from signal import SIGKILL
from typing import assert_never

from protos import worker_pb2 as pb
from simulation.copies import Donor
from simulation.ground import Ground
from simulation.groups import Groups
from simulation.memory import FindHost, Memory
from simulation.process import Place
from simulation.streams import End, Stream
from simulation.trainer import Trainer
from worker.agent import wire
from worker.agent.client import ANSWER_SECONDS, CONNECT_SECONDS, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS
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
from worker.agent.messages import Report
from worker.agent.policy import OUTBOX_LIMIT, STEP_RECORDS_LIMIT
from worker.hostmemory.identity import ShardRecord
from worker.hostmemory.stock import COPIES_LIMIT

TICK_SECONDS = 0.25
REAP_SECONDS = (0.003, 0.04)
"""From the end of a process to its agent's notice."""
DIAL_SECONDS = (0.002, 0.02)

EventMaker = Callable[[float], Event]
"""An event from the time at which the process gets to it."""


class AgentProcess:
    """One agent of one node, from its start to its end."""

    def __init__(
        self,
        ground: Ground,
        *,
        node: str,
        serial: int,
        groups: Groups,
        find: Callable[[str], Donor | None],
        find_host: FindHost,
        dial: Callable[[str], End | None],
    ) -> None:
        self.place = node
        self.incarnation = f"{node}-agent-{serial}"
        self.pid = 1000 + serial
        self.alive = True
        self.stopped = False
        self.slowness = 1.0
        """Of its machine, for trainers to come."""
        self.trainers: dict[str, Trainer] = {}
        self._ground = ground
        self._serial = serial
        self._groups = groups
        self._find = find
        self._find_host = find_host
        self.memory = Memory(ground, self, find_host)
        self.memory_address = f"{node}:memory-{serial}"
        self._dial = dial
        self.machine = Machine(
            node=node,
            incarnation=self.incarnation,
            labels={"host": node, "rack": ground.rack_of(node)},
            agent_pid=self.pid,
            workdir="/simulated",
            devices=None,
            at=ground.now,
            memory_address=self.memory_address,
        )
        self.stream: Stream | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._events: deque[Event] = deque()
        self._unheard: list[EventMaker] = []
        self._handling = False
        self._started = 0
        ground.scheduler.after(0.0, self._attempt)
        ground.scheduler.every(TICK_SECONDS, self._tick)

    @property
    def awake(self) -> bool:
        return self.alive and not self.stopped

    # ---- what is done to it ----

    def stop(self) -> None:
        """SIGSTOP of the agent alone."""
        self.stopped = True

    def wake(self) -> None:
        """SIGCONT: it gets to everything that has happened meanwhile, in order."""
        self.stopped = False
        unheard, self._unheard = self._unheard, []
        for make in unheard:
            self._feed(make)

    def ask_to_end(self, reason: str) -> None:
        """SIGTERM."""
        self._feed(lambda at: EndAsked(at=at, reason=reason, exit_code=143))

    def kill(self, *, silently: bool = False) -> None:
        """SIGKILL, or the end of its machine: trainers die with it."""
        if not self.alive:
            return
        self.alive = False
        for trainer in self.trainers.values():
            trainer.end(silently=silently)
        if self.stream is not None and not silently:
            self.stream.close(self, "connection reset by peer")

    def kill_trainer(self, trainer: Trainer) -> None:
        """SIGKILL from outside."""
        trainer.end()
        self._reap(trainer, signal=int(SIGKILL))

    @property
    def gave_up_a_device(self) -> bool:
        """A device has no process and will not get another one."""
        devices = self.machine.crew.devices.values() if self.machine.crew else ()
        return any(not each.running and each.restart_at is None for each in devices)

    def check_bounds(self) -> list[str]:
        """Law L9 for this process: what has outgrown its limit."""
        sizes = (
            ("outbox", len(self.machine.outgoing.outbox), OUTBOX_LIMIT),
            ("step ring", len(self.machine.ring), STEP_RECORDS_LIMIT),
            ("host memory", len(self.memory.shards), COPIES_LIMIT),
        )
        return [
            f"{self.place}: {name} holds {size} of {limit}" for name, size, limit in sizes if size > limit
        ]

    # ---- its memory: memory.py ----

    def copy_arrived(self, record: ShardRecord, source: str) -> None:
        """A buddy's shard is here."""
        self._feed(lambda at: CopyArrived(at=at, record=record, source=source))

    def copy_ended(self, record: ShardRecord, buddy: str, reason: str) -> None:
        """An own shard is at the buddy, or will not be."""
        self._feed(lambda at: CopyEnded(at=at, record=record, buddy=buddy, reason=reason))

    # ---- the stream: client.py ----

    def _attempt(self) -> None:
        if not self.alive or (self.stream is not None and not self.stream.over_for(self)):
            return
        if self.stopped:
            self._ground.scheduler.after(TICK_SECONDS, self._attempt)
            return
        controller = self._dial(self.place)
        if controller is None:
            self._again()
        elif not controller.awake:
            self._ground.scheduler.after(CONNECT_SECONDS, self._again)
        else:
            self._ground.scheduler.after(
                self._ground.between(*DIAL_SECONDS), lambda: self._connected(controller)
            )

    def _again(self) -> None:
        """Try again after a pause that doubles."""
        pause, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE_SECONDS)
        self._ground.scheduler.after(pause * self._ground.between(1.0, 1.25), self._attempt)

    def _connected(self, controller: End) -> None:
        if not self.alive or (self.stream is not None and not self.stream.over_for(self)):
            return
        if not controller.awake or self.stopped:
            self._again()
            return
        stream = self.stream = Stream(self._ground, node=self.place, agent=self, controller=controller)
        self._feed(lambda at: ControllerConnected(at=at))
        self._ground.scheduler.after(ANSWER_SECONDS, lambda: self._give_up(stream))

    def _give_up(self, stream: Stream) -> None:
        """No answer to the registration in time."""
        if self.alive and not stream.welcomed and not stream.over_for(self):
            stream.close(self, "no answer to the registration")
            self.lost(stream, f"no answer to the registration within {ANSWER_SECONDS:g} s")

    def take(self, stream: Stream, message: pb.AgentMessage | pb.ControllerMessage) -> bool:
        """See `End.take`."""
        assert isinstance(message, pb.ControllerMessage)
        if stream is self.stream:
            self._pause = FIRST_PAUSE_SECONDS
            heard = wire.incoming(message)
            self._feed(lambda at: ControllerSpoke(at=at, message=heard))
        return True

    def lost(self, stream: Stream, reason: str) -> None:
        """See `End.lost`."""
        if self.alive and stream is self.stream:
            self._feed(lambda at: ControllerLost(at=at, reason=reason))
            self._again()

    # ---- the machine: driver.py ----

    def _feed(self, make: EventMaker) -> None:
        if not self.alive:
            return
        if self.stopped:
            self._unheard.append(make)
            return
        self._events.append(make(self._ground.now))
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                for instruction in self.machine.handle(self._events.popleft()):
                    self._carry_out(instruction)
        finally:
            self._handling = False

    def _tick(self) -> bool:
        if self.awake:
            for trainer in self.trainers.values():
                if trainer.awake:
                    self._heard(trainer, trainer.beat())
            self._feed(lambda at: ClockTicked(at=at))
        return self.alive

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case SendToController():
                if self.stream is not None and not self.stream.over_for(self):
                    self.stream.up.send(wire.outgoing(instruction.message))
            case SendToTrainer():
                trainer = self._running(instruction.trainer, instruction.start)
                if trainer is not None:
                    trainer.receive(instruction.order)
            case StartTrainer():
                self._start(instruction)
            case KillTrainer():
                trainer = self._running(instruction.trainer, instruction.start)
                if trainer is not None:
                    self._ground.timeline.say(
                        self.place, f"kills {instruction.trainer}: {instruction.reason}"
                    )
                    self.kill_trainer(trainer)
            case AdmitCallers() | ListShard() | SendShard() | ForgetShards():
                self.memory.carry_out(instruction)
            case Note():
                self._ground.timeline.say(self.place, instruction.text)
            case EndAgent():
                self._ground.timeline.say(self.place, f"the agent ends: {instruction.reason}")
                self._ground.scheduler.after(0.0, self.kill)
            case _:
                assert_never(instruction)

    # ---- trainers: supervisor.py ----

    def _running(self, name: str, start: int) -> Trainer | None:
        trainer = self.trainers.get(name)
        return trainer if trainer is not None and trainer.start == start and trainer.alive else None

    def _start(self, instruction: StartTrainer) -> None:
        self._started += 1
        place = Place(
            trainer=instruction.trainer,
            start=instruction.start,
            node=self.place,
            serial=1000 * self._serial + self._started,
        )
        trainer = Trainer(
            self._ground,
            place,
            groups=self._groups,
            find=self._find,
            memory=(self.memory.slots(instruction.trainer), self._find_host),
            say=lambda report: self._heard(trainer, report),
        )
        trainer.slowness = self.slowness
        self.trainers[instruction.trainer] = trainer
        self._feed(
            lambda at: TrainerStarted(
                at=at, trainer=trainer.name, start=trainer.start, pid=10_000 + place.serial
            )
        )

    def _heard(self, trainer: Trainer, report: Report) -> None:
        if self.trainers.get(trainer.name) is trainer:
            self._feed(
                lambda at: TrainerReported(at=at, trainer=trainer.name, start=trainer.start, report=report)
            )

    def _reap(self, trainer: Trainer, signal: int) -> None:
        self._ground.scheduler.after(
            self._ground.between(*REAP_SECONDS),
            lambda: self._feed(
                lambda at: TrainerEnded(
                    at=at, trainer=trainer.name, start=trainer.start, exit_code=None, signal=signal
                )
            ),
        )
