"""Runs that never ran: ledgers and incidents as a good run leaves them, for tests to spoil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chaos.laws import Evidence
from chaos.ledger import Committed
from chaos.strikes import Deed

SAMPLES = 4
STEP_SECONDS = 0.1
OUTAGE_SECONDS = 4.0


def commit(
    step: int, *, generation: int = 1, at: float | None = None, loss: float | None = None
) -> Committed:
    """Step after step, a tenth of a second each."""
    return Committed(
        step=step,
        loss=5.0 - 0.01 * step if loss is None else loss,
        generation=generation,
        time=step * STEP_SECONDS if at is None else at,
        step_seconds=STEP_SECONDS,
        sample_ids=tuple(range((step - 1) * SAMPLES, step * SAMPLES)),
    )


def commits(steps: int = 40, *, broken_after: int = 20) -> list[Committed]:
    """A run that stood still for a while after a step, and went on in generation 2."""
    return [
        commit(step)
        if step <= broken_after
        else commit(step, generation=2, at=step * STEP_SECONDS + OUTAGE_SECONDS)
        for step in range(1, steps + 1)
    ]


def incident(**changes: object) -> dict[str, Any]:
    """The one of that run: 3.8 s to detect, the rest for the answer."""
    phases = {
        "detect_seconds": 3.8,
        "decide_seconds": 0.0,
        "regroup_seconds": 0.1,
        "first_commit_seconds": 0.15,
        "redundancy_restored_seconds": 4.5,
    }
    usual: dict[str, Any] = {
        "id": "inc-0001",
        "kind": "node-lost",
        "node": "node-2",
        "state": "closed",
        "cause": "node-2 is lost: no heartbeat for 3.8 s (the lease is 3 s)",
        "action": "fail over to backups",
        "reasons": ["node-2 is lost", "nothing moves"],
        "phases": phases,
        "steps_lost": 0,
        "steps_redone": 1,
        "generation": 2,
        "first_sign_at": 2.05,
    }
    return {**usual, **changes}


def evidence(**changes: Any) -> Evidence:
    """All of it."""
    ledger = tuple(changes.pop("commits", commits()))
    incidents = changes.pop("incidents", [incident()])
    told = changes.pop("stories", tuple({"incident": each, "events": []} for each in incidents))
    summary = {
        "incidents": [{"id": each["id"]} for each in incidents],
        "steps_committed": len(ledger),
        "samples_missing": 0,
        "samples_duplicated": 0,
    }
    return Evidence(
        workdir=Path("/nowhere"),
        summary=changes.pop("summary", summary),
        stories=told,
        commits=ledger,
        set_aside=tuple(changes.pop("set_aside", ())),
        samples_per_step=SAMPLES,
        deeds=tuple(changes.pop("deeds", ())),
    )


def deed(*, may_roll_back: bool) -> Deed:
    from chaos.kinds import Aftermath

    return Deed(words="killed node-2", may_roll_back=may_roll_back, aftermath=Aftermath.INCIDENT)
