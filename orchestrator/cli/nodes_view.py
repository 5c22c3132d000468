"""The live picture's nodes: who is alive, who has a seat, where in a step everybody is, which experts they hold.

Pure: a view in, lines out. Next: `experts_view.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from orchestrator.cli.colours import NodeColours, natural, node_of
from orchestrator.cli.lines import cut, line, padded
from orchestrator.cli.render import BAD, FAINT, WARN, seconds, style_of
from protos import admin_pb2

_LATE_SECONDS = 1.0
"""A heartbeat older than this is shown in yellow; nodes send several a second."""

_COLUMNS = {"": 1, "NODE": 4, "STATE": 9, "RANK": 4, "STEP": 4, "PHASE": 10, "BEAT": 6, "EXPERTS": 7}
"""Header and least width; wide enough for what comes and goes, so that the table does not jump."""
_LEFT_OUT_FIRST = ("BEAT", "RANK", "PHASE", "EXPERTS", "STEP")
_GONE = ("dead", "suspect", "draining")


def nodes_lines(view: admin_pb2.JobView, colours: NodeColours, width: int) -> list[Text]:
    """A header and one line per node."""
    nodes = sorted(view.nodes, key=lambda each: natural(each.id))
    held = _held(view)
    table = [(node, _cells(node, held.get(node.id, (0, 0)), colours)) for node in nodes]
    widths = _widths(table, width)
    found = [cut(line(("".join(header.ljust(cells + 1) for header, cells in widths.items()), FAINT)), width)]
    for node, cells in table:
        words, style = _reason(node)
        shown = ("", "NODE", "STATE") if words and node.state == "dead" else tuple(widths)
        pieces = [
            line(padded(cells[header], wide), " ") for header, wide in widths.items() if header in shown
        ]
        found.append(cut(line(*pieces, (words, style)), width))
    return found


def nodes_width(view: admin_pb2.JobView) -> int:
    """Cells that the table needs to show every column, without reasons."""
    colours = NodeColours(())
    table = [(node, _cells(node, (0, 0), colours)) for node in view.nodes]
    widths = _widths(table, None)
    return sum(widths.values()) + len(widths) - 1


def _widths(table: Sequence[tuple[admin_pb2.Node, dict[str, Text]]], width: int | None) -> dict[str, int]:
    """Columns that fit, with their widths; a dead node's reason takes the room of what it does not do."""
    widths = {
        header: max([least, *(cells[header].cell_len for _, cells in table)])
        for header, least in _COLUMNS.items()
    }
    for header in _LEFT_OUT_FIRST:
        if width is not None and sum(widths.values()) + len(widths) - 1 > width:
            del widths[header]
    return widths


def _held(view: admin_pb2.JobView) -> dict[str, tuple[int, int]]:
    """Node -> how many experts it plays as primary, and how many as backup."""
    primary = Counter(node_of(expert.primary) for expert in view.experts)
    backup = Counter(node_of(trainer) for expert in view.experts for trainer in expert.backups)
    return {node: (primary[node], backup[node]) for node in {*primary, *backup}}


def _cells(node: admin_pb2.Node, held: tuple[int, int], colours: NodeColours) -> dict[str, Text]:
    lost = node.state == "dead"
    age = node.heartbeat_age_seconds
    late = age > _LATE_SECONDS or not node.connected
    ranks = ",".join(str(each.rank) for each in node.trainers if each.HasField("rank"))
    return {
        "": line(("■", FAINT if lost else colours.colour(node.id))),
        "NODE": line((node.id, FAINT if lost else "bold")),
        "STATE": line((node.state, style_of(node.state))),
        "RANK": line(ranks or ("-", FAINT)),
        "STEP": line(("-", FAINT) if lost or not node.trainers else str(node.step)),
        "PHASE": line(("-", FAINT) if lost else _phase(node.trainers)),
        "BEAT": line((_age(age), FAINT if lost else WARN if late else "")),
        "EXPERTS": line(f"{held[0]}+{held[1]}" if any(held) else ("-", FAINT)),
    }


def _age(value: float) -> str:
    """Tenths are enough for the age of a heartbeat, and do not flicker."""
    return f"{value:.1f} s" if value < 99.95 else seconds(value)


def _phase(trainers: Sequence[admin_pb2.Trainer]) -> str:
    phases = Counter(each.phase for each in trainers if each.phase)
    if not phases:
        return "starting" if not trainers else "-"
    first = phases.most_common(1)[0][0]
    return first if len(phases) == 1 else f"{first} +{len(phases) - 1}"


def _reason(node: admin_pb2.Node) -> tuple[str, str]:
    """What a node does matters less than why it does not."""
    if node.state not in _GONE and not node.cordoned:
        return "", ""
    words = " ".join(node.reason.split()) or ("cordoned" if node.cordoned else "")
    return words, BAD if node.state == "dead" else WARN
