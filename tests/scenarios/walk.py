"""A long walk of random failures through the world, and the end that every walk must come to.

Safety is checked after each event by the world itself. Liveness: once failures stop and all nodes are given back, the
job has all its seats, its redundancy and a growing step again, whatever happened before. A walk is a seed, so every
failure found here can be walked again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from orchestrator.core import events, spec_rules
from orchestrator.core.events import Event
from orchestrator.core.ids import NodeId, TrainerId
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import (
    BatchSpec,
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    PipelineSpec,
    RecoverySpec,
)
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import JobState
from simulation import telling
from tests.scenarios.world import World

CONVERGE_SECONDS = 120.0


def spec_of(random: Random) -> JobSpec:
    """A small job of random shape."""
    nodes = random.randint(2, 5)
    spec = JobSpec(
        name="walk",
        data=DataSpec(path="stdlib"),
        steps=100_000,
        cluster=ClusterSpec(
            nodes=nodes,
            spares=random.randint(0, 2),
            devices_per_node=random.choice((1, 1, 2)),
            replicas=random.randint(1, min(3, nodes)),
        ),
        batch=BatchSpec(microbatches=random.randint(1, 9)),
        model=ModelSpec(experts=random.randint(5, 12)),
        checkpoint=CheckpointSpec(keep=2),
        recovery=RecoverySpec(
            node_failures=random.choice((1, 3, 50)),
            window_seconds=120.0,
            quarantine_seconds=2.0,
            quarantine_limit_seconds=8.0,
            mass_failure_share=random.choice((0.3, 0.5)),
            mass_failure_wait_seconds=random.choice((2.0, 15.0)),
            straggler_seconds=3.0,
        ),
    )
    staged = replace(
        spec, pipeline=PipelineSpec(stages=random.choice((1, 2, 3))), model=replace(spec.model, experts=6)
    )
    return spec if spec_rules.problems(staged) else staged


class Walk:
    """One seed: a world, and what befalls it."""

    def __init__(self, seed: int, *, resizes: bool = False) -> None:
        self.resizes = resizes
        self.random = Random(seed)
        self.lines: list[str] = []
        self.handled = 0
        self.world = World(spec_of(self.random), self._listen)
        self.world.agents.forgetful = self.random.random() < 0.5

    def _listen(self, event: Event, outcome: Outcome) -> None:
        self.handled += 1
        self.lines += [f"{self.world.at:.2f} {line}" for line in telling.lines(outcome)]

    def go(self, moves: int) -> None:
        """Random failures and recoveries, with a little time between them."""
        self.world.start_job()
        self.world.run(self.random.choice((0.5, 3.0, 6.0)))
        for _ in range(moves):
            if self.world.ended is not None:
                return
            self._move()
            self.world.run(self.random.choice((0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)))

    def heal(self) -> None:
        """No more failures, and every node is given back."""
        world = self.world
        world.agents.fail_acquisitions.clear()
        world.training.fail_checkpoints.clear()
        world.agents.wrong.clear()
        world.agents.slowness.clear()
        if world.machine is None:
            world.start_controller()
        for agent in tuple(world.agents.alive.values()):
            agent.stopped = agent.cut = False
            for trainer in agent.trainers.values():
                trainer.stopped = False
        world.run(world.spec.timeouts.lease_seconds + 1.0)
        for node in node_ids(self._cluster):
            world.agents.start(node)
            self._give_back(node)

    def converge(self) -> None:
        """Everything comes back, within a limit; a job that broke its circuit has said why."""
        world = self.world
        if world.ended is not None:
            assert not world.ended.succeeded and world.ended.reason
            return
        world.run_until(self._whole, CONVERGE_SECONDS)
        before = world.state.committed
        world.run_until(lambda: world.state.committed > before + 3, CONVERGE_SECONDS)

    def _give_back(self, node: NodeId) -> None:
        entity = self.world.state.nodes.get(node)
        agent = self.world.agents.alive[node]
        missing = [
            TrainerId(f"{node}/{device}")
            for device in range(self._cluster.devices_per_node)
            if f"{node}/{device}" not in agent.trainers
        ]
        if missing:
            self.world.kill_node(node)
            self.world.agents.start(node)
        if entity is not None and entity.cordoned:
            self.world.say(events.UncordonRequested, node=node, by="walk")

    def _whole(self) -> bool:
        state = self.world.state
        if self.world.ended is not None:
            return True
        generation = state.generation
        seats = self._cluster.nodes * self._cluster.devices_per_node
        return (
            generation is not None
            and len(generation.members) == seats
            and all(incident.closed for incident in state.incidents.values())
            and state.job is not None
            and state.job.state is JobState.RUNNING
        )

    def _move(self) -> None:
        moves: tuple[tuple[int, Callable[[], None]], ...] = (
            (6, self._kill_node),
            (4, self._kill_trainer),
            (3, self._stop_node),
            (2, self._stop_trainer),
            (5, self._wake),
            (2, self._cut),
            (4, self._heal_cut),
            (3, self._break),
            (6, self._start_agent),
            (3, self._controller),
            (3, self._interval),
            (2, self._ask_checkpoint),
            (2, self._drain),
            (2, self._cordon),
            (3, self._uncordon),
            (2, self._fail_copies),
            (1, self._fail_writes),
            (1, self._damage),
            (2, self._slow),
            (1, self._wrong),
        )
        if self.resizes:
            moves = (*moves, (2, self._resize))
        weights = [weight for weight, _ in moves]
        self.random.choices([move for _, move in moves], weights)[0]()

    @property
    def _cluster(self) -> ClusterSpec:
        """As it was asked for last."""
        machine = self.world.machine
        job = machine.state.job if machine is not None else None
        return job.spec.cluster if job is not None else self.world.spec.cluster

    def _resize(self) -> None:
        nodes, spares = self.random.randint(self._cluster.replicas, 5), self.random.randint(0, 2)
        self._tell(f"resize to {nodes} and {spares}")
        self.world.say(events.ResizeRequested, nodes=nodes, spares=spares, by="walk")

    def _tell(self, text: str) -> None:
        self.lines.append(f"{self.world.at:.2f} ## {text}")

    def _node(self) -> NodeId | None:
        nodes = sorted(self.world.agents.alive)
        return self.random.choice(nodes) if nodes else None

    def _trainer(self) -> TrainerId | None:
        node = self._node()
        trainers = sorted(self.world.agents.alive[node].trainers) if node else []
        return self.random.choice(trainers) if trainers else None

    def _kill_node(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"kill {node}")
            self.world.kill_node(node)

    def _kill_trainer(self) -> None:
        trainer = self._trainer()
        if trainer is not None and not self.world.agents.alive[NodeId(trainer.split("/")[0])].stopped:
            again = self.random.random() < 0.8
            self._tell(f"kill {trainer} again={again}")
            self.world.kill_trainer(trainer, again=again)

    def _stop_node(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"stop {node}")
            self.world.stop_node(node)

    def _stop_trainer(self) -> None:
        if (trainer := self._trainer()) is not None:
            self._tell(f"stop {trainer}")
            self.world.stop_trainer(trainer)

    def _wake(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"wake {node}")
            self.world.wake_node(node)

    def _cut(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"cut {node}")
            self.world.cut(node)

    def _heal_cut(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"heal {node}")
            self.world.heal(node)

    def _break(self) -> None:
        trainer = self._trainer()
        if trainer is not None and not self.world.agents.alive[NodeId(trainer.split("/")[0])].stopped:
            self._tell(f"break {trainer}")
            self.world.break_communication(trainer)

    def _start_agent(self) -> None:
        node = self.random.choice(node_ids(self.world.spec.cluster))
        self._tell(f"agent {node}")
        self.world.agents.start(node)

    def _controller(self) -> None:
        self._tell("controller toggles")
        if self.world.machine is None:
            self.world.start_controller()
        else:
            self.world.stop_controller()

    def _interval(self) -> None:
        self._tell("interval")
        self.world.say(events.CheckpointDue)

    def _ask_checkpoint(self) -> None:
        self.world.say(events.CheckpointRequested, by="walk")

    def _drain(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"drain {node}")
            self.world.say(events.DrainRequested, node=node, by="walk")

    def _cordon(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"cordon {node}")
            self.world.say(events.CordonRequested, node=node, by="walk")

    def _uncordon(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"uncordon {node}")
            self.world.say(events.UncordonRequested, node=node, by="walk")

    def _fail_copies(self) -> None:
        trainer = self._trainer()
        if trainer is not None and trainer not in self.world.agents.fail_acquisitions:
            self.world.agents.fail_acquisitions.add(trainer)
        else:
            self.world.agents.fail_acquisitions.clear()

    def _fail_writes(self) -> None:
        trainer = self._trainer()
        if trainer is not None and trainer not in self.world.training.fail_checkpoints:
            self.world.training.fail_checkpoints.add(trainer)
        else:
            self.world.training.fail_checkpoints.clear()

    def _slow(self) -> None:
        if (node := self._node()) is not None:
            self._tell(f"slow {node}")
            self.world.agents.slowness[node] = self.random.choice((1.0, 3.0))

    def _wrong(self) -> None:
        trainer = self._trainer()
        if trainer is not None:
            self._tell(f"wrong {trainer}")
            self.world.agents.wrong ^= {trainer}

    def _damage(self) -> None:
        names = sorted(self.world.disk.sealed)
        if names:
            self.world.damage(self.random.choice(names))
