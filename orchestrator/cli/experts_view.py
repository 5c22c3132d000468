"""The live picture's experts: who plays each expert, who stands by, and at a glance which one has nobody behind it.

Each expert is a column: its primary's node, its backups' nodes, its load; a missing replica is a red cross. More
experts than fit are shown one cell each. Pure: a view in, lines out. Next: `live.py`.
"""

from __future__ import annotations

from rich.text import Text

from orchestrator.cli.colours import NodeColours, node_of
from orchestrator.cli.lines import BLOCKS, cut, line, wrapped
from orchestrator.cli.render import BAD, FAINT, seconds
from protos import admin_pb2

_LEGEND = 9
_MOST_BLOCKS = 3
"""With more rows of experts than this the map shows one cell per expert."""
_MISSING = "bold white on #c1121f"
_CROSS = "✗"


def experts_lines(view: admin_pb2.JobView, colours: NodeColours, width: int) -> list[Text]:
    """The map; empty when nothing is placed yet."""
    experts = sorted(view.experts, key=lambda each: each.id)
    if not experts:
        return [line(("experts are placed when enough nodes are ready", FAINT))]
    devices = _several_devices(view)
    names = [colours.label_of_trainer(t, devices) for e in experts for t in (e.primary, *e.backups) if t]
    cell = max(2, len(str(experts[-1].id)), *(len(name) for name in names or [""])) + 1
    per_block = max(1, (width - _LEGEND + 1) // cell)
    if -(-len(experts) // per_block) > _MOST_BLOCKS:
        return _compact(experts, colours, width)
    found: list[Text] = []
    for start in range(0, len(experts), per_block):
        found += _block(experts[start : start + per_block], experts, colours, cell, devices)
    return [cut(each, width) for each in found]


def experts_width(view: admin_pb2.JobView) -> int:
    """Cells that the map likes to have: one block."""
    return _LEGEND + 3 * len(view.experts) - 1


def experts_note(view: admin_pb2.JobView) -> str:
    """`12 of 16 have all replicas, the others not for 4.2 s; step 161 in host memory`."""
    if not view.experts:
        return ""
    redundant = sum(expert.redundant for expert in view.experts)
    note = f"{redundant} of {len(view.experts)} have all replicas"
    window = max(
        (expert.window_seconds for expert in view.experts if expert.HasField("window_seconds")), default=None
    )
    if window is not None:
        note += f", the others not for {seconds(window)}"
    held = [each.step for each in view.snapshots if each.state != "partial"]
    return f"{note}; step {held[0]} in host memory" if held else note


def _several_devices(view: admin_pb2.JobView) -> bool:
    trainers = {t for expert in view.experts for t in (expert.primary, *expert.backups) if t}
    return len({node_of(trainer) for trainer in trainers}) < len(trainers)


def _block(
    shown: list[admin_pb2.Expert],
    experts: list[admin_pb2.Expert],
    colours: NodeColours,
    cell: int,
    devices: bool,
) -> list[Text]:
    most = max(len(expert.backups) for expert in experts)
    if any(not expert.redundant for expert in experts):
        most = max(most, 1)
    found = [line(("expert".ljust(_LEGEND), FAINT), *((f"{each.id:>{cell - 1}} ", FAINT) for each in shown))]
    for position in range(most + 1):
        legend = "primary" if position == 0 else "backup" if most == 1 else f"backup {position}"
        row = [(legend.ljust(_LEGEND), FAINT)]
        for expert in shown:
            row += _replica(expert, position, colours, cell, devices)
        found.append(line(*row))
    found.append(line(("load".ljust(_LEGEND), FAINT), *(_load(each.load_share, cell) for each in shown)))
    return found


def _replica(
    expert: admin_pb2.Expert, position: int, colours: NodeColours, cell: int, devices: bool
) -> list[tuple[str, str]]:
    replicas = [trainer for trainer in (expert.primary, *expert.backups) if trainer]
    if position < len(replicas):
        trainer = replicas[position]
        label = colours.label_of_trainer(trainer, devices)
        return [(label.rjust(cell - 1), f"bold black on {colours.colour(node_of(trainer))}"), (" ", "")]
    if not replicas or (not expert.redundant and position == max(1, len(replicas))):
        return [(_CROSS.rjust(cell - 1), _MISSING), (" ", "")]
    return [(" " * cell, "")]


def _load(share: float, cell: int) -> tuple[str, str]:
    """A bar per expert: a fair share is half of the height, twice the fair share is full."""
    level = min(len(BLOCKS) - 1, max(0, round(share / 2 * (len(BLOCKS) - 1))))
    return (BLOCKS[level] * (cell - 1) + " ", FAINT)


def _compact(experts: list[admin_pb2.Expert], colours: NodeColours, width: int) -> list[Text]:
    """One cell per expert in the colour of its primary, then those that lack a replica by number."""
    found: list[Text] = []
    for start in range(0, len(experts), width):
        cells = [
            ("●", colours.colour(node_of(expert.primary))) if expert.redundant else (_CROSS, _MISSING)
            for expert in experts[start : start + width]
        ]
        found.append(line(*cells))
    bare = [str(expert.id) for expert in experts if not expert.redundant]
    if bare:
        found += wrapped(f"lack a replica: {', '.join(bare)}", width, "", BAD, most=2)
    return found
