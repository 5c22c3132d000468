"""The promises, checked: after every event that a controller stores, after every step that a trainer commits.

L1 samples once, L2 state, L4 one generation per step: `truth.py`, at each commit of a trainer; here for the ledger.
L3 committed is committed, L5 redundancy or an open incident, L8 reasons, L9 limits, and the core's own invariants:
here, on the state after each event. What was stored is also what a restarted controller must find.
Next: `seeds.py`, which adds that everything comes back once nothing goes wrong any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.controller.ledger import LEDGER_FILE
from orchestrator.controller.ledger_lines import read_records
from orchestrator.core import actions, roster
from orchestrator.core.events import ControllerStarted, Event, JobSubmitted
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import GenerationNumber, IncidentId, NodeId
from orchestrator.core.invariants import check, check_growth
from orchestrator.core.measurements import StepRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import (
    NO_GENERATION,
    Checkpoint,
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    Health,
    Incident,
    IncidentKind,
    Job,
    JobState,
    Node,
)
from simulation import telling
from simulation.timeline import Timeline
from simulation.truth import LawBroken, Truth

THIN_SECONDS = 5.0
"""An expert on too few replicas for longer than this, with no open incident, is a lie."""
WORDS_AT_LEAST = 3
"""A reason of fewer words says nothing."""
INBOX_LIMIT = 512
DRASTIC = (actions.Fence, actions.RestartTrainer, actions.StopNode, actions.EndJob)
"""Orders that end processes or the job."""


@dataclass(slots=True)
class Stored:
    """What a restarted controller must find: the entities of all commits so far."""

    job: Job | None
    nodes: dict[NodeId, Node]
    health: dict[NodeId, Health]
    generations: dict[GenerationNumber, Generation]
    incidents: dict[IncidentId, Incident]
    checkpoints: dict[str, Checkpoint]


class Laws:
    """The watcher of one world."""

    def __init__(self, spec: JobSpec, truth: Truth, timeline: Timeline) -> None:
        self.events = 0
        """Handled so far."""
        self._spec = spec
        self._truth = truth
        self._timeline = timeline
        self._stored = Stored(None, {}, {}, {}, {}, {})
        self._in_charge = ""
        self._generation = NO_GENERATION
        self._committed = 0
        self._thin_since: float | None = None
        self._held: dict[NodeId, tuple[str, tuple[HeldShard, ...]]] = {}
        """Which agent process held what in memory, as the controller knew before the event."""
        self._restored: set[GenerationNumber] = set()
        self._seen: tuple[object, object, object] = (self, self, self)
        """Both generations and the spec at the last check."""

    @property
    def incidents(self) -> int:
        """Opened so far."""
        return len(self._stored.incidents)

    # ---- the controller ----

    def stored(self, who: str, state: ClusterState, event: Event, outcome: Outcome, waiting: int) -> None:
        """An event was handled and its outcome committed; nothing has been performed yet."""
        self.events += 1
        if outcome.empty and who != self._in_charge:
            return  # it was stopped, and does not know yet that another is in charge; nothing was stored
        broken = list(self._explained(outcome))
        for change in outcome.changes:
            self._remember(change)
        for line in telling.lines(outcome):
            self._timeline.say(who, line)
        if isinstance(event, JobSubmitted):
            self._generation = NO_GENERATION
        elif isinstance(event, ControllerStarted):
            self._committed = (
                0  # what another one heard since this one loaded its state, it has to hear again
            )
        self._check_core(state)
        self._generation = check_growth(self._generation, state)
        before = self._committed
        broken += self._committed_stays(state, outcome)
        broken += self._redundancy_or_says_so(state, event.at)
        broken += _bounded(state, self._spec, waiting)
        broken += self._newest_is_restored(state, outcome, before)
        self._held = {node: (state.nodes[node].incarnation, view.held) for node, view in state.views.items()}
        if broken:
            raise LawBroken(f"after {type(event).__name__}: " + "; ".join(broken))

    def loaded(self, who: str, state: ClusterState) -> None:
        """A controller begins with what the database holds; how far training is, it has to hear again."""
        self._in_charge = who
        known = self._stored
        self._committed = 0
        if (state.job, state.nodes) != (known.job, known.nodes):
            raise LawBroken("a restarted controller found another job or other nodes than were stored")
        if state.health != known.health:
            raise LawBroken("a restarted controller found another history of nodes than was stored")
        for incident in known.incidents.values():
            if state.incidents.get(incident.id) != incident:
                raise LawBroken(f"{incident.id} was stored and is not what a restarted controller found")
        begun = [each for each in known.generations.values() if each.began_at is not None]
        newest = max(begun, key=lambda each: each.number, default=None)
        if state.generation != newest:
            raise LawBroken(f"a restarted controller found generation {state.generation}, not {newest}")

    # ---- the ledger ----

    def recorded(self, record: StepRecord) -> None:
        """A step report is about to enter the ledger: it must have been committed, each sample once."""
        size = self._spec.batch.microbatches * self._spec.batch.microbatch_size
        first = (record.step - 1) * size
        if sorted(record.sample_ids) != list(range(first, first + size)):
            raise LawBroken(f"L1: step {record.step} was reported with the samples {record.sample_ids}")
        if record.generation not in self._truth.reported_by.get(record.step, ()):
            raise LawBroken(
                f"step {record.step} was reported by generation {record.generation}, which never committed it"
            )

    def check_ledger(self, folder: Path) -> int:
        """Every line of the file: in order, committed, and not of a future that was set aside. Its last step."""
        end = 0
        highest = max(self._truth.restores, default=0)
        for record in read_records(folder / LEDGER_FILE):
            if record.step != end + 1:
                raise LawBroken(f"the ledger has step {record.step} after step {end}")
            self.recorded(record)
            if self._truth.set_aside(record.step, record.generation, min(highest, self._generation)):
                raise LawBroken(
                    f"L4: the ledger holds step {record.step} of generation {record.generation}, "
                    "which a restore has set aside"
                )
            end = record.step
        return end

    # ---- the laws about the state ----

    def _check_core(self, state: ClusterState) -> None:
        """The core's own invariants."""
        values = (state.generation, state.planned, state.job and state.job.spec)
        check(
            state, same_generations=all(one is other for one, other in zip(values, self._seen, strict=True))
        )
        self._seen = values

    def _committed_stays(self, state: ClusterState, outcome: Outcome) -> Iterator[str]:
        """L3: what is known to be committed goes back only with a restore that says so."""
        stated = any(isinstance(each, actions.RollBackLedger) for each in outcome.actions)
        if state.committed < self._committed and not stated and state.generation is not None:
            yield f"L3: committed went from step {self._committed} back to {state.committed} without a word"
        self._committed = state.committed
        if state.committed > self._truth.newest:
            yield f"step {state.committed} counts as committed, and nobody has committed it"

    def _newest_is_restored(self, state: ClusterState, outcome: Outcome, committed: int) -> Iterator[str]:
        """A restore loses no step that a whole snapshot at living agents, or a sealed checkpoint, still has."""
        for change in outcome.changes:
            if not isinstance(change, Generation) or change.kind is not GenerationKind.RESTORE:
                continue
            if change.began_at != change.created_at or change.number in self._restored:
                continue
            self._restored.add(change.number)
            sealed = (each for each in state.checkpoints.values() if each.state is CheckpointState.SEALED)
            best = max((each.step for each in sealed), default=0)
            best = max((best, *self._whole_steps(state, committed, change.number)))
            if change.restore_step < best:
                yield (
                    f"generation {change.number} goes back to step {change.restore_step}, and step {best} is saved"
                )

    def _whole_steps(self, state: ClusterState, committed: int, number: GenerationNumber) -> Iterator[int]:
        """Steps of the snapshots that living agents hold whole, refused ones and set-aside ones left out."""
        held: dict[tuple[int, int], set[int]] = {}
        shards: dict[tuple[int, int], int] = {}
        for node, view in state.views.items():
            incarnation, known = self._held.get(node, ("", ()))
            lives = view.connected and incarnation == state.nodes[node].incarnation
            for each in known if lives else ():
                if each.name in state.memory.refused_snapshots or each.step > committed:
                    continue
                held.setdefault((each.step, each.generation), set()).add(each.rank)
                shards[each.step, each.generation] = each.shards
        for (step, generation), ranks in held.items():
            if len(ranks) == shards[step, generation] and not self._truth.set_aside(
                step, generation, number - 1
            ):
                yield step

    def _redundancy_or_says_so(self, state: ClusterState, at: float) -> Iterator[str]:
        """L5: an expert on too few replicas has an open incident that is about it."""
        generation, job = state.generation, state.job
        if generation is None or job is None or job.state is not JobState.RUNNING:
            self._thin_since = None
            return
        nodes = roster.nodes_by_rank(generation)
        wanted = min(job.spec.cluster.replicas, job.spec.cluster.nodes)
        thin = [e for e, ranks in enumerate(generation.placement) if len({nodes[r] for r in ranks}) < wanted]
        if not thin or any(not each.closed for each in state.incidents.values()):
            self._thin_since = None
            return
        self._thin_since = at if self._thin_since is None else self._thin_since
        if at - self._thin_since > THIN_SECONDS:
            yield (
                f"L5: experts {thin} have fewer than {wanted} replicas for {at - self._thin_since:.1f} s, "
                "and no incident is open"
            )

    def _explained(self, outcome: Outcome) -> Iterator[str]:
        """L8: every new generation, every incident and every drastic order says why."""
        for change in outcome.changes:
            if isinstance(change, Generation):
                if change.number not in self._stored.generations and not outcome.reasons:
                    yield f"L8: generation {change.number} came without a word"
                if len(change.reason.split()) < WORDS_AT_LEAST:
                    yield f"L8: generation {change.number} says only {change.reason!r}"
            elif isinstance(change, Incident):
                yield from _incident_explained(change)
                if change.id not in self._stored.incidents and not outcome.reasons:
                    yield f"L8: {change.id} was opened without a word"
        for action in outcome.actions:
            if isinstance(action, DRASTIC) and len(action.reason.split()) < WORDS_AT_LEAST:
                yield f"L8: {type(action).__name__} says only {action.reason!r}"

    def _remember(self, change: Job | Node | Health | Generation | Incident | Checkpoint) -> None:
        match change:
            case Job():
                self._stored.job = change
            case Node():
                self._stored.nodes[change.id] = change
            case Generation():
                self._stored.generations[change.number] = change
                if change.kind is GenerationKind.RESTORE:
                    self._truth.restores[change.number] = change.restore_step
            case Health():
                self._stored.health[change.node] = change
            case Incident():
                self._stored.incidents[change.id] = change
            case Checkpoint():
                self._stored.checkpoints[change.request] = change


def _incident_explained(incident: Incident) -> Iterator[str]:
    if not all(incident.reasons) or not incident.cause:
        yield f"L8: {incident.id} does not say why"
    if incident.decided_at is not None and not incident.action:
        yield f"L8: {incident.id} was decided, and does not say how"
    withdrawn = incident.kind is IncidentKind.DRAIN
    if incident.closed and incident.decided_at is None and not withdrawn:
        yield f"L8: {incident.id} is closed, and nothing was decided"


def _bounded(state: ClusterState, spec: JobSpec, waiting: int) -> Iterator[str]:
    """L9: what a controller keeps in memory has a limit."""
    seats = (spec.cluster.nodes + spec.cluster.spares) * spec.cluster.devices_per_node
    memory = state.memory
    sizes = (
        ("inbox", waiting, INBOX_LIMIT),
        ("acquisitions", len(state.acquisitions), seats),
        ("failed copies", len(memory.acquire_failures), seats),
        ("fenced starts", len(memory.fenced_starts), seats),
        ("refused trainers", len(memory.refused), seats),
        ("members that ended", len(memory.ended), seats),
        ("step times", len(memory.step_seconds), 64),
        ("checks", len(memory.checks), seats),
        ("health", len(state.health), spec.cluster.nodes + spec.cluster.spares),
    )
    for name, size, limit in sizes:
        if size > limit:
            yield f"L9: {name}: {size}, the limit is {limit}"
