"""What people see: pure functions from a snapshot of the state, and what the ledger says, to replies.

No decision, no IO, no clock: the moment (`at`) is handed in. Where a value is unknown the field stays unset, never a
made-up zero. `summary.py` holds the one reply that is JSON. Next: `admin_api.py`, which serves these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from orchestrator.core import cadence, exposure
from orchestrator.core.events import TrainerStatus
from orchestrator.core.ids import NodeId, Rank, TrainerId, node_of
from orchestrator.core.policy import Policy
from orchestrator.core.spec import TimeoutMode
from orchestrator.core.state import Checkpoint, Generation, Incident, IncidentKind, Job, Node
from orchestrator.service.ledger_view import LedgerView
from orchestrator.service.snapshot import Snapshot
from protos import admin_pb2 as pb

RECENT_LOSSES = 120
RECENT_REASONS = 12
SPEED_STEPS = 10
"""Speed is a mean over this many steps, so that one slow step does not make a display jump."""

_NUMBER = re.compile(r"([0-9]+)")


def nodes(snapshot: Snapshot, at: float) -> list[pb.Node]:
    """All nodes, in natural order of their names."""
    ranks = _ranks(snapshot.generation)
    return [_node(snapshot, snapshot.nodes[node], ranks, at) for node in sorted(snapshot.nodes, key=natural)]


def _node(snapshot: Snapshot, node: Node, ranks: dict[TrainerId, Rank], at: float) -> pb.Node:
    seen = snapshot.seen_of(node.id)
    reply = pb.Node(
        id=node.id,
        state=node.state.value,
        cordoned=node.cordoned,
        connected=seen.connected,
        labels=dict(node.labels),
        agent_pid=node.agent_pid,
        trainers=[_trainer(status, ranks, snapshot.scores) for status in seen.trainers],
        step=max((status.step for status in seen.trainers), default=0),
        reason=node.reason,
    )
    if seen.last_seen is not None:
        reply.heartbeat_age_seconds = max(0.0, at - seen.last_seen)
    return reply


def _trainer(
    status: TrainerStatus, ranks: dict[TrainerId, Rank], scores: dict[TrainerId, float]
) -> pb.Trainer:
    return pb.Trainer(
        id=status.trainer,
        pid=status.pid,
        ready=status.ready,
        device_name=status.device_name,
        rank=ranks.get(status.trainer),
        generation=status.generation,
        step=status.step,
        phase=status.phase.value,
        silent_seconds=status.silent_seconds,
        score=scores.get(status.trainer),
    )


def _ranks(generation: Generation | None) -> dict[TrainerId, Rank]:
    return {member.trainer: member.rank for member in generation.members} if generation else {}


def experts(snapshot: Snapshot, ledger: LedgerView, at: float) -> list[pb.Expert]:
    """All experts of the generation in force; none before the first one. The windows of several failures are one."""
    generation, job = snapshot.generation, snapshot.job
    if generation is None or job is None:
        return []
    trainer_of = {member.rank: member.trainer for member in generation.members}
    shares = _load_shares(ledger, len(generation.placement))
    since = min(
        (
            each.exposed_at
            for each in snapshot.incidents.values()
            if each.exposed_at is not None and each.covered_at is None
        ),
        default=None,
    )
    replies = []
    for expert, ranks in enumerate(generation.placement):
        holders = [trainer_of[rank] for rank in ranks if rank in trainer_of]
        redundant = len({node_of(trainer) for trainer in holders}) >= job.spec.cluster.replicas
        replies.append(
            pb.Expert(
                id=expert,
                primary=holders[0] if holders else "",
                backups=holders[1:],
                load_share=shares[expert],
                redundant=redundant,
                window_seconds=None if redundant or since is None else max(0.0, at - since),
            )
        )
    return replies


def _load_shares(ledger: LedgerView, count: int) -> list[float]:
    """Load of each expert in the last committed step, as a multiple of the fair share; zeros before the first."""
    load = ledger.recent[-1].expert_load if ledger.recent else ()
    total = sum(load)
    if len(load) != count or total == 0:
        return [0.0] * count
    return [each * count / total for each in load]


def jobs(snapshot: Snapshot, workdir: str, at: float) -> list[pb.Job]:
    """The one job of this controller; none before it was submitted."""
    return [job_view(snapshot, snapshot.job, workdir, at)] if snapshot.job else []


def job_view(snapshot: Snapshot, job: Job, workdir: str, at: float) -> pb.Job:
    """A job with where it stands."""
    return pb.Job(
        id=job.id,
        name=job.spec.name,
        state=job.state.value,
        reason=job.reason,
        step=snapshot.committed,
        steps=job.spec.steps,
        generation=snapshot.generation.number if snapshot.generation else 0,
        submitted_at=job.submitted_at,
        started_at=job.started_at or 0.0,
        ended_at=job.ended_at or 0.0,
        workdir=workdir,
        checkpoints=_cadence(snapshot, job, at),
        snapshots=_cadence_of_snapshots(snapshot, job, at) if job.spec.snapshot.enabled else None,
        steps_not_finite=steps_not_finite(snapshot),
        timeouts=_timeouts(snapshot, job),
    )


def _timeouts(snapshot: Snapshot, job: Job) -> pb.Timeouts:
    limits, given = snapshot.limits, job.spec.timeouts
    if limits is not None:
        return pb.Timeouts(
            hang_seconds=limits.hang_seconds,
            lease_seconds=limits.lease_seconds,
            stall_seconds=limits.stall_seconds,
            why=limits.why,
        )
    fixed = given.mode is TimeoutMode.FIXED
    return pb.Timeouts(
        hang_seconds=given.hang_seconds,
        lease_seconds=given.lease_seconds,
        stall_seconds=given.stall_seconds,
        why="as the job says"
        if fixed
        else "as the job says, until enough steps of this generation are committed",
    )


def steps_not_finite(snapshot: Snapshot) -> int:
    """Steps whose loss or gradients were no numbers, and which all members computed again.

    What is not finite a second time goes back to a checkpoint, and is an incident of its own kind.
    """
    return sum(each.kind is IncidentKind.NOT_FINITE for each in snapshot.incidents.values())


def _cadence(snapshot: Snapshot, job: Job, at: float) -> pb.Cadence:
    """As the core sees it: from the same rows, by the same rule."""
    chosen = cadence.of_checkpoints(job, snapshot.checkpoints, snapshot.incidents, Policy.of(job.spec), at)
    due_at = cadence.next_at(job, snapshot.checkpoints, chosen)
    return pb.Cadence(
        interval_seconds=chosen.interval_seconds,
        next_at=due_at if job.ended_at is None else None,
        why=chosen.why,
    )


def _cadence_of_snapshots(snapshot: Snapshot, job: Job, at: float) -> pb.Cadence:
    policy = Policy.of(job.spec)
    chosen = cadence.of_snapshots(job, snapshot.snapshot_costs, snapshot.incidents, policy, at)
    goes_on = job.started_at is not None and job.ended_at is None
    return pb.Cadence(
        interval_seconds=chosen.interval_seconds,
        next_at=snapshot.snapshot_at + chosen.interval_seconds if goes_on else None,
        why=chosen.why,
    )


def incidents(snapshot: Snapshot, at: float) -> list[pb.Incident]:
    """All incidents, oldest first."""
    return [incident_view(snapshot.incidents[each], at) for each in sorted(snapshot.incidents, key=natural)]


def incident_view(incident: Incident, at: float) -> pb.Incident:
    """An incident with its phases; a phase that is not over yet is unset. A window that is open is as long as now."""
    detected, decided = incident.detected_at, incident.decided_at
    regrouped, committed = incident.regrouped_at, incident.first_commit_at
    return pb.Incident(
        id=incident.id,
        kind=incident.kind.value,
        node=incident.node,
        cause=incident.cause,
        action=incident.action,
        reasons=incident.reasons,
        phases=pb.Phases(
            detect_seconds=_between(incident.first_sign_at, detected),
            decide_seconds=_between(detected, decided),
            regroup_seconds=_between(decided, regrouped),
            first_commit_seconds=_between(regrouped, committed),
            redundancy_restored_seconds=_between(incident.first_sign_at, incident.restored_at),
        ),
        steps_lost=incident.steps_lost,
        steps_redone=incident.steps_redone,
        generation=incident.generation,
        first_sign_at=incident.first_sign_at,
        state=_incident_state(incident),
        window_seconds=exposure.window_seconds(incident, at),
        experts_exposed=incident.experts_exposed,
        window_open=incident.exposed_at is not None and incident.covered_at is None,
        alarmed=incident.alarmed_at is not None,
    )


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def _incident_state(incident: Incident) -> str:
    if incident.restored_at is not None:
        return "closed"
    return "degraded" if incident.degraded else "open"


def checkpoints(snapshot: Snapshot) -> list[pb.Checkpoint]:
    """All checkpoints that were asked for, oldest first."""
    known = sorted(snapshot.checkpoints.values(), key=lambda each: (each.requested_at, natural(each.request)))
    return [_checkpoint(each) for each in known]


def _checkpoint(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        request=checkpoint.request,
        state=checkpoint.state.value,
        step=checkpoint.step,
        generation=checkpoint.generation,
        path=checkpoint.path,
        bytes=checkpoint.bytes,
        seconds=_between(checkpoint.requested_at, checkpoint.sealed_at),
        reason=checkpoint.reason,
        stall_seconds=checkpoint.stall_seconds,
    )


def snapshots(snapshot: Snapshot) -> list[pb.HeldSnapshot]:
    """What agents hold in host memory, newest first."""
    return [
        pb.HeldSnapshot(
            name=each.name,
            state="sealed" if each.sealed else "whole" if each.whole else "partial",
            step=each.step,
            generation=each.generation,
            shards=each.shards,
            shards_held=len(each.sources),
            holders=each.holders if each.whole else 0,
            nodes=sorted(each.nodes, key=natural),
            bytes=each.bytes,
            stall_seconds=each.stall_seconds,
        )
        for each in snapshot.in_memory
    ]


def generation(snapshot: Snapshot) -> pb.GetGenerationReply:
    """The generation in force, member by member; number 0 before the first."""
    current = snapshot.generation
    planned = snapshot.planned.number if snapshot.planned else 0
    if current is None:
        return pb.GetGenerationReply(planned=planned)
    members = [
        pb.GenerationMember(
            rank=member.rank,
            trainer=member.trainer,
            experts=[expert for expert, ranks in enumerate(current.placement) if member.rank in ranks],
            microbatches=current.deal[member.rank] if member.rank < len(current.deal) else (),
            joined=member.trainer in snapshot.joined,
            stage=member.stage,
        )
        for member in current.members
    ]
    return pb.GetGenerationReply(
        number=current.number,
        kind=current.kind.value,
        reason=current.reason,
        created_at=current.created_at,
        members=members,
        planned=planned,
    )


def job_screen(
    snapshot: Snapshot, ledger: LedgerView, reasons: Sequence[str], workdir: str, at: float
) -> pb.JobView:
    """Everything a live view shows, in one message."""
    recent = ledger.recent
    view = pb.JobView(
        nodes=nodes(snapshot, at),
        experts=experts(snapshot, ledger, at),
        snapshots=snapshots(snapshot),
        incidents=incidents(snapshot, at),
        checkpoints=checkpoints(snapshot),
        goodput=goodput(snapshot.job, ledger, at),
        recent_losses=[record.loss for record in recent[-RECENT_LOSSES:]],
        recent_reasons=reasons[-RECENT_REASONS:],
        at=at,
    )
    if snapshot.job is not None:
        view.job.CopyFrom(job_view(snapshot, snapshot.job, workdir, at))
    if ledger.validations:
        newest = ledger.validations[-1]
        measured = {name: newest[name] for name in ("loss", "perplexity", "bits_per_byte")}
        finite = {name: math.nan if value is None else value for name, value in measured.items()}
        view.validation.CopyFrom(pb.ValidationShown(step=newest["step"], **finite))
    if recent:
        speed = recent[-SPEED_STEPS:]
        seconds = sum(record.step_seconds for record in speed)
        view.loss = recent[-1].loss
        view.step_seconds = seconds / len(speed)
        view.tokens_per_second = sum(record.tokens for record in speed) / seconds if seconds > 0 else 0.0
    return view


def goodput(job: Job | None, ledger: LedgerView, at: float) -> float:
    """Time spent in committed steps over the time since the job started; 0 before it did."""
    if job is None or job.started_at is None:
        return 0.0
    elapsed = (at if job.ended_at is None else job.ended_at) - job.started_at
    return min(1.0, ledger.productive_seconds / elapsed) if elapsed > 0 else 0.0


def unknown_node(snapshot: Snapshot, node: str) -> str | None:
    """Words for a node that does not exist; None when it does."""
    if NodeId(node) in snapshot.nodes:
        return None
    return f"no node {node!r}: {_known('nodes', snapshot.nodes)}"


def unknown_incident(snapshot: Snapshot, incident: str) -> str | None:
    """Words for an incident that does not exist; None when it does."""
    if incident in snapshot.incidents:
        return None
    return f"no incident {incident!r}: {_known('incidents', snapshot.incidents)}"


def _known(kind: str, names: Iterable[str]) -> str:
    listed = sorted(names, key=natural)
    return f"known {kind} are {', '.join(listed)}" if listed else f"there are no {kind} yet"


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts node-10 after node-2."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _NUMBER.split(name) if part
    )
