"""One seed from start to verdict: trouble first, with the laws watching; then none, and everything must come back.

Safety: for a while things go wrong as `options` has drawn it, and after every event the laws must hold. Liveness: the
faults end, machines are repaired (or not, in some seeds), an operator gives nodes back, and within a bound training
must go on, redundancy be restored or the job say truly why not, incidents be closed, a checkpoint and a stop be
possible. A job may also have ended with a reason, if it is one of those that a job may end with. Next: `sweep.py`.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from orchestrator.core import events, roster
from orchestrator.core.ids import NodeId
from orchestrator.core.state import CheckpointState, ClusterState, JobState
from simulation.options import Faults, Options, options_of
from simulation.truth import LawBroken
from simulation.world import World

SETTLE_SECONDS = 5.0
"""From the end of the faults to the operator's first look: longer than a lease."""
OPERATOR_SECONDS = 10.0
CONVERGE_SECONDS = 150.0
STEPS_MORE = 3
TRAIN_SECONDS = 30.0
CHECKPOINT_SECONDS = 60.0
STOP_SECONDS = 90.0
MEMORY_FOLDER = Path("/dev/shm")

MAY_END_WITH = (
    ("circuit broken", "generations in a row committed no step"),
    ("nobody came back", "no trainer came back within"),
    ("did not start", "were ready after"),
    ("state refused twice", "would come again"),
    ("finished", "steps are done"),
    ("stopped", "stopped "),
)
"""How a job may end, and the words that say so; anything else is a finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a seed."""

    seed: int
    failure: str
    """What was broken; empty if nothing was."""
    ending: str
    """How the world was left: `whole`, `degraded`, or how the job ended."""
    digest: str
    events: int
    steps: int
    incidents: int
    virtual_seconds: float
    lines: tuple[str, ...]


def run_seed(seed: int) -> Verdict:
    """Let the world of a seed run to its end."""
    return run_world(seed, options_of(Random(f"{seed}/options")))


def run_world(seed: int, options: Options) -> Verdict:
    """Let a world with these options run to its end."""
    base = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with TemporaryDirectory(prefix="understudy-simulation-", dir=base) as folder:
        world = World(options, str(seed), Path(folder))
        failure, ending = "", ""
        try:
            ending = Run(world).to_the_end()
        except Exception as error:  # noqa: BLE001 - the verdict holds it, whatever it is
            failure = f"{type(error).__name__}: {error}"
            world.timeline.say("broken", failure)
            if not isinstance(error, LawBroken):
                for line in traceback.format_exception(error)[-6:]:
                    for part in line.rstrip().splitlines():
                        world.timeline.lines.append(f"          | {part}")
        finally:
            world.close()
        return Verdict(
            seed=seed,
            failure=failure,
            ending=ending,
            digest=world.timeline.digest,
            events=world.laws.events,
            steps=world.truth.newest,
            incidents=world.laws.incidents,
            virtual_seconds=world.scheduler.now - world.began,
            lines=tuple(world.timeline.lines),
        )


class Run:
    """The two phases of one world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def to_the_end(self) -> str:
        """Both phases; how it ended. Raises LawBroken, or whatever bug it met."""
        world = self.world
        world.timeline.say("phase", f"safety: {_told(world.options)}")
        world.scheduler.run_until(world.began + world.options.safety_seconds, self._over)
        self._heal()
        world.timeline.say("phase", "liveness: nothing goes wrong any more")
        if not self._over():
            world.scheduler.run_until(world.scheduler.now + SETTLE_SECONDS, self._over)
            self._operate()
            world.scheduler.every(OPERATOR_SECONDS, self._operate)
        self._until(self._whole, CONVERGE_SECONDS, "everything comes back")
        self._check_all()
        if self._over():
            return self._ended()
        how = "whole" if self._seated() == self._seats() else "degraded"
        self._goes_on()
        if not self._over():
            self._takes_a_checkpoint()
        if not self._over():
            self._stops()
        self._check_all()
        return f"{how}, then {self._ended()}"

    # ---- the end of all trouble ----

    def _heal(self) -> None:
        world = self.world
        world.ground.faults = Faults()
        world.nemesis.rest()
        world.controllers.ensure()
        if world.options.repaired:
            world.nodes.lost.clear()
        for node in world.nodes.all:
            world.nodes.repair(node)

    def _operate(self) -> bool:
        """What an operator does: gives nodes back, and starts agents that nobody else would start."""
        world = self.world
        process = world.controllers.serving
        if self._over():
            return False
        for node in world.nodes.all:
            if node in world.nodes.lost:
                continue
            agent = world.nodes.agents.get(node)
            if agent is not None and agent.alive and agent.gave_up_a_device:
                world.timeline.say("operator", f"replaces the agent of {node}, which has given up a device")
                agent.kill()
            if agent is None or not agent.alive:
                world.timeline.say("operator", f"starts {node}")
                world.nodes.return_agent(node)
            if process is not None and self._cordoned(process.state, node):
                world.timeline.say("operator", f"gives {node} back")
                process.say(events.UncordonRequested, node=node, by="operator")
        return True

    def _cordoned(self, state: ClusterState, node: str) -> bool:
        """Kept out by a person; or by its record, for longer than anybody waits, though its machine is repaired."""
        record = state.health.get(NodeId(node))
        until = record.quarantined_until if record is not None else None
        long = until is not None and until - self.world.scheduler.now > CONVERGE_SECONDS / 2
        return long or any(each.id == node and each.cordoned for each in state.nodes.values())

    # ---- what must come true ----

    def _until(self, done: object, seconds: float, what: str) -> None:
        assert callable(done)
        if not self.world.scheduler.run_until(self.world.scheduler.now + seconds, done):
            raise LawBroken(f"liveness: not within {seconds:g} s: {what}; {self._picture()}")

    def _over(self) -> bool:
        return self.world.controllers.ended_job is not None

    def _ended(self) -> str:
        reason = self.world.controllers.ended_job or ""
        for name, words in MAY_END_WITH:
            if words in reason:
                return name
        raise LawBroken(f"the job has ended with a reason that it may not have: {reason}")

    def _seats(self) -> int:
        cluster = self.world.options.spec.cluster
        here = len(self.world.nodes.all) - len(self.world.nodes.lost)
        return min(cluster.nodes, here) * cluster.devices_per_node

    def _seated(self) -> int:
        process = self.world.controllers.serving
        generation = process.state.generation if process is not None else None
        return len(generation.members) if generation is not None else 0

    def _whole(self) -> bool:
        """All seats that there are machines for are taken, and every incident is closed, or truly cannot be."""
        process = self.world.controllers.serving
        if self._over():
            return True
        if process is None or process.state.job is None or process.state.job.state is not JobState.RUNNING:
            return False
        state = process.state
        generation = state.generation
        if generation is None or not roster.all_joined(state) or state.planned is not None:
            return False
        if len(generation.members) != self._seats():
            return False
        nodes = set(roster.nodes_by_rank(generation))
        cluster = self.world.options.spec.cluster
        short = len(nodes) < min(cluster.replicas, cluster.nodes)
        return all(each.closed or (short and each.degraded) for each in state.incidents.values())

    def _goes_on(self) -> None:
        """Training commits further steps, and the ledger hears of them."""
        before = self._ledger_end()
        self._until(
            lambda: self._over() or self._ledger_end() >= before + STEPS_MORE,
            TRAIN_SECONDS,
            "training goes on",
        )

    def _ledger_end(self) -> int:
        process = self.world.controllers.serving
        return process.state.reported_through if process is not None else 0

    def _takes_a_checkpoint(self) -> None:
        before = self._sealed()
        process = self.world.controllers.serving
        assert process is not None
        process.say(events.CheckpointRequested, by="operator")
        self._until(
            lambda: self._over() or bool(self._sealed() - before),
            CHECKPOINT_SECONDS,
            "a checkpoint is sealed",
        )

    def _sealed(self) -> set[str]:
        process = self.world.controllers.serving
        if process is None:
            return set()
        known = process.state.checkpoints.values()
        return {each.request for each in known if each.state is CheckpointState.SEALED}

    def _stops(self) -> None:
        """The job stops when asked, and its nodes end."""
        process = self.world.controllers.serving
        assert process is not None
        process.say(events.StopRequested, by="operator")
        self._until(self._over, STOP_SECONDS, "the job stops")
        self._until(lambda: not self.world.nodes.living(), STOP_SECONDS, "all nodes end")

    def _check_all(self) -> None:
        world = self.world
        broken = world.check_processes()
        if broken:
            raise LawBroken("L9: " + "; ".join(broken))
        world.laws.check_ledger(world.ground.folder)

    def _picture(self) -> str:
        """How things stand, for a person."""
        process = self.world.controllers.serving
        if process is None:
            return "no controller serves"
        state = process.state
        told = [
            f"job {state.job.state.value if state.job else 'none'}: {state.job.reason if state.job else ''}"
        ]
        if state.generation is not None:
            seats = " ".join(f"{each.trainer}#{each.start}" for each in state.generation.members)
            told.append(f"generation {state.generation.number} ({seats}), joined {sorted(state.joined)}")
        told.append(f"wanted seats {self._seats()}")
        told.append(" ".join(f"{each.id}={each.state.value}" for each in state.nodes.values()))
        told += [
            f"{each.id} open: {each.reasons[-1]}" for each in state.incidents.values() if not each.closed
        ]
        return "; ".join(told)


def _told(options: Options) -> str:
    """What a seed has drawn, in one line."""
    cluster = options.spec.cluster
    on = [
        f"{name.removesuffix('_rate').removesuffix('_chance')}={value:.2g}"
        for name in Faults.__slots__
        if (value := getattr(options.faults, name))
    ]
    return (
        f"{cluster.nodes} nodes x {cluster.devices_per_node}, {cluster.spares} spares, "
        f"{cluster.replicas} replicas of {options.spec.model.experts} experts, {options.racks} racks, "
        f"{'one host' if options.one_host else 'many hosts'}; {' '.join(on) or 'no faults'}"
    )
