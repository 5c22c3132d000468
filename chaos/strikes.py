"""How each fault is inflicted on a run, and undone where the world would undo it.

A strike returns once the fault is over (a frozen node has woken and is back); what it did is a `Deed`. Whether the run
took it well is not judged here. Next: `rest.py` (until the run has recovered), `laws.py` (afterwards).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from chaos import processes
from chaos.databases import Server
from chaos.disks import SmallDisk
from chaos.kinds import TRAITS, Aftermath, Kind
from chaos.network import Way
from chaos.plan import RECOVERY_PHASES, STEP_PHASES, Strike
from chaos.stage import BY, Stage, pause, shared
from orchestrator.cli import rows
from orchestrator.core.spec import FaultSpec

STRUCK_SECONDS = 60.0
"""For a trainer to get to the phase in which it was told to fail."""
BACK_SECONDS = 120.0
"""For a node that was away to be ready again: processes are started anew, torch is imported."""
STEPS_AFTER = 3
FLIP_PHASES = ("forward", "backward", "optimizer")
FLIP_TENSORS = ("weights", "m", "v")
SLICE_SECONDS = 0.06
"""Of this a slow node gets a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What was done."""

    words: str
    may_roll_back: bool = False
    """The last replica of something was meant to go, or went by chance."""
    aftermath: Aftermath
    saved_step: int = 0
    """Of the newest snapshot that the living held then: no committed step up to it may be computed again."""
    at: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A strike and the run that it hits."""

    stage: Stage
    strike: Strike
    name: str
    """Of the strike, unique in its run."""
    disk: SmallDisk | None
    before: frozenset[str]
    """Incidents that are old."""

    def pick(self, which: int, among: list[str]) -> str:
        """One of them, as drawn."""
        assert among, f"{self.strike.kind.value}: nobody is there to be struck"
        return among[int(self.strike.picks[which] * len(among))]

    def member(self) -> str:
        """A node that trains."""
        return self.pick(0, self.stage.nodes("active"))

    def between(self, low: float, high: float) -> float:
        """A drawn duration."""
        return low + self.strike.picks[2] * (high - low)

    def deed(self, words: str, *victims: str, holders: list[frozenset[str]] | None = None) -> Deed:
        """Words, and whether the victims held all replicas of something."""
        trait = TRAITS[self.strike.kind]
        gone = trait.rolls_back or shared(holders or [], frozenset(victims))
        return Deed(words=words, may_roll_back=gone, aftermath=trait.aftermath)

    def incidents(self) -> list[rows.Row]:
        """New ones."""
        return [each for each in self.stage.incidents() if each["id"] not in self.before]

    def await_incident(self) -> None:
        self.stage.expect(self.incidents, what=f"an incident after {self.strike.kind.value}")

    def await_training(self) -> None:
        """It goes on without whoever is away."""
        self.stage.reach(self.stage.step() + STEPS_AFTER)

    def await_back(self, node: str) -> None:
        """A node that was away is of use again."""

        def ready() -> bool:
            view = self.stage.view()
            found = [each for each in view.nodes if each.id == node] if view else []
            return (
                bool(found)
                and found[0].state in ("active", "spare")
                and all(each.ready for each in found[0].trainers)
            )

        self.stage.expect(ready, what=f"{node} back and ready", seconds=BACK_SECONDS)


def kill(scene: Scene) -> Deed:
    victim = scene.member()
    scene.stage.signal_node(victim, signal.SIGKILL)
    return scene.deed(f"killed {victim}")


def freeze(scene: Scene) -> Deed:
    victim = scene.member()
    scene.stage.signal_node(victim, signal.SIGSTOP)
    scene.await_incident()
    scene.await_training()
    pause(scene.between(0.0, 1.5))
    scene.stage.signal_node(victim, signal.SIGCONT)
    scene.await_back(victim)
    return scene.deed(f"stopped {victim} until the others trained on, then woke it")


def blink(scene: Scene) -> Deed:
    victim, seconds = scene.member(), scene.between(0.1, 1.2)
    scene.stage.signal_node(victim, signal.SIGSTOP)
    pause(seconds)
    scene.stage.signal_node(victim, signal.SIGCONT)
    scene.await_back(victim)
    return scene.deed(f"stopped {victim} for {seconds:.2f} s")


def kill_trainer(scene: Scene) -> Deed:
    victim = scene.member()
    processes.send(processes.trainers_of(scene.stage.workdir, victim), signal.SIGKILL)
    scene.await_incident()
    scene.await_back(victim)
    return scene.deed(f"killed the trainer of {victim}")


def flap(scene: Scene) -> Deed:
    """Each time its trainer is there again it dies again; the agent, or the controller, may give it up in between."""
    victim, times = scene.member(), 2 + int(scene.strike.picks[1] * 2)
    old: set[int] = set()
    for _ in range(times):
        fresh = _other_trainers(scene, victim, old)
        processes.send(fresh, signal.SIGKILL)
        old |= fresh
        pause(scene.between(0.0, 3.0))
    return scene.deed(f"killed the trainer of {victim} {times} times, as often as it came back")


def _other_trainers(scene: Scene, node: str, old: set[int]) -> set[int]:
    """The trainer processes of a node that are not old, waited for."""
    return scene.stage.expect(
        lambda: set(processes.trainers_of(scene.stage.workdir, node)) - old,
        what=f"another trainer of {node}",
        seconds=BACK_SECONDS,
    )


def in_phase(phases: tuple[str, ...]) -> Callable[[Scene], Deed]:
    """A node dies by its own hand in one of the phases."""

    def strike(scene: Scene) -> Deed:
        victim, phase = scene.member(), scene.pick(1, list(phases))
        fault = FaultSpec(kind="sigkill", node=victim, step=1, phase=phase, target="node")
        scene.stage.order(scene.name, fault)
        if phase == "checkpoint":
            scene.stage.ask(lambda admin: admin.take_checkpoint(BY))
        _await_struck(scene, fault)
        return scene.deed(f"{victim} died in phase {phase}")

    return strike


def make_nan(scene: Scene) -> Deed:
    """The step is not committed; what follows may go back to a state that is sound for certain."""
    fault = FaultSpec(kind="nan", node=scene.member(), step=1, phase="reduce")
    scene.stage.order(scene.name, fault)
    _await_struck(scene, fault)
    return scene.deed(f"made a gradient of {fault.node} NaN")


def flip_bit(scene: Scene) -> Deed:
    """In a replica that is compared with the others in every step; of two that differ nobody can say which is right."""
    phase, tensor = scene.pick(1, list(FLIP_PHASES)), scene.pick(2, list(FLIP_TENSORS))
    fault = FaultSpec(kind="bitflip", node=scene.member(), step=1, phase=phase, tensor=tensor)
    scene.stage.order(scene.name, fault)
    _await_struck(scene, fault)
    return scene.deed(f"flipped a bit of {fault.node} ({tensor}, in phase {phase})")


def _await_struck(scene: Scene, fault: FaultSpec) -> None:
    scene.stage.expect(
        lambda: scene.stage.struck(scene.name),
        what=f"{fault.kind} of {fault.node} in phase {fault.phase}",
        seconds=STRUCK_SECONDS,
    )


def in_recovery(scene: Scene) -> Deed:
    first = scene.member()
    spares = scene.stage.nodes("spare")
    phase = scene.pick(1, list(RECOVERY_PHASES)) if spares else RECOVERY_PHASES[0]
    others = [each for each in scene.stage.nodes("active") if each != first]
    second = scene.pick(2, others if phase == "regroup" else spares)
    holders = scene.stage.holders()
    fault = FaultSpec(kind="sigkill", node=second, step=1, phase=phase, target="node")
    scene.stage.order(scene.name, fault)
    scene.stage.signal_node(first, signal.SIGKILL)
    scene.await_incident()
    return scene.deed(f"killed {first}; {second} dies in phase {phase}", first, second, holders=holders)


def two(scene: Scene) -> Deed:
    """Two that are not the only holders of anything, where there are two such."""
    holders = scene.stage.holders()
    pairs = list(combinations(scene.stage.nodes("active"), 2))
    harmless = [pair for pair in pairs if not shared(holders, frozenset(pair))]
    choice = harmless or pairs
    victims = choice[int(scene.strike.picks[0] * len(choice))]
    return _kill_all(scene, victims, holders)


def pair(scene: Scene) -> Deed:
    """All holders of one expert, or two of them where there are more."""
    holders = scene.stage.holders()
    victims = sorted(holders[int(scene.strike.picks[0] * len(holders))])[:2]
    before = {each["name"] for each in _whole(scene)}
    killed = _kill_all(scene, tuple(victims), holders)
    at = time.time()
    scene.await_incident()
    left = [each for each in _whole(scene) if each["name"] in before]
    return replace(killed, at=at, saved_step=max((int(each["step"]) for each in left), default=0))


def _whole(scene: Scene) -> list[rows.Row]:
    """Snapshots whose shards are all held by living agents."""
    held = scene.stage.ask(lambda admin: [rows.snapshot(each) for each in admin.snapshots()])
    return [each for each in held if each["state"] != "partial"]


def _kill_all(scene: Scene, victims: tuple[str, ...], holders: list[frozenset[str]]) -> Deed:
    pids = [pid for each in victims for pid in processes.of_node(scene.stage.workdir, each)]
    processes.send(pids, signal.SIGKILL)
    return scene.deed(f"killed {' and '.join(victims)} at once", *victims, holders=holders)


def lose_rack(scene: Scene) -> Deed:
    """One that stands between two replicas of everything: losing committed steps for it is an offence."""
    active = scene.stage.nodes("active")
    racks = [each for each in scene.stage.setting.racks if sum(node in active for node in each) > 1]
    victims = racks[int(scene.strike.picks[0] * len(racks))]
    killed = _kill_all(scene, victims, holders=[])
    scene.await_incident()
    return replace(killed, words=f"{killed.words}, all of a rack")


def exhaust(scene: Scene) -> Deed:
    """One more than there are spares, each after the run has got over the last."""
    victims = []
    for _ in range(len(scene.stage.nodes("spare")) + 1):
        victim = scene.member()
        victims.append(victim)
        old = {each["id"] for each in scene.stage.incidents()}
        scene.stage.signal_node(victim, signal.SIGKILL)
        _await_closed(scene, old)
    return scene.deed(f"killed {', then '.join(victims)}: no spare is left")


def _await_closed(scene: Scene, old: set[str]) -> None:
    """The end of an incident that is not old."""
    scene.stage.expect(
        lambda: [
            each for each in scene.stage.incidents() if each["id"] not in old and each["state"] == "closed"
        ],
        what="an incident that is closed",
    )


def slow(scene: Scene) -> Deed:
    victim, seconds = scene.member(), scene.between(2.0, 5.0)
    pids = processes.trainers_of(scene.stage.workdir, victim)
    for _ in range(int(seconds / SLICE_SECONDS)):
        processes.send(pids, signal.SIGSTOP)
        pause(SLICE_SECONDS * 2 / 3)
        processes.send(pids, signal.SIGCONT)
        pause(SLICE_SECONDS / 3)
    return scene.deed(f"gave {victim} a third of its time for {seconds:.1f} s")


def cut(way: Way) -> Callable[[Scene], Deed]:
    """Until the node is given up and the others train; then the network is whole again."""

    def strike(scene: Scene) -> Deed:
        network = scene.stage.setting.network
        assert network is not None
        victim = scene.member()
        network.cut(victim, way)
        scene.await_incident()
        scene.await_training()
        pause(scene.between(0.0, 2.0))
        network.heal(victim)
        scene.await_back(victim)
        return scene.deed(f"cut {way.value} ({victim}), then healed it")

    return strike


def cut_control(scene: Scene) -> Deed:
    network = scene.stage.setting.network
    assert network is not None
    victim, seconds = scene.member(), scene.between(0.5, 6.0)
    network.cut(victim, Way.CONTROL)
    pause(seconds)
    network.heal(victim)
    scene.await_back(victim)
    return scene.deed(f"kept {victim} and the controller from hearing each other for {seconds:.1f} s")


def kill_controller(scene: Scene) -> Deed:
    _kill_controller(scene)
    _await_successor(scene)
    scene.await_training()
    return scene.deed("killed the controller")


def blind(scene: Scene) -> Deed:
    victim = scene.member()
    _kill_controller(scene)
    scene.stage.signal_node(victim, signal.SIGKILL)
    return scene.deed(f"killed the controller, then {victim}")


def _kill_controller(scene: Scene) -> None:
    os.kill(scene.stage.controller(), signal.SIGKILL)


def _await_successor(scene: Scene) -> None:
    old = scene.stage.controller()
    scene.stage.expect(lambda: scene.stage.controller() != old, what="another controller")
    scene.stage.seen()


def lock_database(scene: Scene) -> Deed:
    """Mostly for less than the controller waits, sometimes for longer."""
    seconds = scene.between(0.5, 4.0) if scene.strike.picks[1] < 0.7 else 7.0
    scene.stage.setting.database.hold_lock(seconds)
    scene.await_training()
    return scene.deed(f"held the database's lock for {seconds:.1f} s")


def restart_database(scene: Scene) -> Deed:
    database, seconds = scene.stage.setting.database, scene.between(0.2, 3.0)
    assert isinstance(database, Server)
    database.refuse_for(seconds)
    scene.await_training()
    return scene.deed(f"the database was away for {seconds:.1f} s")


def fill_disk(scene: Scene) -> Deed:
    """A checkpoint fails and says so; once there is room, the next is sealed."""
    assert scene.disk is not None
    before = {each["request"] for each in _checkpoints(scene)}
    scene.disk.fill()
    try:
        scene.stage.ask(lambda admin: admin.take_checkpoint(BY))
        scene.stage.expect(
            lambda: [
                each
                for each in _checkpoints(scene)
                if each["request"] not in before and each["state"] == "failed" and each["reason"]
            ],
            what="a checkpoint that fails on a full disk, with a reason",
        )
        scene.await_training()
    finally:
        scene.disk.free()
    _seal(scene)
    return scene.deed("filled the disk of the checkpoints, then made room")


def tear(scene: Scene) -> Deed:
    folder = Path(_seal(scene)["path"])
    shard = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    os.truncate(shard, int(shard.stat().st_size * (0.1 + 0.8 * scene.strike.picks[1])))
    killed = pair(scene)
    return replace(killed, words=f"cut {folder.name}/{shard.name} short, then {killed.words}")


def _seal(scene: Scene) -> rows.Row:
    """A checkpoint, taken now; the old one may be taken again on its own account."""
    before = {each["request"] for each in _checkpoints(scene) if each["state"] == "sealed"}
    scene.stage.ask(lambda admin: admin.take_checkpoint(BY))
    sealed = scene.stage.expect(
        lambda: [
            each
            for each in _checkpoints(scene)
            if each["request"] not in before and each["state"] == "sealed"
        ],
        what="a sealed checkpoint",
    )
    return max(sealed, key=lambda each: int(each["step"]))


def _checkpoints(scene: Scene) -> list[rows.Row]:
    return [rows.checkpoint(each) for each in scene.stage.seen().checkpoints]


STRIKES: dict[Kind, Callable[[Scene], Deed]] = {
    Kind.KILL: kill,
    Kind.FREEZE: freeze,
    Kind.BLINK: blink,
    Kind.TRAINER: kill_trainer,
    Kind.STEP: in_phase(STEP_PHASES),
    Kind.OPTIMIZER: in_phase(("optimizer",)),
    Kind.CHECKPOINT: in_phase(("checkpoint",)),
    Kind.RECOVERY: in_recovery,
    Kind.TWO: two,
    Kind.PAIR: pair,
    Kind.RACK: lose_rack,
    Kind.SPARES: exhaust,
    Kind.FLAPPING: flap,
    Kind.SLOW: slow,
    Kind.NAN: make_nan,
    Kind.BITFLIP: flip_bit,
    Kind.CUT: cut(Way.BOTH),
    Kind.CUT_OUT: cut(Way.OUT),
    Kind.CUT_IN: cut(Way.IN),
    Kind.CUT_CONTROL: cut_control,
    Kind.CONTROLLER: kill_controller,
    Kind.BLIND: blind,
    Kind.LOCKED: lock_database,
    Kind.RESTARTED: restart_database,
    Kind.DISK: fill_disk,
    Kind.TORN: tear,
}
