"""Many agents in one process, each with its own TCP connection and stream to a real controller, in the real protos.

Started by `control_plane.py`, told what to do by lines of JSON on its input, answers with lines of JSON. An agent here
has no trainers; it plays them: ready at once, a step per second, joined as soon as it is told a generation. What all
agents of a process are told alike is read once for all of them, which spares this side work that real agents share
among ten thousand machines. One thread, one epoll. What must not live here: the controller, or what the figures mean.
Next: `http2_stream.py`, the bytes of a stream.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from benchmarks.http2_stream import GrpcStream, StreamEnded
from protos import worker_pb2 as pb
from worker.agent.assignments import Assignments
from worker.agent.hearing import Hearing

CONNECTING_AT_ONCE = 64
HEARTBEAT_SECONDS = 1.0
STEP_SECONDS = 1.0
REPORTING_RANKS = (0, 1)
_METHOD = "/understudy.worker.v1.Worker/Session"
_READ_BYTES = 1 << 20
_IDLE_SECONDS = 0.05
_GOLDEN = 0.6180339887
"""Multiples of it modulo 1 spread evenly, however many there are."""


@dataclass(slots=True)
class Told:
    """A generation as this process has heard of it."""

    kind: str
    ranks: dict[str, int]
    """Trainer -> rank."""
    times: list[float] = field(default_factory=list)
    """When each agent here was told, by the monotonic clock, which all processes of a machine share."""


class Agent:
    """One node."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.node = f"node-{number}"
        self.trainer = f"{self.node}/0"
        self.number = number
        self.welcomed = False
        self.dead = False
        self.generation = 0
        self.phase = number * _GOLDEN % 1.0 * HEARTBEAT_SECONDS
        self.stream = GrpcStream(path=_METHOD, authority=fleet.address)
        self.socket = socket.socket()
        self._unwritten = b""
        self._hearing = Hearing()
        self._sent_at: dict[int, float] = {}
        self._source = pb.Source(trainer=self.trainer, start=1)
        self._heart = pb.AgentMessage(heartbeat=pb.Heartbeat(trainers=[self._status()]))

    def _status(self) -> pb.TrainerStatus:
        host = f"10.{self.number >> 16 & 255}.{self.number >> 8 & 255}.{self.number & 255}"
        return pb.TrainerStatus(
            trainer=self.trainer,
            start=1,
            pid=1000 + self.number,
            ready=True,
            store_address=f"{host}:29500",
            peer_address=f"{host}:29501",
            device_name="benchmark",
            phase="ready",
        )

    def connect(self) -> None:
        """Open the connection and register."""
        host, _, port = self.fleet.address.rpartition(":")
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.say(
            pb.AgentMessage(
                registration=pb.Registration(
                    node=self.node, incarnation=f"i-{self.node}", agent_pid=1000 + self.number
                )
            )
        )

    def say(self, message: pb.AgentMessage) -> None:
        """Write a message, or keep what the socket does not take."""
        self.stream.send(message.SerializeToString())
        self.write()

    def write(self) -> None:
        data = self._unwritten + self.stream.pending()
        if not data or self.dead:
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(str(error))
            return
        self._unwritten = data[sent:]
        self.fleet.watch(self, writing=bool(self._unwritten))

    def read(self) -> None:
        """Take in what has come."""
        try:
            data = self.socket.recv(_READ_BYTES)
            if not data:
                raise StreamEnded("the controller closed the connection")
            for message in self.stream.received(data):
                self._hear(message)
        except BlockingIOError:
            return
        except (StreamEnded, OSError) as error:
            self.lose(str(error))
            return
        self.write()

    def lose(self, why: str) -> None:
        """The stream is gone, and nobody asked for that."""
        if not self.dead:
            self.fleet.lost.append(f"{self.node}: {why}")
            self.die()

    def die(self) -> None:
        """The connection breaks, as when the process is killed."""
        self.dead = True
        self.fleet.forget(self)
        self.socket.close()

    def beat(self, now: float) -> None:
        """A heartbeat, with the progress of a training step in it."""
        heartbeat = self._heart.heartbeat
        heartbeat.sequence = self._hearing.number(now)
        if self.generation:
            status = heartbeat.trainers[0]
            status.step, status.phase, status.generation = int(now / STEP_SECONDS), "forward", self.generation
            status.operation += 7
        if self.fleet.measuring:
            self.fleet.heartbeats += 1
            if heartbeat.sequence:
                self._sent_at[heartbeat.sequence] = now
        self.say(self._heart)

    def _hear(self, data: bytes) -> None:
        message = pb.ControllerMessage.FromString(data)
        kind = message.WhichOneof("kind")
        if kind == "heartbeat_heard":
            self._hearing.heard(message.heartbeat_heard.sequence)
            sent = self._sent_at.pop(message.heartbeat_heard.sequence, None)
            if sent is not None and self.fleet.measuring:
                self.fleet.round_trips.append(time.monotonic() - sent)
        elif kind == "assign":
            self._assigned(message.assign)
        elif kind == "acquire":
            said = pb.PartsAcquired(source=self._source, acquisition=message.acquire.acquisition, version=1)
            self.say(pb.AgentMessage(parts_acquired=said))
        elif kind == "welcome":
            self.welcomed = True
            ready = pb.TrainerReady(source=self._source, status=self._status())
            self.say(pb.AgentMessage(trainer_ready=ready))
            self.fleet.connect_more()

    def _assigned(self, message: pb.Assign) -> None:
        told = self.fleet.hear_assignment(message)
        number = self.fleet.newest
        if number > self.generation and self.trainer in told.ranks:
            self.generation = number
            joined = pb.GenerationJoined(source=self._source, generation=number, committed=0)
            self.say(pb.AgentMessage(generation_joined=joined))

    def report_step(self, step: int) -> None:
        first = (step - 1) * self.fleet.samples_per_step
        committed = pb.StepCommitted(
            source=self._source,
            step=step,
            generation=self.generation,
            loss=1.0,
            tokens=self.fleet.samples_per_step * 128,
            time=time.time(),
            step_seconds=STEP_SECONDS,
            sample_ids=range(first, first + self.fleet.samples_per_step),
            expert_load=[100] * self.fleet.experts,
        )
        self.say(pb.AgentMessage(step_committed=committed))

    def complain(self) -> None:
        """What a survivor says whose peer is gone."""
        said = pb.CommunicationFailed(
            source=self._source, generation=self.generation, step=0, detail="peer closed"
        )
        self.say(pb.AgentMessage(communication_failed=said))


class Fleet:
    """All agents of this process, and what they have measured."""

    def __init__(self, address: str, samples_per_step: int, experts: int) -> None:
        self.address = address
        self.samples_per_step = samples_per_step
        self.experts = experts
        self.agents: dict[str, Agent] = {}
        self.told: dict[int, Told] = {}
        self.newest = 0
        self.round_trips: list[float] = []
        self.heartbeats = 0
        """That were sent while it was measured; some of them ask for an answer."""
        self.lateness: list[float] = []
        self.measuring = False
        self.lost: list[str] = []
        self._assignments = Assignments()
        self._to_connect: deque[Agent] = deque()
        self._epoll = select.epoll()
        self._by_socket: dict[int, Agent] = {}
        self._rounds: list[Agent] = []
        self._round_at = time.monotonic()
        self._next = 0
        self._step_at = time.monotonic() + STEP_SECONDS
        self._step = 0

    # ---- connections ----

    def open(self, numbers: list[int]) -> None:
        """Begin to connect these nodes, a bounded number at once."""
        made = [Agent(self, number) for number in numbers]
        self.agents |= {agent.trainer: agent for agent in made}
        self._to_connect.extend(made)
        self._rounds = sorted(self.agents.values(), key=lambda agent: agent.phase)
        for _ in range(CONNECTING_AT_ONCE):
            self.connect_more()

    def connect_more(self) -> None:
        if self._to_connect:
            agent = self._to_connect.popleft()
            agent.connect()
            self._by_socket[agent.socket.fileno()] = agent
            self._epoll.register(agent.socket.fileno(), select.EPOLLIN)
            agent.write()

    def watch(self, agent: Agent, *, writing: bool) -> None:
        if agent.socket.fileno() in self._by_socket and writing:
            self._epoll.modify(agent.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def forget(self, agent: Agent) -> None:
        self._by_socket.pop(agent.socket.fileno(), None)

    # ---- the loop ----

    def run(self) -> None:
        """Until the input ends."""
        orders = Orders(self)
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        pending = b""
        while True:
            for number, events in self._epoll.poll(self._until_due()):
                if number == sys.stdin.fileno():
                    data = os.read(number, _READ_BYTES)
                    if not data:
                        os._exit(0)  # thousands of streams need not be closed one by one
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        print(json.dumps(orders.carry_out(json.loads(line))), flush=True)
                    continue
                agent = self._by_socket.get(number)
                if agent is not None and events & select.EPOLLOUT:
                    self._epoll.modify(number, select.EPOLLIN)
                    agent.write()
                if agent is not None and events & ~select.EPOLLOUT:
                    agent.read()
            self._beat()
            self._report_steps()

    def _until_due(self) -> float:
        if not self._rounds:
            return _IDLE_SECONDS
        due = self._round_at + self._rounds[self._next].phase
        return min(max(0.0, due - time.monotonic()), _IDLE_SECONDS)

    def _beat(self) -> None:
        """Everybody whose turn has come."""
        now = time.monotonic()
        while self._rounds and (due := self._round_at + self._rounds[self._next].phase) <= now:
            agent = self._rounds[self._next]
            if agent.welcomed and not agent.dead:
                if self.measuring:
                    self.lateness.append(now - due)
                agent.beat(time.monotonic())
            self._next += 1
            if self._next == len(self._rounds):
                self._next = 0
                self._round_at += HEARTBEAT_SECONDS

    def _report_steps(self) -> None:
        """The ranks that report steps do so, a step each `STEP_SECONDS`."""
        if time.monotonic() < self._step_at:
            return
        self._step_at += STEP_SECONDS
        told = self.told.get(self.newest)
        if told is None:
            return
        self._step += 1
        for trainer, rank in told.ranks.items():
            agent = self.agents.get(trainer)
            if rank in REPORTING_RANKS and agent is not None and not agent.dead and agent.generation:
                agent.report_step(self._step)

    # ---- generations ----

    def hear_assignment(self, message: pb.Assign) -> Told:
        """One agent was told a generation; what it says is worked out by the first."""
        number = int(message.number)
        if number not in self.told:
            generation = self._assignments.whole(message)
            ranks = {member.trainer: int(member.rank) for member in generation.members}
            self.told[number] = Told(kind=generation.kind, ranks=ranks)
            self.newest = max(self.newest, number)
        self.told[number].times.append(time.monotonic())
        return self.told[number]


class Orders:
    """Carries out what the parent asks, one order at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order."""
        fleet = self.fleet
        match order["do"]:
            case "open":
                fleet.open(order["numbers"])
                return {}
            case "state":
                return {
                    "alive": sum(1 for agent in fleet.agents.values() if agent.welcomed and not agent.dead),
                    "newest": fleet.newest,
                    "told": {number: len(told.times) for number, told in fleet.told.items()},
                    "last": {number: max(told.times) for number, told in fleet.told.items()},
                    "lost": fleet.lost[:5],
                }
            case "members":
                return {"members": fleet.told[fleet.newest].ranks}
            case "measure":
                fleet.round_trips.clear()
                fleet.heartbeats = 0
                fleet.lateness.clear()
                fleet.measuring = True
                return _usage()
            case "measured":
                fleet.measuring = False
                trips, late = fleet.round_trips, fleet.lateness
                return {**_usage(), "heartbeats": fleet.heartbeats, "round_trips": trips, "lateness": late}
            case "die":
                for trainer in order["trainers"]:
                    if trainer in fleet.agents:
                        fleet.agents[trainer].die()
                return {"at": time.monotonic()}
            case "complain":
                for trainer in order["trainers"]:
                    if trainer in fleet.agents:
                        fleet.agents[trainer].complain()
                return {"at": time.monotonic()}
            case other:
                raise AssertionError(f"unknown order {other!r}")


def _usage() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": used.ru_utime + used.ru_stime}


def main() -> None:
    """`python -m benchmarks.control_plane_fleet ADDRESS SAMPLES_PER_STEP EXPERTS`"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Fleet(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run()


if __name__ == "__main__":
    main()
