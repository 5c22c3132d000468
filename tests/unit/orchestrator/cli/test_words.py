"""The story of an incident and the report of a run: what they must say, whatever happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import rows
from orchestrator.cli.explain import story
from orchestrator.cli.incident_events import in_words
from orchestrator.cli.report import Ended, afterwards, next_commands, report
from protos import admin_pb2 as pb
from tests.unit.orchestrator.cli import views

FIRST = views.incident("open").first_sign_at


def _event(sequence: int, after: float, kind: str, detail: str) -> pb.Event:
    return pb.Event(sequence=sequence, at=FIRST + after, kind=kind, cause_id="c-1", detail=detail)


EVENTS = (
    _event(7, 0.0, "NodeDisconnected", '{"node": "node-2", "reason": "connection reset"}'),
    _event(8, 0.084, "CommunicationFailed", '{"trainer": "node-1/0", "step": 60, "detail": "peer closed"}'),
    _event(
        9,
        0.12,
        "GenerationJoined",
        '{"trainer": "node-1/0", "generation": 2, "committed": 60, "redoes": true}',
    ),
    _event(10, 2.9, "PartsAcquired", '{"trainer": "node-5/0", "version": 66}'),
)


def _explained(incident: pb.Incident) -> rows.Row:
    return rows.explanation(pb.ExplainIncidentReply(incident=incident, events=EVENTS))


def test_a_story_is_told_in_order_with_times_from_the_first_sign() -> None:
    text = story(_explained(views.closed_incident()), None).plain
    wanted = (
        "incident-1: node lost of node-2, closed",
        "the agent's stream broke",
        "+0.000  the stream of node-2 broke: connection reset",
        "+0.084  node-1/0 lost its peers after step 60: peer closed",
        "+0.087  decided: fail over experts",
        "+0.120  node-1/0 joined generation 2 at step 60, and computes the step in flight again",
        "+0.648  first commit: training goes on",
        "+3.240  redundancy restored",
        "What was decided, and why",
        views.REASONS[1],
        "What was moved",
        "node-5/0 holds copies of its parts, up to step 66, copied from living replicas while the others trained",
        "What it cost",
        "no step was committed for 0.65 s",
        "no committed step was lost",
        "1 step in flight computed again",
        "4 experts stood on fewer replicas than asked for, for 3.24 s",
    )
    positions = [text.index(words) for words in wanted]
    assert positions == sorted(positions)


def test_a_story_that_goes_on_says_what_is_not_there_yet() -> None:
    text = story(_explained(views.incident("open")), None).plain
    assert "training has not committed a step since" in text
    assert "4 experts stood on fewer replicas than asked for, for 34.0 s so far" in text
    assert "redundancy restored" not in text


def test_lost_steps_are_not_hidden() -> None:
    incident = views.closed_incident()
    incident.steps_lost = 12
    assert "12 committed steps lost and trained again" in story(_explained(incident), None).plain


@pytest.mark.parametrize(
    "kind, detail, words",
    [
        (
            "TrainerExited",
            {"trainer": "n/0", "signal": 9, "exit_code": None, "will_restart": True},
            "SIGKILL; its agent",
        ),
        ("TrainerExited", {"trainer": "n/0", "signal": None, "exit_code": 1}, "ended with exit code 1"),
        ("TrainerFellSilent", {"trainer": "n/0", "silent_seconds": 3.2}, "no sign of life for 3.20 s"),
        ("GenerationJoined", {"trainer": "n/0", "completed_held": True}, "from gradients it held"),
        ("SomethingNewHappened", {"node": "node-3"}, "something new happened: node-3"),
        ("StepCommitted", {"record": {"step": 4}}, "step 4 was committed"),
        ("NodeDisconnected", {}, "the stream of ? broke: ?"),
    ],
)
def test_events_have_words_whatever_is_in_them(kind: str, detail: dict[str, Any], words: str) -> None:
    assert words in in_words({"kind": kind, "detail": detail})


SUMMARY: dict[str, Any] = {
    "job": "stdlib-moe",
    "steps_committed": 200,
    "final_loss": 2.1034,
    "samples_expected": 4800,
    "samples_counted": 4800,
    "samples_duplicated": 0,
    "samples_missing": 0,
    "goodput": 0.973,
    "generations": 3,
    "incidents": [],
    "checkpoints": [{"step": 200, "path": "/runs/a/c", "bytes": 24_300_000, "seconds": 0.31}],
}


def _ended(state: str = "finished", **changes: Any) -> Ended:
    job = rows.job(views.finished().job)
    job["state"] = state
    return Ended(
        job=job,
        summary={**SUMMARY, **changes},
        workdir=Path("/runs/a b"),
        job_words=("job.yaml", "--set", "a=b c"),
        nodes=4,
        steps=200,
        notes=("the controller was ended by SIGKILL",),
    )


def test_a_report_says_what_was_trained() -> None:
    text = report(_ended(), None).plain
    for words in (
        "stdlib-moe finished",
        "200 of 200 committed, 3m 00s of training",
        "2.103400",
        "4800 expected, 4800 counted, 0 duplicated, 0 missing: exactly once",
        "97.3%",
        "sealed at step 200 (newest: 24.3 MB in 0.31 s)",
        "the controller was ended by SIGKILL",
        "no incident: nothing failed",
    ):
        assert words in text
    assert "/runs/a b" in afterwards(_ended()).plain


def test_a_sample_that_was_lost_is_shouted_about() -> None:
    assert "NOT exactly once" in report(_ended(samples_counted=4799, samples_missing=1), None).plain


def test_incidents_are_reported_with_phases_and_reasons() -> None:
    incident = rows.incident(views.closed_incident())
    text = report(_ended(incidents=[incident]), None).plain
    assert "INCIDENT" in text and "0.65 s" in text and "3.24 s" in text
    assert "incident-1: fail over experts" in text
    assert all(reason in text for reason in views.REASONS)


def test_a_report_of_a_job_that_never_began_is_a_report() -> None:
    nothing = dict.fromkeys(("steps_committed", "samples_expected", "samples_counted", "generations"), 0)
    ended = _ended(state="failed", **nothing, final_loss=None, goodput=0.0, checkpoints=[])
    ended.job["reason"] = "only 2 of 4 nodes became ready"
    text = report(ended, 60).plain
    assert "stdlib-moe failed: only 2 of 4 nodes became ready" in text
    assert "none sealed" in text


@pytest.mark.parametrize(
    "state, first", [("finished", "sigkill"), ("stopped", "run --resume"), ("failed", "tail")]
)
def test_three_commands_to_try_next(state: str, first: str) -> None:
    commands = next_commands(_ended(state))
    assert len(commands) == 3
    assert first in commands[0][0]
    explained = next_commands(_ended(state, incidents=[rows.incident(views.closed_incident())]))
    assert any("explain incident-1 --workdir '/runs/a b'" in command for command, _ in explained)


@pytest.mark.parametrize("width", [80, 120])
def test_story_and_report_fit_their_width(width: int) -> None:
    told = story(_explained(views.closed_incident()), width).plain.splitlines()
    told += report(_ended(incidents=[rows.incident(views.closed_incident())]), width).plain.splitlines()
    assert max(map(len, told)) <= width
