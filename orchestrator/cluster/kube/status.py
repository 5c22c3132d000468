"""What people see of a job with kubectl: its status, and an Event for each incident. Pure: state in, objects out.

Next: `report.py`, which writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.kube.api import Object
from orchestrator.cluster.kube.manifests import COMPONENT_LABEL, JOB_LABEL, WORKER
from orchestrator.cluster.kube.moejob import API_VERSION, KIND, MoEJob
from orchestrator.cluster.kube.sightings import stamp
from orchestrator.core import incidents, roster
from orchestrator.core.checkpoints import newest
from orchestrator.core.state import ClusterState, Incident, IncidentKind, JobState, NodeState

EVENTS_BACK_SECONDS = 3600.0
"""Incidents older than this are told to nobody again; the API server keeps Events for about as long."""
MESSAGE_LIMIT = 1000
"""Letters of an Event's message; the API server takes 1024."""
_UP = (NodeState.ACTIVE, NodeState.DRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An Event of Kubernetes to be, with a name of its own so that it is told once."""

    name: str
    warning: bool
    reason: str
    message: str
    at: float


def status(state: ClusterState, job: MoEJob, pods: int, at: float) -> Object:
    """The status of the object, without the times of its conditions (`with_times`)."""
    entity = state.job
    if entity is None:
        return invalid_or_new(job, "Pending", "the controller has begun and the job has not")
    cluster, generation = entity.spec.cluster, state.generation
    seated = len(set(roster.nodes_by_rank(generation))) if generation else 0
    spares = sum(
        1
        for node in state.nodes.values()
        if node.state is NodeState.SPARE and not node.cordoned and _connected(state, node.id)
    )
    least, wanted = _redundancy(state)
    found: Object = {
        "observedGeneration": job.version,
        "phase": entity.state.value.capitalize(),
        "reason": entity.reason[:MESSAGE_LIMIT],
        "step": int(state.committed),
        "steps": entity.spec.steps,
        "nodes": f"{seated}/{cluster.nodes}",
        "spares": f"{spares}/{cluster.spares}",
        "redundancy": f"{least}/{wanted}",
        "generation": int(generation.number) if generation else 0,
        "incidents": len(state.incidents),
        "replicas": pods,
        "selector": f"{JOB_LABEL}={job.name},{COMPONENT_LABEL}={WORKER}",
        "folder": job.pods.folder,
    }
    loss = _last_loss(state)
    if loss is not None:
        found["loss"] = round(loss, 6)
    records = incidents.in_order(state)
    if records:
        found["lastIncident"] = _incident(records[-1])
    kept = newest(state)
    if kept is not None:
        found["checkpoint"] = {"name": kept.name, "step": int(kept.step)}
    found["conditions"] = _conditions(state, least, wanted, seated, at)
    return found


def invalid_or_new(job: MoEJob | None, phase: str, reason: str, version: int = 0) -> Object:
    """The status of an object that no controller speaks for yet."""
    accepted = phase != "Invalid"
    return {
        "observedGeneration": job.version if job else version,
        "phase": phase,
        "reason": reason[:MESSAGE_LIMIT],
        "conditions": [
            _condition(
                "Accepted", accepted, "Valid" if accepted else "Invalid", reason if not accepted else ""
            )
        ],
    }


def with_times(new: Object, old: Mapping[str, Any], at: float) -> Object:
    """The new status, its conditions with the time of their last change as the old one has it."""
    before = {each["type"]: each for each in old.get("conditions") or ()}
    conditions = []
    for each in new.get("conditions") or ():
        known = before.get(each["type"])
        same = known is not None and known["status"] == each["status"]
        since = known["lastTransitionTime"] if same and known else stamp(at)
        conditions.append({**each, "lastTransitionTime": since})
    return {**new, "conditions": conditions}


def changed(new: Object, old: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a status differs at all, and whether in more than how far training has come."""
    slow = {key for key in {*new, *old} if new.get(key) != old.get(key)}
    return bool(slow), bool(slow - {"step", "loss"})


def told(state: ClusterState, at: float) -> Iterator[Told]:
    """Events of all incidents that are not too old: one when it is detected, one when redundancy is back."""
    for record in incidents.in_order(state):
        if at - record.detected_at > EVENTS_BACK_SECONDS:
            continue
        # What was decided, and why, belongs to it; an incident without an answer yet is told with the next look.
        planned = record.kind in incidents.PLANNED
        if record.decided_at is not None or planned or at - record.detected_at > 1.0:
            yield Told(
                name=f"{record.id}-seen",
                warning=not planned,
                reason=_REASONS[record.kind],
                message=_message(record),
                at=record.detected_at,
            )
        if record.restored_at is not None:
            yield Told(
                name=f"{record.id}-over",
                warning=False,
                reason="Recovered",
                message=f"{record.id}: {_phases(record)}; {record.reasons[-1] if record.reasons else 'it is over'}",
                at=record.restored_at,
            )


def event(job: MoEJob, item: Told) -> Object:
    """The object for the API server."""
    when = stamp(item.at)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{job.name}.{job.uid[:8]}.{item.name}",
            "namespace": job.namespace,
            "labels": {JOB_LABEL: job.name},
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
        },
        "type": "Warning" if item.warning else "Normal",
        "reason": item.reason,
        "message": item.message[:MESSAGE_LIMIT],
        "source": {"component": "understudy"},
        "firstTimestamp": when,
        "lastTimestamp": when,
        "count": 1,
    }


_REASONS: Mapping[IncidentKind, str] = {
    IncidentKind.NODE_LOST: "NodeLost",
    IncidentKind.TRAINER_LOST: "TrainerLost",
    IncidentKind.TRAINER_HUNG: "TrainerHung",
    IncidentKind.COMMUNICATION: "CommunicationFailed",
    IncidentKind.STATE_REFUSED: "StateRefused",
    IncidentKind.CORRUPTION: "ReplicasDiffer",
    IncidentKind.NOT_FINITE: "NotFinite",
    IncidentKind.CHECKPOINT_DAMAGED: "CheckpointDamaged",
    IncidentKind.DRAIN: "Draining",
    IncidentKind.STRAGGLER: "Straggler",
}


def _message(record: Incident) -> str:
    answer = f"; {record.action}" if record.action else ""
    return f"{record.id}: {record.cause}{answer}"


def _phases(record: Incident) -> str:
    """How long it took, as far as it went."""
    words = [
        f"{name} {value:.2f} s"
        for name, value in (
            ("detected after", _between(record.first_sign_at, record.detected_at)),
            ("regrouped after", _between(record.detected_at, record.regrouped_at)),
            ("first commit after", _between(record.first_sign_at, record.first_commit_at)),
            ("redundancy after", _between(record.first_sign_at, record.restored_at)),
        )
        if value is not None
    ]
    return ", ".join(words)


def _incident(record: Incident) -> Object:
    found: Object = {
        "id": record.id,
        "kind": record.kind.value,
        "node": record.node,
        "cause": record.cause[:MESSAGE_LIMIT],
        "action": record.action[:MESSAGE_LIMIT],
        "open": not record.closed,
        "stepsLost": record.steps_lost,
        "stepsRedone": record.steps_redone,
    }
    times = (
        ("detectSeconds", _between(record.first_sign_at, record.detected_at)),
        ("decideSeconds", _between(record.detected_at, record.decided_at)),
        ("regroupSeconds", _between(record.decided_at, record.regrouped_at)),
        ("firstCommitSeconds", _between(record.first_sign_at, record.first_commit_at)),
        ("redundancySeconds", _between(record.first_sign_at, record.restored_at)),
    )
    found.update({name: round(value, 3) for name, value in times if value is not None})
    return found


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else max(0.0, end - begin)


def _redundancy(state: ClusterState) -> tuple[int, int]:
    """The fewest living copies that an expert has, on distinct nodes, and how many are wanted."""
    entity, generation = state.job, state.generation
    assert entity is not None
    wanted = min(entity.spec.cluster.replicas, entity.spec.cluster.nodes)
    if generation is None or not generation.members:
        return 0, wanted
    nodes = roster.nodes_by_rank(generation)
    dead = {node.id for node in state.nodes.values() if node.state is NodeState.DEAD}
    least = min(
        len({nodes[rank] for rank in ranks if nodes[rank] not in dead}) for ranks in generation.placement
    )
    return min(least, wanted), wanted


def _conditions(state: ClusterState, least: int, wanted: int, seated: int, at: float) -> Sequence[Object]:
    entity = state.job
    assert entity is not None
    running = entity.state is JobState.RUNNING
    opened = incidents.first_open(state)
    whole = least >= wanted and opened is None
    why = opened.cause if opened is not None else ""
    over = entity.state in (JobState.FINISHED, JobState.STOPPED, JobState.FAILED)
    del at
    found = [
        _condition("Accepted", True, "Valid", ""),
        _condition("Training", running, entity.state.value.capitalize(), "" if running else entity.reason),
        _condition("Redundant", whole and bool(seated), "Whole" if whole else "Degraded", why),
    ]
    if over:
        found.append(
            _condition(
                "Complete",
                entity.state is not JobState.FAILED,
                entity.state.value.capitalize(),
                entity.reason,
            )
        )
    return found


def _condition(kind: str, true: bool, reason: str, message: str) -> Object:
    found = {"type": kind, "status": "True" if true else "False", "reason": reason}
    # Left out rather than empty: servers of 1.20 take "" in a list of a custom resource for null, and refuse it.
    return {**found, "message": message[:MESSAGE_LIMIT]} if message else found


def _connected(state: ClusterState, node: Any) -> bool:  # a NodeId; views are keyed by it
    view = state.views.get(node)
    return view is not None and view.connected


def _last_loss(state: ClusterState) -> float | None:
    losses = state.memory.losses
    if not losses:
        return None
    last = losses[max(losses)]
    # JSON has no word for what is not a number.
    return last if last == last and abs(last) != float("inf") else None
