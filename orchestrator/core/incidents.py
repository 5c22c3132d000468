"""Incidents: one record per failure, from the first sign to restored redundancy, with the time of every phase.

An incident is opened by `recovery`, answered by a generation (`decided`), and then follows what the members report.
Several failures at once have an incident each and share the generation. Nothing here decides what to do.
Next: `recovery.py`; closing is decided in `repair.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.core.decision import Decision
from orchestrator.core.ids import GenerationNumber, IncidentId, NodeId
from orchestrator.core.state import ClusterState, Generation, Incident, IncidentKind

INCIDENT_DIGITS = 4
PLANNED = (IncidentKind.DRAIN, IncidentKind.STRAGGLER)
"""Training goes on meanwhile: others take the seats at a boundary, and then the node has left."""


def open_incident(
    decision: Decision, *, kind: IncidentKind, node: NodeId, cause: str, first_sign_at: float
) -> Incident:
    """Begin to record a failure; the answer is not known yet."""
    job = decision.job
    incident = Incident(
        id=IncidentId(f"inc-{job.next_incident:0{INCIDENT_DIGITS}d}"),
        kind=kind,
        node=node,
        cause=cause,
        action="",
        reasons=(cause,),
        generation=decision.next_number(),
        first_sign_at=min(first_sign_at, decision.at),
        detected_at=decision.at,
    )
    decision.put(replace(job, next_incident=job.next_incident + 1))
    decision.put(incident)
    decision.say(cause, incident.id)
    return incident


def explain(decision: Decision, incident: IncidentId, text: str) -> None:
    """Add a reason to an incident and to the event log."""
    record = decision.state.incidents[incident]
    decision.put(replace(record, reasons=(*record.reasons, text)))
    decision.say(text, incident)


def known_since(decision: Decision, number: GenerationNumber, at: float) -> None:
    """A member of generation `number` could not tell, while there was no controller, that it had lost touch at `at`.

    Failures that this controller found by itself, and has answered with a later generation, began then at the latest.
    """
    started_at = decision.state.memory.started_at
    if at >= started_at:
        return
    for record in tuple(open_incidents(decision.state)):
        found_here = record.detected_at >= started_at and record.generation > number
        if found_here and at < record.first_sign_at:
            decision.put(replace(record, first_sign_at=at))


def decided(decision: Decision, incident: IncidentId, *, action: str, number: GenerationNumber) -> None:
    """A generation that answers the incident is part of this outcome."""
    record = decision.state.incidents[incident]
    decision.put(replace(record, action=action, generation=number, decided_at=decision.at))


def regrouped(decision: Decision, generation: Generation, *, redone: bool) -> None:
    """All members of `generation` have joined it."""
    for record in tuple(_answered(decision.state, generation.number)):
        if record.regrouped_at is None:
            decision.put(replace(record, regrouped_at=decision.at, steps_redone=1 if redone else 0))


def committed(decision: Decision, number: GenerationNumber) -> None:
    """A step was committed in generation `number`."""
    for record in tuple(_answered(decision.state, number)):
        if record.regrouped_at is not None and record.first_commit_at is None:
            decision.put(replace(record, first_commit_at=decision.at))


def rolled_back(decision: Decision, number: GenerationNumber, steps_lost: int) -> None:
    """A restore gives up committed steps, perhaps more than the one before: it is the cost of all that it answers."""
    for record in tuple(open_incidents(decision.state)):
        if record.regrouped_at is None and record.kind not in PLANNED:
            lost = record.steps_lost + steps_lost
            decision.put(replace(record, steps_lost=lost, rolled_back_by=number))


def close(decision: Decision, incident: IncidentId, text: str) -> None:
    """Redundancy is back."""
    explain(decision, incident, text)
    record = decision.state.incidents[incident]
    decision.put(replace(record, restored_at=decision.at, degraded=False))


def degrade(decision: Decision, incident: IncidentId, text: str) -> None:
    """Redundancy cannot come back for now. Said once per incident and text."""
    record = decision.state.incidents[incident]
    if not record.degraded or text not in record.reasons:
        explain(decision, incident, text)
        decision.put(replace(decision.state.incidents[incident], degraded=True))


def open_incidents(state: ClusterState) -> Iterator[Incident]:
    """In the order in which they were opened."""
    for record in in_order(state):
        if not record.closed:
            yield record


def in_order(state: ClusterState) -> list[Incident]:
    """All incidents, oldest first."""
    return [state.incidents[each] for each in sorted(state.incidents, key=lambda each: (len(each), each))]


def first_open(state: ClusterState) -> Incident | None:
    """The oldest incident that is not closed."""
    return next(open_incidents(state), None)


def open_departure(state: ClusterState, node: NodeId) -> Incident | None:
    """The drain or the replacement of a node, while it is under way."""
    planned = (each for each in open_incidents(state) if each.kind in PLANNED)
    return next((each for each in planned if each.node == node), None)


def open_drain(state: ClusterState, node: NodeId) -> Incident | None:
    """The drain of a node, while it is under way."""
    drains = (each for each in open_incidents(state) if each.kind is IncidentKind.DRAIN)
    return next((each for each in drains if each.node == node), None)


def _answered(state: ClusterState, number: GenerationNumber) -> Iterator[Incident]:
    """Incidents whose answer is generation `number` or an older one, closed ones included."""
    for record in in_order(state):
        if record.decided_at is not None and record.generation <= number:
            yield record
