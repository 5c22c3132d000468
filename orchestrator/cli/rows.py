"""Messages of the Admin service as plain mappings: the stable field names of `-o json` and `-o yaml`.

Every row always has all of its fields; what is not known is None. Times are seconds since the epoch, durations end in
`_seconds`. Scripts depend on these names: add, never rename. Next: `render.py`, which prints rows.
"""

from __future__ import annotations

import json
from typing import Any

from protos import admin_pb2

Row = dict[str, Any]

PHASES = ("detect", "decide", "regroup", "first_commit", "redundancy_restored")
"""The phases of an incident; field names end in `_seconds`. The first four follow each other, from the first sign to
the next committed step; the last one counts from the first sign."""


def node(message: admin_pb2.Node) -> Row:
    """id, state, cordoned, connected, labels, agent_pid, trainer_pids (a list), heartbeat_age_seconds, step (the newest
    of its trainers), reason, trainers (rows).
    """
    return {
        "id": message.id,
        "state": message.state,
        "cordoned": message.cordoned,
        "connected": message.connected,
        "labels": dict(sorted(message.labels.items())),
        "agent_pid": message.agent_pid,
        "trainer_pids": [each.pid for each in message.trainers if each.pid],
        "heartbeat_age_seconds": round(message.heartbeat_age_seconds, 3),
        "step": message.step,
        "reason": message.reason,
        "trainers": [trainer(each) for each in message.trainers],
    }


def trainer(message: admin_pb2.Trainer) -> Row:
    """id, pid, ready, device_name, rank, generation, step, phase, silent_seconds, score (null until it is known)."""
    return {
        "id": message.id,
        "pid": message.pid,
        "ready": message.ready,
        "device_name": message.device_name,
        "rank": message.rank if message.HasField("rank") else None,
        "generation": message.generation,
        "step": message.step,
        "phase": message.phase,
        "silent_seconds": round(message.silent_seconds, 3),
        "score": round(message.score, 3) if message.HasField("score") else None,
    }


def audit_entry(message: admin_pb2.AuditEntry) -> Row:
    """sequence, at, command, arguments (an object), by, identity, role, peer, claimed, result, words, event."""
    return {
        "sequence": message.sequence,
        "at": message.at,
        "command": message.command,
        "arguments": json.loads(message.arguments or "{}"),
        "by": message.by,
        "identity": message.identity or None,
        "role": message.role or None,
        "peer": message.peer,
        "claimed": message.claimed or None,
        "result": message.result,
        "words": message.words,
        "event": message.event,
    }


def expert(message: admin_pb2.Expert) -> Row:
    """id, primary, backups, load_share (1.0 is fair), redundant, window_seconds (None where no replica is missing)."""
    return {
        "id": message.id,
        "primary": message.primary or None,
        "backups": list(message.backups),
        "load_share": round(message.load_share, 4),
        "redundant": message.redundant,
        "window_seconds": round(message.window_seconds, 3) if message.HasField("window_seconds") else None,
    }


def job(message: admin_pb2.Job) -> Row:
    """id, name, state, reason, step, steps, generation, submitted_at, started_at, ended_at, workdir, checkpoints,
    snapshots (None where they are switched off), steps_not_finite, timeouts."""
    return {
        "id": message.id,
        "name": message.name,
        "state": message.state,
        "reason": message.reason,
        "step": message.step,
        "steps": message.steps,
        "generation": message.generation,
        "submitted_at": message.submitted_at or None,
        "started_at": message.started_at or None,
        "ended_at": message.ended_at or None,
        "workdir": message.workdir,
        "checkpoints": cadence(message.checkpoints),
        "snapshots": cadence(message.snapshots) if message.HasField("snapshots") else None,
        "steps_not_finite": message.steps_not_finite,
        "timeouts": {
            "hang_seconds": round(message.timeouts.hang_seconds, 3),
            "lease_seconds": round(message.timeouts.lease_seconds, 3),
            "stall_seconds": round(message.timeouts.stall_seconds, 3),
            "why": message.timeouts.why,
        },
    }


def cadence(message: admin_pb2.Cadence) -> Row:
    """interval_seconds, next_at, why."""
    return {
        "interval_seconds": round(message.interval_seconds, 3),
        "next_at": message.next_at if message.HasField("next_at") else None,
        "why": message.why,
    }


def incident(message: admin_pb2.Incident) -> Row:
    """id, kind, node, state, cause, action, reasons, phases, steps_lost, steps_redone, generation, first_sign_at,
    window_seconds (None where no replica was missing), window_open, experts_exposed, alarmed.
    """
    return {
        "id": message.id,
        "kind": message.kind,
        "node": message.node,
        "state": message.state,
        "cause": message.cause,
        "action": message.action,
        "reasons": list(message.reasons),
        "phases": phases(message.phases),
        "steps_lost": message.steps_lost,
        "steps_redone": message.steps_redone,
        "generation": message.generation,
        "first_sign_at": message.first_sign_at,
        "window_seconds": round(message.window_seconds, 3) if message.HasField("window_seconds") else None,
        "window_open": message.window_open,
        "experts_exposed": message.experts_exposed,
        "alarmed": message.alarmed,
    }


def phases(message: admin_pb2.Phases) -> Row:
    """detect_seconds, decide_seconds, regroup_seconds, first_commit_seconds, redundancy_restored_seconds."""
    names = [f"{phase}_seconds" for phase in PHASES]
    return {name: round(getattr(message, name), 4) if message.HasField(name) else None for name in names}


def training_after(incident: Row) -> float | None:
    """Seconds from the first sign of a failure to the next committed step: how long training stood still.

    None while that step has not come, and where training never stopped (`went_on`).
    """
    found = [incident["phases"][f"{phase}_seconds"] for phase in PHASES[:-1]]
    return None if None in found or went_on(incident) else sum(found)


def went_on(incident: Row) -> bool:
    """A drain, and a straggler that gives up its seat, are planned: others take over at a step boundary."""
    return incident["kind"] in ("drain", "straggler")


def event(message: admin_pb2.Event) -> Row:
    """sequence, at, kind, cause_id, detail (an object), reasons."""
    return {
        "sequence": message.sequence,
        "at": message.at,
        "kind": message.kind,
        "cause_id": message.cause_id,
        "detail": _detail(message.detail),
        "reasons": list(message.reasons),
    }


def _detail(text: str) -> object:
    try:
        detail: object = json.loads(text) if text else {}
    except ValueError:
        return {"text": text}
    return detail


def checkpoint(message: admin_pb2.Checkpoint) -> Row:
    """request, state, step, generation, path, bytes, seconds (from request to seal), reason, stall_seconds."""
    return {
        "request": message.request,
        "state": message.state,
        "step": message.step,
        "generation": message.generation,
        "path": message.path,
        "bytes": message.bytes,
        "seconds": round(message.seconds, 3) if message.HasField("seconds") else None,
        "reason": message.reason,
        "stall_seconds": round(message.stall_seconds, 6) if message.HasField("stall_seconds") else None,
    }


def snapshot(message: admin_pb2.HeldSnapshot) -> Row:
    """name, state, step, generation, shards, shards_held, holders, nodes, bytes, stall_seconds."""
    return {
        "name": message.name,
        "state": message.state,
        "step": message.step,
        "generation": message.generation,
        "shards": message.shards,
        "shards_held": message.shards_held,
        "holders": message.holders,
        "nodes": list(message.nodes),
        "bytes": message.bytes,
        "stall_seconds": round(message.stall_seconds, 4),
    }


def generation(message: admin_pb2.GetGenerationReply) -> Row:
    """number, kind, reason, created_at, planned (None when none waits), members."""
    return {
        "number": message.number,
        "kind": message.kind,
        "reason": message.reason,
        "created_at": message.created_at or None,
        "planned": message.planned or None,
        "members": [member(each) for each in message.members],
    }


def member(message: admin_pb2.GenerationMember) -> Row:
    """rank, trainer, stage, experts, microbatches, joined."""
    return {
        "rank": message.rank,
        "trainer": message.trainer,
        "experts": list(message.experts),
        "microbatches": list(message.microbatches),
        "joined": message.joined,
        "stage": message.stage,
    }


def explanation(message: admin_pb2.ExplainIncidentReply) -> Row:
    """incident, events: what `explain -o json` prints."""
    return {"incident": incident(message.incident), "events": [event(each) for each in message.events]}
