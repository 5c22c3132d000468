"""How long the decision core thinks, from 16 to 10,000 nodes: no network, no database, one event after the other.

The cluster comes about through the same events that agents cause. Timed, in processor time, which other programs do not
lengthen: a quiet heartbeat, a sweep of the limits in which nothing is due, the scoring of all members for stragglers
(every 5 seconds), a node's death (its stream is broken, then a peer reports a broken collective), a rack's (64 leases
run out in one sweep, or a quarter of a small cluster), what is copied to make up for either, and a spare being seated.
Next: `control_plane.py`, the same with everything around it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import noise
from orchestrator import collector
from orchestrator.core import events
from orchestrator.core.events import Event, TrainerPhase, TrainerStatus
from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, node_of, trainer_id
from orchestrator.core.machine import Machine
from orchestrator.core.measurements import StepRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import BatchSpec, ClusterSpec, DataSpec, JobSpec, ModelSpec
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import ClusterState, Generation

EXPERTS = 128
RACK = 64
ROUNDS = 3
QUIET_ROUNDS = 2000
STEPS_SCORED = 6


def shape(agents: int) -> tuple[int, int, int]:
    """Nodes that train, experts and replicas for so many agents: every group of nodes holds each expert once."""
    spare = max(1, agents // 640)
    experts = min(EXPERTS, max(1, (agents - spare) // 2))
    replicas = (agents - spare) // experts
    return experts * replicas, experts, replicas


@dataclass(slots=True)
class Cluster:
    """A machine and the trainers that it believes in."""

    machine: Machine
    at: float = 1000.0
    cause: int = 0

    def say(self, kind: Callable[..., Event], **fields: Any) -> tuple[Outcome, float]:
        """Handle an event; its outcome, and the seconds that took."""
        self.cause += 1
        event = kind(at=self.at, cause_id=CauseId(f"c-{self.cause}"), **fields)
        began = time.thread_time()
        outcome = self.machine.handle(event)
        return outcome, time.thread_time() - began

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    @property
    def generation(self) -> Generation:
        assert self.state.generation is not None
        return self.state.generation

    def source(self, trainer: str) -> dict[str, Any]:
        return {"trainer": trainer, "incarnation": f"i-{node_of(trainer)}", "start": 1}

    def join(self, generation: Generation) -> float:
        """All members join; seconds for all of them."""
        spent = 0.0
        for member in generation.members:
            if member.trainer not in self.state.joined:
                spent += self.say(
                    events.GenerationJoined,
                    **self.source(member.trainer),
                    generation=generation.number,
                    committed=Step(0),
                    completed_held=False,
                    redoes=False,
                    copied_parts=0,
                )[1]
        return spent

    def commit(self, step: int) -> None:
        record = StepRecord(
            step=Step(step),
            generation=self.generation.number,
            loss=1.0,
            tokens=1,
            time=self.at,
            step_seconds=1.0,
            sample_ids=(),
            expert_load=(),
        )
        first = self.generation.members[0].trainer
        self.say(events.StepCommitted, **self.source(first), record=record)

    def beat(self, node: NodeId, operation: int = 1) -> float:
        """A heartbeat of a node that gets on."""
        number = self.generation.number if self.state.generation else GenerationNumber(0)
        statuses = (status(node, number, operation),)
        return self.say(events.HeartbeatReceived, node=node, incarnation=f"i-{node}", trainers=statuses)[1]


def status(node: NodeId, number: GenerationNumber, operation: int) -> TrainerStatus:
    return TrainerStatus(
        trainer=trainer_id(node, 0),
        start=1,
        pid=1,
        ready=True,
        store_address=f"{node}:1",
        peer_address=f"{node}:2",
        device_name="benchmark",
        generation=number,
        step=Step(operation),
        phase=TrainerPhase.FORWARD if number else TrainerPhase.READY,
        operation=operation,
        waiting=False,
        silent_seconds=0.0,
        work_seconds=0.9 + 0.0001 * (number_of(node) % 100),
    )


def number_of(node: NodeId) -> int:
    """The number in its name."""
    return int(node.rpartition("-")[2])


def started(agents: int) -> tuple[Cluster, dict[str, float]]:
    """A cluster in its first generation, and what its start took, all events together."""
    nodes, experts, replicas = shape(agents)
    spec = JobSpec(
        name="benchmark",
        data=DataSpec(path="stdlib"),
        cluster=ClusterSpec(nodes=nodes, spares=agents - nodes, replicas=replicas),
        batch=BatchSpec(microbatches=nodes, microbatch_size=1),
        model=ModelSpec(experts=experts),
    )
    cluster = Cluster(Machine(ClusterState()))
    took = {
        "submit": cluster.say(events.JobSubmitted, spec=spec, resume=False)[1],
        "register": 0.0,
        "ready": 0.0,
    }
    for node in node_ids(spec.cluster):
        about = {"node": node, "incarnation": f"i-{node}", "labels": (), "agent_pid": 1}
        none = GenerationNumber(0)
        took["register"] += cluster.say(events.NodeRegistered, **about, generation=none, trainers=())[1]
    slowest = 0.0
    for node in node_ids(spec.cluster):
        said = {"status": status(node, GenerationNumber(0), 0), **cluster.source(f"{node}/0")}
        seconds = cluster.say(events.TrainerBecameReady, **said)[1]
        took["ready"] += seconds
        slowest = max(slowest, seconds)
    took["first generation"] = slowest
    took["join"] = cluster.join(cluster.generation)
    cluster.commit(1)
    return cluster, took


def death(cluster: Cluster) -> float:
    """A node's stream breaks and a peer says that it lost touch: seconds of the event that decides."""
    members = cluster.generation.members
    victim, peer = members[len(members) // 2], members[0]
    node = node_of(victim.trainer)
    cluster.say(events.NodeDisconnected, node=node, incarnation=f"i-{node}", reason="broken")
    said = {"generation": cluster.generation.number, "step": Step(1), "detail": "peer closed"}
    before = cluster.generation.number
    seconds = cluster.say(events.CommunicationFailed, **cluster.source(peer.trainer), **said)[1]
    assert cluster.generation.number > before, "the death was not answered"
    return seconds


def seating(cluster: Cluster) -> tuple[float, float] | None:
    """A spare has copied its part: seconds to plan the copy (the last join), and to send the planned generation."""
    *others, last = [each for each in cluster.generation.members if each.trainer not in cluster.state.joined]
    for member in others:
        join_one(cluster, member.trainer)
    planning = join_one(cluster, last.trainer)
    seated = 0.0
    for acquisition in tuple(cluster.state.acquisitions.values()):
        said = {"acquisition": acquisition.id, "version": Step(1)}
        seated += cluster.say(events.PartsAcquired, **cluster.source(acquisition.trainer), **said)[1]
    planned = cluster.state.planned
    if planned is None:
        return None
    join_one(cluster, planned.members[0].trainer, planned.number)
    cluster.join(cluster.generation)
    cluster.commit(int(cluster.state.committed) + 1)
    return planning, seated


def join_one(cluster: Cluster, trainer: str, number: GenerationNumber | None = None) -> float:
    chosen = cluster.generation.number if number is None else number
    return cluster.say(
        events.GenerationJoined,
        **cluster.source(trainer),
        generation=chosen,
        committed=Step(1),
        completed_held=False,
        redoes=False,
        copied_parts=0,
    )[1]


def rack(cluster: Cluster) -> float:
    """Many leases run out in the same sweep."""
    members = cluster.generation.members
    count = min(RACK, len(members) // 4)
    first = len(members) // 3
    victims = {node_of(member.trainer) for member in members[first : first + count]}
    cluster.at += 100.0
    for node in cluster.state.nodes:
        if node not in victims:
            cluster.beat(node)
    before = cluster.generation.number
    seconds = cluster.say(events.LeasesDue)[1]
    assert cluster.generation.number > before, "the rack's death was not answered"
    return seconds


def measure(agents: int) -> dict[str, float]:
    """Seconds of every decision, by name."""
    cluster, took = started(agents)
    result = dict(took)
    nodes = list(cluster.state.nodes)
    beats: list[float] = []
    for operation in (1, 2):
        beats = [cluster.beat(nodes[index % len(nodes)], operation + index) for index in range(QUIET_ROUNDS)]
    result["heartbeat"] = statistics.median(beats)
    for step in range(STEPS_SCORED):
        for node in nodes:
            cluster.beat(node, QUIET_ROUNDS + step)
    result["scoring"] = statistics.median(cluster.say(events.RedundancyScanDue)[1] for _ in range(ROUNDS))
    assert len(cluster.state.memory.scores) == len(cluster.generation.members) or agents < STEPS_SCORED
    result["quiet sweep"] = statistics.median(cluster.say(events.LeasesDue)[1] for _ in range(9))
    deaths, plans, seats = [], [], []
    for _ in range(ROUNDS):
        deaths.append(death(cluster))
        done = seating(cluster)
        if done is not None:
            plans.append(done[0])
            seats.append(done[1])
    result["node dies"] = statistics.median(deaths)
    if seats:
        result["copy planned"], result["spare seated"] = statistics.median(plans), statistics.median(seats)
    result["rack dies"] = rack(cluster)
    replaced = seating(cluster)
    if replaced is not None:
        result["rack's copies"] = replaced[0]
    return result


COLUMNS = (
    "heartbeat", "quiet sweep", "scoring", "node dies", "rack dies", "copy planned", "rack's copies", "spare seated",
    "first generation", "register", "ready", "join",
)  # fmt: skip


def main() -> None:
    """Prints a table in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", default="16,128,1024,4096,10000", help="sizes, by comma")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    options = parser.parse_args()
    before = noise.conditions()
    collector.set_limits()
    found = {int(size): measure(int(size)) for size in options.agents.split(",")}
    print(noise.machine_text(noise.machine(before)))
    print("milliseconds; register, ready and join are all nodes together")
    rows = [
        [str(size), *(f"{each[name] * 1000.0:.3f}" if name in each else "-" for name in COLUMNS)]
        for size, each in found.items()
    ]
    print(noise.table(("agents", *COLUMNS), rows))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
