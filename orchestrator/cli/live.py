"""The live picture of a job: a JobView in, something Rich can print out, at any width and height.

Pure: `render` reads no clock, no terminal and no network, so that a picture can be tested, recorded and replayed.
The parts are in `nodes_view`, `experts_view` and `incidents_view`. Next: `screen.py`, which puts it on a terminal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.cli import colours as node_colours
from orchestrator.cli.experts_view import experts_lines, experts_note, experts_width
from orchestrator.cli.incidents_view import incidents_lines, shown_reasons
from orchestrator.cli.lines import bar, beside, cut, heading, line, sparkline, spread, wrapped
from orchestrator.cli.nodes_view import nodes_lines, nodes_width
from orchestrator.cli.render import BAD, FAINT, GOOD, WARN, percent, plural, quantity, seconds, style_of
from protos import admin_pb2

_GAP = 3
_LOG_LINES = 6
_LEAST_LOG_LINES = 2
_UNLIMITED = 1000
ENDED = ("finished", "stopped", "failed")
"""States of a job that does not go on by itself."""
_TOLD_ELSEWHERE = ("running", "recovering", "finished")
"""States whose reason is an incident's, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """What the launcher has to say beside the view."""

    notes: tuple[str, ...] = ()
    """Newest last; the last one or two are shown."""
    hint: str = ""
    """What a key does now."""
    away_seconds: float | None = None
    """Since the controller last answered; None while it answers."""


def render(
    view: admin_pb2.JobView, width: int, height: int | None = None, aside: Aside | None = None
) -> RenderableType:
    """The whole picture, no line longer than `width`, no more than `height` lines."""
    aside = aside or Aside()
    limit = height or _UNLIMITED
    colours = node_colours.of_view(view)
    fixed = [*_header(view, width, aside), *_cast(view, colours, width)]
    footer = _footer(aside, width)
    room = limit - len(fixed) - len(footer)
    found = [*fixed, *_incidents_and_log(view, width, room), *footer]
    return Group(*(cut(each, width) for each in found[:limit]))


def _header(view: admin_pb2.JobView, width: int, aside: Aside) -> list[Text]:
    job = view.job
    state = line((job.name or "understudy", "bold"), "  ", (job.state, f"bold {style_of(job.state)}"))
    generation = line(("generation ", FAINT), (str(job.generation), "bold"))
    found = [spread(state, generation, width), _progress(view, width), _numbers(view, width)]
    if aside.away_seconds is not None:
        words = f"controller away for {seconds(aside.away_seconds)}: training goes on without it"
        found.append(line((words, WARN)))
    elif job.reason and job.state not in _TOLD_ELSEWHERE:
        found += wrapped(job.reason, width, "", BAD if job.state == "failed" else WARN, most=2)
    return found


def _progress(view: admin_pb2.JobView, width: int) -> Text:
    job = view.job
    share = job.step / job.steps if job.steps else 0.0
    counts = f" step {job.step}/{job.steps}"
    left = _time_left(view)
    note = f"  {left}" if left else ""
    cells = max(8, width - len(counts) - len(note))
    return line(bar(share, cells, BAD if job.state == "failed" else GOOD), (counts, "bold"), (note, FAINT))


def _time_left(view: admin_pb2.JobView) -> str:
    steps = view.job.steps - view.job.step
    if view.job.state in ENDED or view.step_seconds <= 0 or steps <= 0:
        return ""
    left = steps * view.step_seconds
    return f"{left:.0f} s left" if left < 100 else f"{seconds(left)} left"


def _numbers(view: admin_pb2.JobView, width: int) -> Text:
    """Loss with its curve, speed, goodput; the curve takes what is left of the width."""
    if not view.recent_losses:
        return line(("no step committed yet", FAINT))
    loss = f"{view.loss:.4f}" if math.isfinite(view.loss) else str(view.loss)
    rest = line(
        (f"{quantity(view.tokens_per_second)} tokens/s", ""),
        (f"  {seconds(view.step_seconds)}/step", FAINT),
        ("  goodput ", FAINT),
        (percent(view.goodput), "bold"),
    )
    if view.HasField("validation"):
        measured = f"  validation {view.validation.loss:.4f} at step {view.validation.step}"
        rest = line(rest, (measured, FAINT))
    head = line(("loss ", FAINT), (loss, "bold" if math.isfinite(view.loss) else BAD), " ")
    room = min(40, width - head.cell_len - rest.cell_len - 2)
    curve = line((sparkline(view.recent_losses, room), "#56b4e9"))
    return spread(line(head, curve), rest, width) if room >= 4 else cut(line(head, " ", rest), width)


def _cast(view: admin_pb2.JobView, colours: node_colours.NodeColours, width: int) -> list[Text]:
    """Nodes and experts, next to each other where there is room for both."""
    left_width, right_width = nodes_width(view), experts_width(view)
    note = experts_note(view)
    if view.experts and left_width + _GAP + right_width <= width:
        right_width = width - left_width - _GAP
        left = [heading("nodes", left_width), *nodes_lines(view, colours, left_width)]
        right = [heading("experts", right_width, note), *experts_lines(view, colours, right_width)]
        return beside(left, right, left_width, _GAP)
    nodes = [heading("nodes", width), *nodes_lines(view, colours, width)]
    return [*nodes, heading("experts", width, note), *experts_lines(view, colours, width)]


def _incidents_and_log(view: admin_pb2.JobView, width: int, room: int) -> list[Text]:
    """Incidents come first; the log keeps a line or two as long as there is room for both."""
    found: list[Text] = []
    told = shown_reasons(view)
    reasons = [each for each in view.recent_reasons if each not in told]
    if view.incidents and room >= 2:
        log_room = min(len(reasons), _LEAST_LOG_LINES) + 1 if reasons and room >= 10 else 0
        incidents = incidents_lines(view, width, room - 1 - log_room)
        if incidents:
            found = [heading("incidents", width, plural(len(view.incidents), "incident")), *incidents]
    log_room = min(_LOG_LINES, room - len(found) - 1, len(reasons))
    if log_room > 0:
        found.append(heading("why", width))
        found += [cut(line(("· ", FAINT), " ".join(each.split())), width) for each in reasons[-log_room:]]
    return found


def _footer(aside: Aside, width: int) -> list[Text]:
    found = [cut(line((note, WARN)), width) for note in aside.notes[-2:]]
    if aside.hint:
        found.append(cut(line((aside.hint, FAINT)), width))
    return found
