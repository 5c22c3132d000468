"""A machine in a test: short words for what happens to it, and a referee that watches everything it gives out.

The referee's rules hold in every story, whatever it is about; the fixture `story` also checks them at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from worker.agent import messages as trainer_messages
from worker.agent import policy
from worker.agent.controller_messages import (
    AgentMessage,
    Assign,
    ControllerMessage,
    Fence,
    Generation,
    Registration,
    TrainerSaid,
    Welcome,
)
from worker.agent.device import Killed
from worker.agent.events import (
    ClockTicked,
    ControllerConnected,
    ControllerLost,
    ControllerSpoke,
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
from worker.agent.lifecycle import Link, State
from worker.agent.machine import Machine

NODE = "node-1"
FIRST = "node-1/0"
COPY_TOKEN = "s3cret"
CONFIG: dict[str, Any] = {
    "name": "story",
    "cluster": {"devices_per_node": 1, "trainer_restarts": 3},
    "timeouts": {
        "heartbeat_seconds": 0.2,
        "hang_seconds": 3.0,
        "start_seconds": 180.0,
        "orphan_seconds": 120.0,
    },
}

Kind = TypeVar("Kind")


class Referee:
    """What no machine may ever give out, seen from outside."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._running: dict[str, int] = {}
        self._last_start: dict[str, int] = {}
        self._killed: set[tuple[str, int]] = set()
        self._orders: dict[tuple[str, int], list[trainer_messages.Order]] = {}
        self._over = False

    def process_ended(self, trainer: str, start: int) -> None:
        if self._running.get(trainer) == start:
            del self._running[trainer]

    def watch(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            assert not self._over, f"after its end the agent still gives out {instruction}"
            match instruction:
                case StartTrainer(trainer=trainer, start=start):
                    assert trainer not in self._running, f"{trainer} has two processes"
                    assert start == self._last_start.get(trainer, 0) + 1, "starts count by one"
                    self._running[trainer] = self._last_start[trainer] = start
                case KillTrainer(trainer=trainer, start=start):
                    assert self._running.get(trainer) == start, f"{trainer} start {start} does not run"
                    assert (trainer, start) not in self._killed, "killed twice"
                    self._killed.add((trainer, start))
                case SendToTrainer():
                    self._order(instruction)
                case SendToController(message=message):
                    self._message(message)
                case EndAgent():
                    self._over = True
                case Note() | AdmitCallers() | ListShard() | SendShard() | ForgetShards():
                    pass
        self.check_state()

    def _order(self, instruction: SendToTrainer) -> None:
        process = (instruction.trainer, instruction.start)
        assert self._running.get(instruction.trainer) == instruction.start, f"{process} does not run"
        assert process not in self._killed, f"{process} is being killed"
        before = self._orders.setdefault(process, [])
        order = instruction.order
        assert isinstance(order, trainer_messages.Configure) == (not before), "the job comes first, and once"
        if isinstance(order, trainer_messages.TakeSeat):
            told = [seat.assignment.number for seat in before if isinstance(seat, trainer_messages.TakeSeat)]
            assert all(order.assignment.number > number for number in told), "generations only grow"
        before.append(order)

    def _message(self, message: AgentMessage) -> None:
        link = self._machine.outgoing.link
        if isinstance(message, Registration):
            assert link is Link.REGISTERING
        else:
            assert link is Link.REGISTERED, f"{type(message).__name__} before the welcome"

    def check_state(self) -> None:
        """What holds between two events."""
        machine = self._machine
        assert len(machine.ring) <= policy.STEP_RECORDS_LIMIT
        assert len(machine.outgoing.outbox) <= policy.OUTBOX_LIMIT
        assert machine.floor <= machine.newest
        assert machine.assignment is None or machine.assignment.number <= machine.newest
        devices = machine.crew.devices.values() if machine.crew else ()
        assert (machine.crew is None) == (machine.state is State.JOINING) or machine.state is State.ENDING
        if machine.state is State.ENDING:
            return
        seated = [d for d in devices if d.running and d.seat and d.killed is not Killed.FENCED]
        leaving = [d for d in devices if d.running and d.killed is Killed.FENCED]
        assert (machine.state is State.SEATED) == bool(seated)
        assert machine.state is not State.FENCED or leaving
        for device in devices:
            assert {device.trainer: device.start}.items() <= self._running.items() or not device.running
            assert device.running or not device.seat
            assert device.told <= machine.newest and device.seat <= device.told


class Story:
    """One machine, a clock that the story moves, and everything that was given out."""

    def __init__(self, *, devices: int | None = None) -> None:
        self.at = 1000.0
        self.machine = Machine(
            node=NODE,
            incarnation="i-1",
            labels={"rack": "r1"},
            agent_pid=77,
            workdir="/work",
            devices=devices,
            at=self.at,
        )
        self.referee = Referee(self.machine)
        self.config = json.loads(json.dumps(CONFIG))
        self.out: list[Instruction] = []

    # ---- what happens ----

    def happens(self, event: Event) -> list[Instruction]:
        """Hand in an event; gives (and remembers) what came of it."""
        if isinstance(event, TrainerEnded):
            self.referee.process_ended(event.trainer, event.start)
        self.out = self.machine.handle(event)
        self.referee.watch(self.out)
        return self.out

    def connects(self) -> list[Instruction]:
        return self.happens(ControllerConnected(at=self.at))

    def loses_controller(self) -> list[Instruction]:
        return self.happens(ControllerLost(at=self.at, reason="connection reset"))

    def hears(self, message: ControllerMessage) -> list[Instruction]:
        return self.happens(ControllerSpoke(at=self.at, message=message))

    def is_welcomed(self, reported_through: int = 0) -> list[Instruction]:
        """Connect, register, be welcomed."""
        self.connects()
        config = json.dumps(self.config)
        return self.hears(
            Welcome(config=config, reported_through=reported_through, generation=0, copy_token=COPY_TOKEN)
        )

    def is_assigned(self, new: Generation, reported_through: int = 0) -> list[Instruction]:
        return self.hears(Assign(generation=new, reported_through=reported_through))

    def is_fenced(self, number: int) -> list[Instruction]:
        return self.hears(Fence(generation=number, reason="gone on without it"))

    def says(
        self, report: trainer_messages.Report, trainer: str = FIRST, start: int | None = None
    ) -> list[Instruction]:
        """A trainer reports; without a start it is the process that runs now."""
        start = self.start_of(trainer) if start is None else start
        return self.happens(TrainerReported(at=self.at, trainer=trainer, start=start, report=report))

    def becomes_ready(self, trainer: str = FIRST) -> list[Instruction]:
        start = self.start_of(trainer)
        self.happens(TrainerStarted(at=self.at, trainer=trainer, start=start, pid=100 + start))
        return self.says(ready(trainer, start), trainer)

    def beats(self, trainer: str = FIRST, **fields: Any) -> list[Instruction]:
        return self.says(beat(**fields), trainer)

    def exits(
        self,
        trainer: str = FIRST,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        start: int | None = None,
    ) -> list[Instruction]:
        start = self.start_of(trainer) if start is None else start
        return self.happens(
            TrainerEnded(at=self.at, trainer=trainer, start=start, exit_code=exit_code, signal=signal)
        )

    def passes(
        self,
        seconds: float,
        every_seconds: float = 0.05,
        beating: Sequence[str] = (),
        processors: float = 0.0,
    ) -> list[Instruction]:
        """Time goes by in ticks; gives all that came of them. Trainers in `beating` are alive meanwhile; those that
        say nothing use so many processors."""
        given: list[Instruction] = []
        for _ in range(round(seconds / every_seconds)):
            self.at += every_seconds
            for trainer in beating:
                given += self.beats(trainer)
            used = dict.fromkeys(self.machine.quiet(self.at), self.at * processors)
            given += self.happens(ClockTicked(at=self.at, processor_seconds=used))
        self.out = given
        return given

    def jumps(self, seconds: float) -> list[Instruction]:
        """One tick after a long time: the agent itself did not run."""
        self.at += seconds
        return self.happens(ClockTicked(at=self.at))

    def is_asked_to_end(self) -> list[Instruction]:
        return self.happens(EndAsked(at=self.at, reason="SIGTERM received", exit_code=143))

    # ---- whole openings ----

    def warms_up(self) -> None:
        """Welcomed, and the trainer is ready."""
        self.is_welcomed()
        self.becomes_ready()

    def trains(self, number: int = 1, rank: int = 0, *, world: int = 2) -> None:
        """Warmed up, seated with this rank, joined."""
        self.warms_up()
        self.is_assigned(generation(number, seats=seats(rank, world)))
        self.joins(number)

    def joins(self, number: int, trainer: str = FIRST) -> list[Instruction]:
        return self.says(joined(number), trainer)

    # ---- questions ----

    def state(self) -> State:
        return self.machine.state

    def start_of(self, trainer: str = FIRST) -> int:
        assert self.machine.crew is not None
        return self.machine.crew.devices[trainer].start

    def told_controller(self) -> list[AgentMessage]:
        """What the last event had the agent say to the controller, heartbeats left out."""
        said = [each.message for each in self.out if isinstance(each, SendToController)]
        return [message for message in said if type(message).__name__ != "Heartbeat"]

    def reports(self) -> list[object]:
        """What the last event passed on from trainers."""
        return [message.report for message in self.told_controller() if isinstance(message, TrainerSaid)]

    def steps(self) -> list[int]:
        """The committed steps that the last event told the controller."""
        return [said.step for said in self.reports() if isinstance(said, trainer_messages.StepCommitted)]

    def orders(self) -> list[trainer_messages.Order]:
        return [each.order for each in self.out if isinstance(each, SendToTrainer)]

    def given(self, kind: type[Kind]) -> list[Kind]:
        """Instructions of one kind that the last event brought."""
        return [each for each in self.out if isinstance(each, kind)]


# ---- values of which a story names only what matters ----


def ready(trainer: str = FIRST, start: int = 1) -> trainer_messages.Ready:
    address = f"{trainer}.{start}"
    return trainer_messages.Ready(store_address=address, peer_address=address, device_name="cpu")


def beat(generation: int = 0, step: int = 0, phase: str = "forward") -> trainer_messages.Beat:
    return trainer_messages.Beat(generation=generation, step=step, phase=phase, operation=0, waiting=False)


def joined(number: int) -> trainer_messages.GenerationJoined:
    return trainer_messages.GenerationJoined(
        generation=number, committed=0, completed_held=False, redoes=False, copied_parts=0
    )


def committed(step: int, generation: int = 1) -> trainer_messages.StepCommitted:
    return trainer_messages.StepCommitted(
        step=step,
        generation=generation,
        loss=1.0,
        tokens=128,
        time=1000.0 + step,
        step_seconds=0.1,
        sample_ids=(step,),
        expert_load=(64, 64),
        layer_load=((32, 64), (32, 0)),
        learning_rate=0.001,
        gradient_norm=1.5,
    )


def failed(generation: int) -> trainer_messages.CommunicationFailed:
    return trainer_messages.CommunicationFailed(generation=generation, step=3, detail="peer closed")


def ended(*, finished: bool) -> trainer_messages.TrainingEnded:
    return trainer_messages.TrainingEnded(generation=1, step=10, finished=finished)


def seats(rank: int, world: int = 2, *, start: int = 1) -> tuple[trainer_messages.Member, ...]:
    """Members where this node's first trainer has `rank` and strangers have the others."""
    members = []
    for number in range(world):
        trainer, begun = (FIRST, start) if number == rank else (f"node-{number + 5}/0", 1)
        address = f"{trainer}.{begun}"
        members.append(
            trainer_messages.Member(
                trainer=trainer, start=begun, rank=number, store_address=address, peer_address=address
            )
        )
    return tuple(members)


def generation(
    number: int,
    kind: str = "immediate",
    *,
    seats: tuple[trainer_messages.Member, ...] = (),
    restore_step: int = 0,
) -> Generation:
    return Generation(
        number=number,
        kind=kind,
        members=seats,
        placement=((0,), (0,)),
        deal=((0, 1),),
        restore_name="",
        restore_step=restore_step,
        reason="a test says so",
    )
