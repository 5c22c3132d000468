"""The story of an incident in plain words: what happened when, what was decided and why, what moved, what it cost.

Pure: rows in (`rows.explanation`), text out, so that a stored story reads like one from a living controller.
Next: `incident_events.py`, the words for single events.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli.incident_events import in_words
from orchestrator.cli.lines import line
from orchestrator.cli.render import BAD, FAINT, GOOD, WARN, clock, plural, seconds, style_of
from orchestrator.cli.rows import Row

_MOST_EVENTS = 60


def story(explanation: Row) -> Text:
    """The whole story, one paragraph after the other, for a console that wraps."""
    incident, events = explanation["incident"], explanation["events"]
    parts = [
        _title(incident),
        *_timeline(incident, events),
        *_decision(incident),
        *_moved(events),
        *_cost(incident),
    ]
    return Text("\n").join(parts)


def _title(incident: Row) -> Text:
    about = f" of {incident['node']}" if incident["node"] else ""
    return line(
        (incident["id"], "bold"),
        f": {incident['kind'].replace('-', ' ')}{about}, ",
        (incident["state"], style_of(incident["state"])),
        f"\nfirst sign: {incident['cause']}" if incident["cause"] else "",
    )


def _heading(words: str) -> Text:
    return line(f"\n{words}")


def _timeline(incident: Row, events: Sequence[Row]) -> list[Text]:
    first = incident["first_sign_at"]
    moments = [(first, "first sign", WARN), *_milestones(incident)]
    shown: list[tuple[float, int, Text]] = [
        (at, 1, line(_offset(at - first), (words, f"bold {style}"))) for at, words, style in moments
    ]
    told = list(_without_repeats(events))
    for event in told[:_MOST_EVENTS]:
        shown.append((event["at"], 0, line(_offset(event["at"] - first), in_words(event))))
    found = [_heading(f"What happened, in seconds from the first sign at {clock(first)}")]
    found += [text for _, _, text in sorted(shown, key=lambda each: each[:2])]
    if len(told) > _MOST_EVENTS:
        found.append(line((f"            and {len(told) - _MOST_EVENTS} more: understudy events", FAINT)))
    return found


def _offset(delta: float) -> str:
    return f"  {delta:+9.3f}  "


def _milestones(incident: Row) -> list[tuple[float, str, str]]:
    """The ends of the phases as moments."""
    phases, first = incident["phases"], incident["first_sign_at"]
    names = {
        "detect": "detected: the failure is certain",
        "decide": f"decided: {incident['action'] or 'what to do'}",
        "regroup": "regrouped: all members have joined the new generation",
        "first_commit": "first commit: training goes on",
    }
    found, at = [], first
    for phase, words in names.items():
        took = phases[f"{phase}_seconds"]
        if took is None:
            break
        at += took
        found.append((at, words, GOOD))
    whole = phases["redundancy_restored_seconds"]
    if whole is not None:
        found.append((first + whole, "redundancy restored: every expert has its replicas again", GOOD))
    return found


def _without_repeats(events: Sequence[Row]) -> list[Row]:
    """Events in order; of equal sentences that follow each other only the first."""
    found: list[Row] = []
    for event in sorted(events, key=lambda each: each["sequence"]):
        if not found or in_words(found[-1]) != in_words(event):
            found.append(event)
    return found


def _decision(incident: Row) -> list[Text]:
    action, reasons = incident["action"], incident["reasons"]
    if not action and not reasons:
        return [_heading("What was decided"), line(("  nothing yet", WARN))]
    found = [_heading("What was decided, and why")]
    if action:
        found.append(line("  ", (action, "bold")))
    found += [line(("  · ", FAINT), reason) for reason in reasons]
    return found


def _moved(events: Sequence[Row]) -> list[Text]:
    """Copies made: in a handshake, or in the background before a trainer was seated."""
    joined = [each["detail"] for each in events if each["kind"] == "GenerationJoined"]
    acquired = [each["detail"] for each in events if each["kind"] == "PartsAcquired"]
    found = []
    for detail in acquired:
        words = f"{detail.get('trainer')} copied its parts from living replicas while the others trained"
        found.append(f"{words} (caught up at step {detail.get('version')})")
    for detail in joined:
        if detail.get("copied_parts"):
            parts = plural(int(detail["copied_parts"]), "part")
            found.append(
                f"{detail.get('trainer')} took over {parts} as it joined generation {detail['generation']}"
            )
    found = found or ["nothing: every expert was played on where a replica of it lived already"]
    return [_heading("What was moved"), *(line(f"  {each}") for each in dict.fromkeys(found))]


def _cost(incident: Row) -> list[Text]:
    phases = incident["phases"]
    stood = rows.training_after(incident)
    whole = phases["redundancy_restored_seconds"]
    found = [_heading("What it cost")]
    if stood is None:
        found.append(line(("  training has not committed a step since", WARN)))
    else:
        parts = ", ".join(
            f"{p.replace('_', ' ')} {seconds(phases[f'{p}_seconds'])}" for p in rows.PHASES[:-1]
        )
        found.append(line("  no step was committed for ", (seconds(stood), "bold"), f" ({parts})"))
    lost, redone = incident["steps_lost"], incident["steps_redone"]
    words = (
        "no committed step was lost"
        if not lost
        else f"{plural(lost, 'committed step')} lost and trained again"
    )
    found.append(line("  ", (words, BAD if lost else GOOD)))
    if redone:
        found.append(line(f"  {plural(redone, 'step')} in flight computed again"))
    elif not lost and stood is not None:
        found.append(line("  the step in flight was completed from the gradients that the survivors held"))
    if whole is not None:
        found.append(line(f"  some experts had no backup for {seconds(whole)}"))
    elif incident["state"] != "closed":
        found.append(line(("  some experts have no backup until capacity comes back", WARN)))
    return found
