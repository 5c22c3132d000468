"""How an outcome reads in a transcript: its reasons, the actions that matter, and every new generation.

Only wording: for timelines and transcripts; people in production read the same reasons through the CLI.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core import actions
from orchestrator.core.outcome import Outcome
from orchestrator.core.placement import Placement
from orchestrator.core.state import ClusterState, Generation, GenerationKind, Incident


def lines(outcome: Outcome) -> Iterator[str]:
    """What a reader wants to know of one outcome."""
    for reason in outcome.reasons:
        yield f"{reason.incident}: {reason.text}" if reason.incident else reason.text
    for entity in outcome.changes:
        planned = isinstance(entity, Generation) and entity.kind is GenerationKind.PLANNED
        if isinstance(entity, Generation) and (entity.began_at is None or not planned):
            yield from generation_lines(entity)
    yield from _action_lines(outcome.actions)


def generation_lines(generation: Generation) -> Iterator[str]:
    """A generation in two lines: who (in a pipeline, in which stage), and who holds what."""
    staged = any(member.stage for member in generation.members)
    members = (
        " ".join(
            f"{member.rank}={member.trainer}{f'@{member.stage}' if staged else ''}"
            for member in generation.members
        )
        or "nobody"
    )
    source = (
        f" from {generation.restore_name or 'the seed state'}" if generation.kind.value == "restore" else ""
    )
    yield f"=> generation {generation.number} {generation.kind.value}{source}: {members}"
    if generation.members:
        deal = " ".join("+".join(map(str, indices)) or "-" for indices in generation.deal)
        yield f"   experts {_placement(generation.placement)}   microbatches {deal}"


def incident_line(incident: Incident) -> str:
    """One incident with its phases, as seconds after the first sign."""
    phases = (
        ("detected", incident.detected_at),
        ("decided", incident.decided_at),
        ("regrouped", incident.regrouped_at),
        ("first commit", incident.first_commit_at),
        ("restored", incident.restored_at),
    )
    told = ", ".join(
        f"{name} {'never' if at is None else f'{at - incident.first_sign_at:.2f}'}" for name, at in phases
    )
    open_or = "closed" if incident.closed else "degraded" if incident.degraded else "open"
    lost = f"lost {incident.steps_lost}, redone {incident.steps_redone}"
    return f"{incident.id} {incident.kind.value} {incident.node} {open_or}: {told}; steps {lost}; {incident.action}"


def state_lines(state: ClusterState) -> Iterator[str]:
    """The job, the nodes, and the generation in force."""
    assert state.job is not None
    yield f"job {state.job.state.value} at step {state.committed}, ledger through {state.reported_through}"
    nodes = " ".join(
        f"{node.id}={node.state.value}{'/cordoned' if node.cordoned else ''}" for node in state.nodes.values()
    )
    yield f"nodes {nodes}"
    if state.generation is not None:
        yield from generation_lines(state.generation)


def _placement(placement: Placement) -> str:
    return " ".join(f"{expert}:{','.join(map(str, ranks))}" for expert, ranks in enumerate(placement))


def _action_lines(performed: tuple[actions.Action, ...]) -> Iterator[str]:
    """Actions, those of one kind to several nodes on one line; greetings and assignments go without saying."""
    together: dict[str, list[str]] = {}
    for action in performed:
        match action:
            case actions.Acquire():
                donors = "; ".join(f"{' '.join(each.parts)} from {each.trainer}" for each in action.donors)
                yield f"-> Acquire {action.trainer}: {donors}"
            case actions.RestartTrainer() | actions.SealCheckpoint() | actions.DeleteCheckpoint():
                name = getattr(action, "name", "")
                yield f"-> {type(action).__name__} {action.trainer} {name}".rstrip()
            case actions.RollBackLedger():
                yield f"-> RollBackLedger to step {action.step}"
            case actions.EndJob():
                yield f"-> EndJob {'succeeded' if action.succeeded else 'failed'}"
            case actions.Welcome() | actions.Assign():
                pass
            case _:
                together.setdefault(type(action).__name__, []).append(action.node)
    for kind, nodes in together.items():
        yield f"-> {kind} {' '.join(nodes)}"
