"""Stories as text: commands, a line of dashes, then what the core answered. Read, played, and written back.

A transcript is blocks separated by blank lines. A block is comment lines (`#`), command lines, `----`, and the answer
with the second of each line. Commands are one word and its arguments (`COMMANDS`); time passes only by `run`.
Next: `transcripts/*.txt`, the stories; `test_transcripts.py`, which compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.core import events
from orchestrator.core.events import Event
from orchestrator.core.ids import NodeId, Step, TrainerId, node_of
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import (
    BatchSpec,
    CheckpointMode,
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    PipelineSpec,
    RecoverySpec,
    ReplicaLayout,
    SnapshotSpec,
    TimeoutMode,
    TimeoutSpec,
)
from orchestrator.core.state import CheckpointState
from simulation import telling
from tests.scenarios.world import World

RULE = "----"
ANSWERS_AT_MOST = 200
"""A block that says more than this is not a story any more."""


@dataclass(slots=True, kw_only=True)
class Block:
    """A part of a story; `told` is what the file says, `answered` what came."""

    head: list[str] = field(default_factory=list)
    """Comments and commands."""
    told: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    @property
    def commands(self) -> list[str]:
        return [line for line in self.head if line and not line.startswith("#")]


def read(text: str) -> list[Block]:
    """The blocks of a transcript."""
    blocks: list[Block] = []
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.splitlines()
        rule = lines.index(RULE) if RULE in lines else len(lines)
        blocks.append(Block(head=lines[:rule], told=lines[rule + 1 :]))
    return blocks


def write(blocks: list[Block]) -> str:
    """The transcript with what was answered."""
    paragraphs = []
    for block in blocks:
        answer = [RULE, *block.answered] if block.commands else []
        paragraphs.append("\n".join([*block.head, *answer]))
    return "\n\n".join(paragraphs) + "\n"


def play(blocks: list[Block]) -> World:
    """Play a story; what the core answers goes to the blocks. Returns the world as it is at the end."""
    stage = _Stage()
    for block in blocks:
        stage.answers = block.answered
        for command in block.commands:
            stage.do(command)
        assert len(block.answered) <= ANSWERS_AT_MOST, f"{block.commands} says too much"
    assert stage.made is not None, "a story begins with `job`"
    return stage.made


FAST = RecoverySpec(
    quarantine_seconds=10.0,
    quarantine_limit_seconds=40.0,
    mass_failure_wait_seconds=10.0,
    straggler_seconds=4.0,
)
"""Patience for stories: what takes minutes in the defaults takes seconds."""


AT_ONCE_SECONDS = 1e-3
"""Between two checkpoints: whenever the core is asked, one is due."""


def small_job(recovery: RecoverySpec | None = None, **settings: int) -> JobSpec:
    """Four nodes and a spare with four experts in a ring, unless told otherwise.

    Checkpoints are taken when a story says so; with `auto`, by the core's own choice, every so many seconds at most.
    With `memory`, agents hold snapshots, taken by the core's own choice every so many seconds at most. With `patient=0`
    time-outs follow what is observed. With `racks`, nodes stand in so many, those of a rack one after the other.
    """
    chosen = {"nodes": 4, "spares": 1, "devices": 1, "replicas": 2, "experts": 4, "steps": 1000, "keep": 3}
    chosen |= {"stages": 1, "layers": 3, "auto": 0, "memory": 0, "patient": 1, "racks": 0}
    unknown = set(settings) - set(chosen)
    assert not unknown, f"{sorted(unknown)} are no settings of a job"
    chosen |= settings
    return JobSpec(
        name="story",
        data=DataSpec(path="stdlib"),
        steps=chosen["steps"],
        cluster=ClusterSpec(
            nodes=chosen["nodes"],
            spares=chosen["spares"],
            devices_per_node=chosen["devices"],
            replicas=chosen["replicas"],
            replica_layout=ReplicaLayout.RING,
        ),
        pipeline=PipelineSpec(stages=chosen["stages"]),
        batch=BatchSpec(microbatches=6),
        model=ModelSpec(experts=chosen["experts"], layers=chosen["layers"]),
        checkpoint=CheckpointSpec(
            interval=CheckpointMode.AUTO if chosen["auto"] else CheckpointMode.FIXED,
            interval_seconds=chosen["auto"] or AT_ONCE_SECONDS,
            keep=chosen["keep"],
        ),
        snapshot=SnapshotSpec(interval_seconds=chosen["memory"] or SnapshotSpec().interval_seconds),
        timeouts=TimeoutSpec(mode=TimeoutMode.FIXED if chosen["patient"] else TimeoutMode.AUTO),
        recovery=recovery or RecoverySpec(),
    )


class _Stage:
    """Where a story is played."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.made: World | None = None

    @property
    def world(self) -> World:
        assert self.made is not None, "a story begins with `job`"
        return self.made

    def do(self, command: str) -> None:
        name, *words = command.split()
        assert name in COMMANDS, f"{name!r} is no command; known are {', '.join(sorted(COMMANDS))}"
        COMMANDS[name](self, *words)

    def answer(self, line: str) -> None:
        self.answers.append(f"{self.world.at:6.2f} {line}")

    def listen(self, event: Event, outcome: Outcome) -> None:
        for line in telling.lines(outcome):
            self.answer(line)

    # ---- the job and the clock ----

    def job(self, *settings: str) -> None:
        pairs = dict(setting.split("=") for setting in settings)
        recovery = {"fast": FAST, None: None}[pairs.pop("recovery", None)]
        spec = small_job(recovery, **{name: int(value) for name, value in pairs.items()})
        self.made = World(spec, self.listen)
        self.made.agents.with_memory = "memory" in pairs
        self.made.agents.racks = int(pairs.get("racks", 0))

    def start(self) -> None:
        self.world.start_job()

    def resume(self) -> None:
        self.world.start_job(resume=True)

    def run(self, seconds: str) -> None:
        self.world.run(float(seconds))

    def show(self) -> None:
        for line in telling.state_lines(self.world.state):
            self.answer(line)

    def incidents(self) -> None:
        for incident in self.world.state.incidents.values():
            self.answer(telling.incident_line(incident))

    # ---- failures ----

    def kill(self, name: str, how: str = "") -> None:
        if "/" in name:
            self.world.kill_trainer(TrainerId(name), again=how != "for-good")
        else:
            self.world.kill_node(NodeId(name))

    def stop(self, name: str) -> None:
        if "/" in name:
            self.world.stop_trainer(TrainerId(name))
        else:
            self.world.stop_node(NodeId(name))

    def wake(self, name: str) -> None:
        self.world.wake_node(NodeId(name))

    def cut(self, name: str) -> None:
        self.world.cut(NodeId(name))

    def heal(self, name: str) -> None:
        self.world.heal(NodeId(name))

    def lose_touch(self, name: str) -> None:
        self.world.break_communication(TrainerId(name))

    def damage(self) -> None:
        """The newest checkpoint rots."""
        sealed = [
            each for each in self.world.disk.checkpoints.values() if each.state is CheckpointState.SEALED
        ]
        newest = max(sealed, key=lambda each: each.step)
        self.world.damage(newest.name)
        self.answer(f"({newest.name} rots)")

    def refuse(self, name: str, *reason: str) -> None:
        """A trainer that has not started yet will not run this job."""
        agent = self.world.agents.alive[node_of(TrainerId(name))]
        agent.trainers[TrainerId(name)].refuses = " ".join(reason)

    def fail_copies(self, name: str) -> None:
        self.world.agents.fail_acquisitions.add(TrainerId(name))

    def overtake_copies(self, name: str) -> None:
        self.world.agents.overtake_acquisitions.add(TrainerId(name))

    def fail_writes(self, name: str) -> None:
        self.world.training.fail_checkpoints.add(TrainerId(name))

    def slow_seals(self) -> None:
        """Orders to seal a checkpoint are carried out when things are mended."""
        self.world.agents.slow_seals = []

    def mend(self) -> None:
        """Copies, writes, seals, answers and starts are as they should be again, and nobody is slow."""
        self.world.agents.wrong.clear()
        self.world.agents.slowness.clear()
        self.world.barren.clear()
        self.world.agents.fail_acquisitions.clear()
        self.world.agents.overtake_acquisitions.clear()
        self.world.agents.seal_what_waits()
        self.world.training.fail_checkpoints.clear()

    def slow(self, name: str, times: str) -> None:
        """A node needs so many times as long for its work."""
        self.world.agents.slowness[NodeId(name)] = float(times)

    def stall(self, seconds: str) -> None:
        """Training stands still for so long, from now on, whenever state is saved."""
        self.world.agents.stall_seconds = float(seconds)

    def wrong(self, name: str) -> None:
        """A trainer computes wrong answers in pair checks."""
        self.world.agents.wrong.add(TrainerId(name))

    def scan(self) -> None:
        """The timer that compares members."""
        self.world.say(events.RedundancyScanDue)

    def cannot_start(self, name: str) -> None:
        """Starts of a node lead nowhere from now on."""
        self.world.barren.add(NodeId(name))

    def not_finite(self, name: str) -> None:
        """A member's loss is not a number."""
        agent = self.world.agents.alive[node_of(TrainerId(name))]
        trainer = agent.trainers[TrainerId(name)]
        trainer.broken = trainer.joined
        self.world.agents.report(
            agent,
            trainer,
            events.StateRefused,
            generation=trainer.joined,
            step=trainer.step,
            reason="the loss is nan",
            not_finite=True,
        )

    def flip(self, name: str, part: str, when: str = "") -> None:
        """A bit of a member's replica; `now` for within the step that it computes."""
        trainer = self.world.agents.alive[node_of(TrainerId(name))].trainers[TrainerId(name)]
        trainer.wrong[part] = f"bad-{name}"
        if when == "now":
            trainer.changed.add(part)

    def redo(self, name: str = "") -> None:
        """A step was computed twice, because numbers of a member, or of nobody in particular, were none."""
        generation = self.world.disk.generations[self.world.training.newest]
        seated = {member.trainer: member for member in generation.members}
        for trainer in seated:
            agent = self.world.agents.alive[node_of(trainer)]
            self.world.agents.report(
                agent,
                agent.trainers[trainer],
                events.StepRedone,
                generation=generation.number,
                step=Step(self.world.training.committed + 1),
                rank=seated[TrainerId(name)].rank if name else None,
                seconds=0.25,
            )

    def freeze(self) -> None:
        """Nobody commits a step, although everybody looks alive."""
        self.world.training.paused = True

    def thaw(self) -> None:
        self.world.training.paused = False

    def controller(self, what: str) -> None:
        {"stop": self.world.stop_controller, "start": self.world.start_controller}[what]()

    def agent(self, name: str) -> None:
        """A new agent process on a node whose last one is gone."""
        self.world.agents.start(NodeId(name))

    # ---- people and timers ----

    def drain(self, name: str) -> None:
        self.world.say(events.DrainRequested, node=NodeId(name), by="ada")

    def cordon(self, name: str) -> None:
        self.world.say(events.CordonRequested, node=NodeId(name), by="ada")

    def uncordon(self, name: str) -> None:
        self.world.say(events.UncordonRequested, node=NodeId(name), by="ada")

    def resize(self, nodes: str, spares: str) -> None:
        self.world.say(events.ResizeRequested, nodes=int(nodes), spares=int(spares), by="ada")

    def checkpoint(self) -> None:
        self.world.say(events.CheckpointRequested, by="ada")

    def end(self) -> None:
        self.world.say(events.StopRequested, by="ada")

    def interval(self) -> None:
        self.world.say(events.CheckpointDue)


_ABOUT_THE_JOB = ("job", "start", "resume", "run", "show", "incidents", "controller", "interval")
_FAILURES = (
    "kill",
    "stop",
    "wake",
    "cut",
    "heal",
    "lose_touch",
    "damage",
    "refuse",
    "not_finite",
    "flip",
    "redo",
    "freeze",
    "thaw",
)
_BAD_LUCK = (
    "fail_copies",
    "overtake_copies",
    "fail_writes",
    "slow_seals",
    "mend",
    "agent",
    "slow",
    "stall",
    "wrong",
    "scan",
    "cannot_start",
)
_PEOPLE = ("drain", "cordon", "uncordon", "resize", "checkpoint", "end")
COMMANDS: dict[str, Callable[..., None]] = {
    name.replace("_", "-"): getattr(_Stage, name)
    for name in (*_ABOUT_THE_JOB, *_FAILURES, *_BAD_LUCK, *_PEOPLE)
}
