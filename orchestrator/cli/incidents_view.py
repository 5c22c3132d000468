"""The live picture's incidents: how far each has come, phase by phase, and why the controller does what it does.

An open incident is told in full, a closed one in a line; the newest comes first. Pure: a view in, lines out.
Next: `explain.py`, which tells the whole story of one.
"""

from __future__ import annotations

from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli.lines import cut, line, wrapped
from orchestrator.cli.render import BAD, FAINT, GOOD, WARN, plural, seconds, style_of, window
from protos import admin_pb2

_MOST_REASONS = 3
_READING_SECONDS = 30.0
_MARKS = {"open": ("●", BAD), "degraded": ("◐", WARN), "closed": ("✓", GOOD)}


def incidents_lines(view: admin_pb2.JobView, width: int, room: int) -> list[Text]:
    """As much as fits into `room` lines, the newest incident first; closed ones are told in a line each."""
    incidents = sorted(view.incidents, key=lambda each: each.first_sign_at, reverse=True)
    found: list[Text] = []
    for position, incident in enumerate(incidents):
        left = len(incidents) - position - 1
        in_full = incident.state != "closed" or (position == 0 and _just_closed(incident, view.at))
        block = _in_full(incident, width) if in_full else _closed(incident, width)
        reserved = 1 if left else 0
        if found and len(found) + len(block) + reserved > room:
            words = f"  and {plural(left + 1, 'earlier incident')}: see `understudy incidents`"
            found.append(cut(line((words, FAINT)), width))
            break
        found += block[: max(1, room - reserved)]
    return found[: max(0, room)]


def phases_pieces(incident: rows.Row) -> list[tuple[str, str]]:
    """Words and style for each phase: `detect 84 ms`, ..., `redundant after 3.24 s`; what is awaited ends in `…`."""
    found = []
    awaited = WARN
    for phase in rows.PHASES:
        value = incident["phases"][f"{phase}_seconds"]
        name = "redundant after" if phase == rows.PHASES[-1] else phase.replace("_", " ")
        found.append(
            (f"{name} {'…' if value is None else seconds(value)}", awaited if value is None else GOOD)
        )
        if value is None:
            awaited = FAINT
    if incident["window_open"]:
        exposed = plural(incident["experts_exposed"], "expert")
        found.append(
            (f"{exposed} short of replicas for {window(incident)}", BAD if incident["alarmed"] else WARN)
        )
    return found


def shown_reasons(view: admin_pb2.JobView) -> set[str]:
    """Reasons that the incidents tell already."""
    told = (each for each in view.incidents if each.state != "closed" or _just_closed(each, view.at))
    return {reason for each in told for reason in each.reasons}


def _just_closed(incident: admin_pb2.Incident, at: float) -> bool:
    """What is over in a second is shown a little longer, for people to read."""
    return at < incident.first_sign_at + incident.phases.redundancy_restored_seconds + _READING_SECONDS


def _in_full(incident: admin_pb2.Incident, width: int) -> list[Text]:
    mark = _MARKS.get(incident.state, ("●", BAD))
    head = line(
        mark,
        (f" {incident.id} ", "bold"),
        f"{incident.kind} {incident.node} ",
        (incident.state, style_of(incident.state)),
        (f"  {incident.cause}" if incident.cause not in incident.reasons else "", FAINT),
    )
    found = [cut(head, width), *_packed(phases_pieces(rows.incident(incident)), " › ", width)]
    if incident.action:
        found.append(cut(line(("  answer: ", FAINT), (incident.action, "bold")), width))
    for reason in list(incident.reasons)[-_MOST_REASONS:]:
        found += wrapped(reason, width, "  · ", most=3)
    return found


def _closed(incident: admin_pb2.Incident, width: int) -> list[Text]:
    row = rows.incident(incident)
    head = line(("✓", GOOD), (f" {incident.id} ", "bold"), f"{incident.kind} {incident.node}  ")
    pieces = [
        (
            "training went on"
            if rows.went_on(row)
            else f"training after {seconds(rows.training_after(row))}",
            GOOD,
        ),
        (f"redundant after {seconds(row['phases']['redundancy_restored_seconds'])}", GOOD),
        (f"{plural(incident.steps_lost, 'step')} lost", "" if incident.steps_lost == 0 else BAD),
    ]
    if incident.steps_redone:
        pieces.append((f"{incident.steps_redone} redone", ""))
    whole = line(head, _joined(pieces, ", "))
    return [whole] if whole.cell_len <= width else [cut(head, width), *_packed(pieces, ", ", width)]


def _packed(pieces: list[tuple[str, str]], separator: str, width: int) -> list[Text]:
    """Pieces in as few indented lines as their number of cells asks for."""
    groups: list[list[tuple[str, str]]] = [[]]
    for piece in pieces:
        longer = [*groups[-1], piece]
        if groups[-1] and _joined(longer, separator).cell_len + 2 > width:
            groups.append([piece])
        else:
            groups[-1] = longer
    return [cut(line("  ", _joined(group, separator)), width) for group in groups]


def _joined(pieces: list[tuple[str, str]], separator: str) -> Text:
    found = Text()
    for position, (words, style) in enumerate(pieces):
        found.append(separator if position else "", FAINT)
        found.append(words, style)
    return found
