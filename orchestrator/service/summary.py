"""The summary of a run as JSON: what was trained, what failed, what it cost, and that each sample counted once.

This is the object of `understudy run --summary`; its names are a promise to scripts. Unknown values are null.
Pure: the snapshot, the ledger's totals and the moment are handed in. Next: `views.py`, for what people look at.
"""

from __future__ import annotations

import json
import math
from typing import Any

from orchestrator.controller.ledger_lines import LedgerTotals
from orchestrator.core.state import Checkpoint, CheckpointState, Incident
from orchestrator.service import views
from orchestrator.service.ledger_view import LedgerView
from orchestrator.service.snapshot import Snapshot
from protos import admin_pb2 as pb


def samples_per_step(snapshot: Snapshot) -> int:
    """How many samples every step counts; 0 before there is a job."""
    job = snapshot.job
    return job.spec.batch.microbatches * job.spec.batch.microbatch_size if job else 0


def summary(snapshot: Snapshot, totals: LedgerTotals, ledger: LedgerView, at: float) -> str:
    """The JSON text. Samples are those of the whole ledger; goodput is that of the run since it was last started."""
    job, generation = snapshot.job, snapshot.generation
    incidents = sorted(snapshot.incidents.values(), key=lambda each: views.natural(each.id))
    sealed = [each for each in snapshot.checkpoints.values() if each.state is CheckpointState.SEALED]
    return json.dumps(
        {
            "job": job.spec.name if job else None,
            "steps_committed": totals.last_step,
            "final_loss": _finite(totals.last_loss),
            "samples_expected": totals.samples_expected,
            "samples_counted": totals.samples_counted,
            "samples_duplicated": totals.samples_duplicated,
            "samples_missing": totals.samples_missing,
            "steps_not_finite": views.steps_not_finite(snapshot),
            "goodput": views.goodput(job, ledger, at),
            "generations": generation.number if generation else 0,
            "incidents": [_incident(each, at) for each in incidents],
            "checkpoints": [_checkpoint(each) for each in sorted(sealed, key=lambda each: each.step)],
            "snapshots": [_snapshot(each) for each in views.snapshots(snapshot) if each.state != "partial"],
            "validation": ledger.validations[-1] if ledger.validations else None,
        },
        allow_nan=False,
    )


def _snapshot(shown: pb.HeldSnapshot) -> dict[str, Any]:
    """One that agents hold in memory as long as they live."""
    return {
        "step": shown.step,
        "name": shown.name,
        "bytes": shown.bytes,
        "stall_seconds": shown.stall_seconds,
    }


def _incident(incident: Incident, at: float) -> dict[str, Any]:
    shown = views.incident_view(incident, at)
    phases = shown.phases
    return {
        "id": shown.id,
        "kind": shown.kind,
        "node": shown.node,
        "cause": shown.cause,
        "action": shown.action,
        "reasons": list(shown.reasons),
        "phases": {
            field.name: getattr(phases, field.name) if phases.HasField(field.name) else None
            for field in phases.DESCRIPTOR.fields
        },
        "steps_lost": shown.steps_lost,
        "steps_redone": shown.steps_redone,
        "window_seconds": shown.window_seconds if shown.HasField("window_seconds") else None,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    taken = None if checkpoint.sealed_at is None else checkpoint.sealed_at - checkpoint.requested_at
    return {"step": checkpoint.step, "path": checkpoint.path, "bytes": checkpoint.bytes, "seconds": taken}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
