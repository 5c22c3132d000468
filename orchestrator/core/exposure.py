"""The vulnerability window: for how long an expert stands on fewer replicas than were asked for.

It opens with the first sign of the failure that took a replica, and closes when a generation is in force whose
placement is whole again. Measured for each incident and stored with it. A window that is open for longer than the job
bears is told once, as a warning: another loss in it may cost the steps since the last saved state. What shortens the
window is decided in `repair.py`. Next: `incidents.py`.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import incidents, roster, stages
from orchestrator.core.decision import Decision
from orchestrator.core.state import ClusterState, Incident, IncidentKind
from orchestrator.core.words import experts, lasting

TAKES_NO_REPLICA = (
    IncidentKind.COMMUNICATION,
    IncidentKind.STATE_REFUSED,
    IncidentKind.NOT_FINITE,
    IncidentKind.CHECKPOINT_DAMAGED,
)


def thin(state: ClusterState) -> tuple[int, ...]:
    """Experts on fewer nodes than they should be, in the generation in force."""
    generation, job = state.generation, state.job
    if generation is None or job is None:
        return ()
    wanted = min(job.spec.cluster.replicas, job.spec.cluster.nodes)
    return stages.thin(generation.placement, roster.nodes_by_rank(generation), wanted)


def look(decision: Decision) -> None:
    """Open, close and judge the windows of open incidents."""
    state, memory = decision.state, decision.state.memory
    generation = state.generation
    if generation is None or not generation.members or incidents.first_open(state) is None:
        return
    if memory.thin_in != generation.number:
        memory.thin_in, memory.thin = generation.number, thin(state)
    for record in tuple(incidents.open_incidents(state)):
        if memory.thin and record.exposed_at is None:
            _open(decision, record)
        elif not memory.thin and record.exposed_at is not None and record.covered_at is None:
            decision.put(replace(record, covered_at=decision.at))
    if memory.thin:
        _warn(decision)


def window_seconds(incident: Incident, at: float) -> float | None:
    """How long the window of an incident was, or has been open; None where no replica was missing."""
    if incident.exposed_at is None:
        return None
    return (at if incident.covered_at is None else incident.covered_at) - incident.exposed_at


def _open(decision: Decision, record: Incident) -> None:
    if record.decided_at is None or record.kind in TAKES_NO_REPLICA:
        return
    since = decision.at if record.kind in incidents.PLANNED else record.first_sign_at
    missing = len(decision.state.memory.thin)
    decision.put(replace(record, exposed_at=since, experts_exposed=missing))


def _warn(decision: Decision) -> None:
    """Say once for each incident that its window is open for too long."""
    state, limit = decision.state, decision.job.spec.recovery.window_alarm_seconds
    if not limit:
        return
    for record in tuple(incidents.open_incidents(state)):
        open_for = window_seconds(record, decision.at)
        if (
            open_for is None
            or record.covered_at is not None
            or record.alarmed_at is not None
            or open_for < limit
        ):
            continue
        decision.put(replace(record, alarmed_at=decision.at))
        replicas = decision.job.spec.cluster.replicas
        incidents.explain(
            decision,
            record.id,
            f"warning: {experts(state.memory.thin)} stand on fewer than {replicas} replicas for {lasting(open_for)} "
            f"(recovery.window_alarm_seconds is {limit:g}): the loss of one more node may cost the steps since the "
            f"last saved state; {_why(state)}",
        )


def _why(state: ClusterState) -> str:
    if state.acquisitions:
        return "they are being copied"
    if state.memory.repair_awaits:
        return state.memory.repair_awaits
    return "give the job a node, or ask for fewer replicas"
