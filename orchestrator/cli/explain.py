"""The story of an incident in plain words: what happened when, what was decided and why, what moved, what it cost.

Pure: rows in (`rows.explanation`), text out, so that a stored story reads like one from a living controller.
Next: `incident_events.py`, the words for single events.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli.incident_events import in_words
from orchestrator.cli.lines import line, paragraph
from orchestrator.cli.render import BAD, FAINT, GOOD, WARN, clock, plural, seconds, style_of
from orchestrator.cli.rows import Row

_MOST_EVENTS = 60


def story(explanation: Row, width: int | None) -> Text:
    """The whole story, one paragraph after the other; `width` None for a pipe."""
    incident, events = explanation["incident"], explanation["events"]
    parts = [
        _title(incident),
        *_timeline(incident, events, width),
        *_decision(incident, width),
        *_moved(events, width),
        *_cost(incident, width),
    ]
    return Text("\n").join(parts)


def _title(incident: Row) -> Text:
    about = f" of {incident['node']}" if incident["node"] else ""
    return line(
        (incident["id"], "bold"),
        f": {incident['kind'].replace('-', ' ')}{about}, ",
        (incident["state"], style_of(incident["state"])),
        f"\n{incident['cause']}" if incident["cause"] else "",
    )


def _heading(words: str) -> Text:
    return line((f"\n{words}", "bold"))


def _timeline(incident: Row, events: Sequence[Row], width: int | None) -> list[Text]:
    """Moments and events by time; of what happened at the same time the first sign comes first, a decision last."""
    first = incident["first_sign_at"]
    told = _without_repeats(events)
    shown = [(first, 0, "first sign", f"bold {WARN}")]
    shown += [(event["at"], 1, in_words(event), "") for event in told[:_MOST_EVENTS]]
    shown += [(at, 2, words, f"bold {style}") for at, words, style in _milestones(incident)]
    found = [_heading(f"What happened, in seconds from the first sign at {clock(first)}")]
    for at, _, words, style in sorted(shown, key=lambda each: each[:2]):
        found += paragraph(words, width, _offset(at - first), style)
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


def _decision(incident: Row, width: int | None) -> list[Text]:
    action, reasons = incident["action"], incident["reasons"]
    if not action and not reasons:
        return [_heading("What was decided"), line(("  nothing yet", WARN))]
    found = [_heading("What was decided, and why")]
    if action:
        found.append(line("  ", (action, "bold")))
    for reason in reasons:
        found += paragraph(reason, width, "  · ")
    return found


def _moved(events: Sequence[Row], width: int | None) -> list[Text]:
    """Copies made: in a handshake, or in the background before a trainer was seated."""
    joined = [each["detail"] for each in events if each["kind"] == "GenerationJoined"]
    acquired = [each for each in events if each["kind"] == "PartsAcquired"]
    found = []
    for each in acquired:
        what = "; ".join(each["reasons"]) or in_words(each)
        found.append(f"{what}, copied from living replicas while the others trained")
    for detail in joined:
        if detail.get("copied_parts"):
            parts = plural(int(detail["copied_parts"]), "part")
            found.append(
                f"{detail.get('trainer')} took over {parts} as it joined generation {detail['generation']}"
            )
    found = found or ["nothing: every expert was played on where a replica of it lived already"]
    paragraphs = [paragraph(each, width, "  · ") for each in dict.fromkeys(found)]
    return [_heading("What was moved"), *(each for lines in paragraphs for each in lines)]


def _exposure(incident: Row) -> tuple[str, str]:
    """For how long another loss might have taken the last replica of something."""
    if incident.get("window_seconds") is None:
        return "every expert kept as many replicas as asked for", GOOD
    exposed = plural(incident["experts_exposed"], "expert")
    bad = incident["alarmed"] or incident["window_open"]
    told = f"{exposed} stood on fewer replicas than asked for, for {seconds(incident['window_seconds'])}"
    return f"{told}{' so far' if incident['window_open'] else ''}", BAD if bad else ""


def _cost(incident: Row, width: int | None) -> list[Text]:
    phases = incident["phases"]
    stood = rows.training_after(incident)
    found: list[tuple[str, str]] = []
    if rows.went_on(incident):
        found.append(("nothing stood still: the others trained on while it was prepared", GOOD))
    elif stood is None:
        found.append(("training has not committed a step since", WARN))
    else:
        parts = ", ".join(
            f"{p.replace('_', ' ')} {seconds(phases[f'{p}_seconds'])}" for p in rows.PHASES[:-1]
        )
        found.append((f"no step was committed for {seconds(stood)} ({parts})", ""))
    lost, redone = incident["steps_lost"], incident["steps_redone"]
    words = (
        f"{plural(lost, 'committed step')} lost and trained again" if lost else "no committed step was lost"
    )
    found.append((words, BAD if lost else GOOD))
    if redone:
        found.append((f"{plural(redone, 'step')} in flight computed again", ""))
    elif not lost and stood is not None:
        found.append(("no step was computed twice", GOOD))
    found.append(_exposure(incident))
    paragraphs = [paragraph(each, width, "  · ", style) for each, style in found]
    return [_heading("What it cost"), *(each for lines in paragraphs for each in lines)]
