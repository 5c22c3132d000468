"""What is true of the state between any two events, whatever happens: the laws that the other modules keep.

`check` is run after every event in tests and simulations, `check_generations` also in production, on every outcome that
holds a generation: a wrong one must not be stored, let alone sent. Both say in words what is broken, and only read.
Next: `machine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from orchestrator.core import roster
from orchestrator.core.checkpoints import UNFINISHED
from orchestrator.core.decision import ENDED
from orchestrator.core.ids import GenerationNumber, node_of
from orchestrator.core.state import (
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    Incident,
    JobState,
    NodeState,
)


class InvariantViolation(AssertionError):
    """The core has broken one of its own laws: a bug, never an input."""


def check(state: ClusterState, *, same_generations: bool = False) -> None:
    """Raises InvariantViolation with the laws that do not hold.

    `same_generations`: both generations and the spec are the very values of the last check. They cannot change, so what
    is true of them alone is not looked at again.
    """
    laws = LAWS[len(_OF_GENERATIONS_ALONE) :] if same_generations else LAWS
    broken = [text for law in laws for text in law(state)]
    if broken:
        raise InvariantViolation("; ".join(broken))


def check_generations(state: ClusterState, new: Iterable[Generation]) -> None:
    """The laws whose breach would be sent to trainers. Raises InvariantViolation before anything is stored."""
    broken = [text for generation in new for text in _is_whole(state, generation)]
    broken += _one_is_in_force(state)
    if broken:
        raise InvariantViolation("; ".join(broken))


def check_growth(before: GenerationNumber, state: ClusterState) -> GenerationNumber:
    """Generation numbers never go back. Returns the newest number, for the next call."""
    newest = max(
        (each.number for each in (state.generation, state.planned) if each is not None), default=before
    )
    if newest < before:
        raise InvariantViolation(f"generation {newest} came after generation {before}")
    return newest


def _generations_are_whole(state: ClusterState) -> Iterator[str]:
    """Dense ranks, each trainer once, every expert held, each microbatch dealt once."""
    for generation in (state.generation, state.planned):
        if generation is not None:
            yield from _is_whole(state, generation)


def _is_whole(state: ClusterState, generation: Generation) -> Iterator[str]:
    name = f"generation {generation.number}"
    ranks = [member.rank for member in generation.members]
    if ranks != list(range(len(ranks))):
        yield f"{name} has ranks {ranks}"
    if len(roster.seats_by_trainer(generation)) != len(ranks):
        yield f"{name} seats a trainer twice"
    if generation.members:
        yield from _work_is_dealt(state, generation, name)


def _work_is_dealt(state: ClusterState, generation: Generation, name: str) -> Iterator[str]:
    assert state.job is not None
    spec = state.job.spec
    if len(generation.deal) != len(generation.members):
        yield f"{name} deals microbatches to {len(generation.deal)} of {len(generation.members)} ranks"
        return
    for stage in range(spec.pipeline.stages):
        shares = zip(generation.members, generation.deal, strict=True)
        dealt = [index for each, mine in shares if each.stage == stage for index in mine]
        if sorted(dealt) != list(range(spec.batch.microbatches)):
            yield f"{name} deals microbatches {sorted(dealt)} to stage {stage}"
    if len(generation.placement) != spec.all_experts:
        yield f"{name} places {len(generation.placement)} of {spec.all_experts} experts"
    nodes = roster.nodes_by_rank(generation)
    stage_of = [each.stage for each in generation.members]
    for expert, ranks in enumerate(generation.placement):
        if not ranks:
            yield f"{name} has nobody for expert {expert}"
        elif min(ranks) < 0 or max(ranks) >= len(nodes):
            yield f"{name} places expert {expert} on ranks {ranks} of {len(nodes)}"
        elif {stage_of[rank] for rank in ranks} != {expert // spec.model.experts}:
            yield f"{name} places expert {expert} on ranks {ranks} of other stages"
        elif len({nodes[rank] for rank in ranks}) != len(ranks):
            yield f"{name} has two replicas of expert {expert} on one node"


def _one_is_in_force(state: ClusterState) -> Iterator[str]:
    """At most one generation is planned, above the one in force; those who joined are members."""
    generation, planned = state.generation, state.planned
    if generation is None:
        if planned is not None or state.joined:
            yield "there is a planned generation or somebody has joined, and no generation is in force"
        return
    if generation.began_at is None:
        yield f"generation {generation.number} is in force and has not begun"
    if planned is not None:
        if planned.number <= generation.number:
            yield f"planned generation {planned.number} is not above {generation.number}"
        if planned.kind is not GenerationKind.PLANNED or planned.began_at is not None:
            yield f"generation {planned.number} is planned, yet {planned.kind.value} or begun"
        if state.acquisitions or state.memory.repair is not None:
            yield f"copies are under way while generation {planned.number} is planned"
    strangers = state.joined - roster.seats_by_trainer(generation).keys()
    if strangers:
        yield f"{sorted(strangers)} joined generation {generation.number} without a seat"


def _members_are_alive(state: ClusterState) -> Iterator[str]:
    """A node that was given up has no seat, and a node's state says whether it has one."""
    if state.job is None or state.job.state in (*ENDED, JobState.PENDING):
        return
    if state.generation is None:
        yield f"the job is {state.job.state.value} without a generation"
        return
    seated = {node_of(member.trainer) for member in state.generation.members}
    for node in state.nodes.values():
        if node.id in seated and node.state in (NodeState.DEAD, NodeState.REQUESTED, NodeState.SPARE):
            yield f"{node.id} is {node.state.value} and has a seat"
        elif node.id not in seated and node.state in (NodeState.ACTIVE, NodeState.DRAINING):
            yield f"{node.id} is {node.state.value} and has no seat"
        if node.id not in state.views:
            yield f"{node.id} has no view"
    missing = seated - set(state.nodes)
    if missing:
        yield f"{sorted(missing)} have seats and are not known"
    if state.planned is not None:
        for member in state.planned.members:
            if state.nodes[node_of(member.trainer)].state is NodeState.DEAD:
                yield f"planned generation {state.planned.number} seats {member.trainer} on a dead node"


def _copies_have_a_purpose(state: ClusterState) -> Iterator[str]:
    """Acquisitions serve the repair of the generation in force, by living nodes."""
    if state.acquisitions and state.memory.repair is None:
        yield "copies are under way for no repair"
    for acquisition in state.acquisitions.values():
        if state.generation is None or acquisition.generation != state.generation.number:
            yield f"{acquisition.id} belongs to generation {acquisition.generation}"
        if state.nodes[node_of(acquisition.trainer)].state is NodeState.DEAD:
            yield f"{acquisition.id} copies to {acquisition.trainer} on a dead node"


def _incidents_are_ordered(state: ClusterState) -> Iterator[str]:
    """The phases of an incident come one after the other."""
    for incident in state.incidents.values():
        times = _phases(incident)
        if times != sorted(times):
            yield f"{incident.id} has its phases out of order: {times}"
        if incident.restored_at is not None and incident.restored_at < incident.detected_at:
            yield f"{incident.id} ended before it was detected"
        if incident.closed and incident.degraded:
            yield f"{incident.id} is closed and degraded"
        if not incident.reasons:
            yield f"{incident.id} does not explain itself"
        if state.job is None or int(incident.id.rpartition("-")[2]) >= state.job.next_incident:
            yield f"{incident.id} was not numbered by the job"


def _phases(incident: Incident) -> list[float]:
    """Those that have been reached."""
    phases = (
        incident.first_sign_at,
        incident.detected_at,
        incident.decided_at,
        incident.regrouped_at,
        incident.first_commit_at,
    )
    return [at for at in phases if at is not None]


def _checkpoints_are_sound(state: ClusterState) -> Iterator[str]:
    """One at a time; a sealed one has a name and a place."""
    unfinished = [each.request for each in state.checkpoints.values() if each.state in UNFINISHED]
    if len(unfinished) > 1:
        yield f"checkpoints {unfinished} are taken at the same time"
    for checkpoint in state.checkpoints.values():
        if checkpoint.state is CheckpointState.SEALED and not (
            checkpoint.name and checkpoint.path and checkpoint.sealed_at
        ):
            yield f"{checkpoint.request} is sealed without name, path or time"


def _ledger_is_behind(state: ClusterState) -> Iterator[str]:
    """Nobody reports a step that is not committed."""
    if state.generation is not None and state.reported_through > state.committed:
        yield f"the ledger ends at step {state.reported_through}, and step {state.committed} is the last committed"


_OF_GENERATIONS_ALONE: tuple[Callable[[ClusterState], Iterator[str]], ...] = (_generations_are_whole,)
LAWS: tuple[Callable[[ClusterState], Iterator[str]], ...] = (
    *_OF_GENERATIONS_ALONE,
    _one_is_in_force,
    _members_are_alive,
    _copies_have_a_purpose,
    _incidents_are_ordered,
    _checkpoints_are_sound,
    _ledger_is_behind,
)
