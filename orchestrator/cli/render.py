"""Rows on paper: tables that fit the terminal, JSON, YAML; how seconds, bytes and states are written everywhere.

A pipe gets plain text at its natural width, one line per row; a terminal gets colours, and where it is narrow the
least important columns are left out and named below the table. Next: `rows.py`, the rows themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from orchestrator.cli.rows import Row


class Output(Enum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


GOOD, CALM, WARN, BAD, FAINT = "green", "cyan", "yellow", "bold red", "dim"

_STATE_STYLES = {
    **dict.fromkeys(("running", "active", "sealed", "closed", "finished", "joined"), GOOD),
    **dict.fromkeys(("spare", "ready", "stopped", "planned", "initial"), CALM),
    **dict.fromkeys(
        ("pending", "recovering", "stopping", "suspect", "draining", "degraded", "writing"), WARN
    ),
    **dict.fromkeys(("failed", "dead", "damaged", "open", "lost"), BAD),
    **dict.fromkeys(("deleted", "requested", "starting"), FAINT),
}

_GAP = "  "
_NARROWEST = 14
"""An elastic column is not squeezed below this many cells."""


def style_of(state: str) -> str:
    """The colour of a state, whatever it is the state of."""
    return _STATE_STYLES.get(state, "")


def seconds(value: float | None) -> str:
    """A duration in three digits or so: `83 ms`, `1.24 s`, `12.3 s`, `4m 05s`, `2h 03m`; `-` when not known."""
    if value is None:
        return "-"
    if value < 0.0995:
        return f"{value * 1000:.0f} ms"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def window(incident: Row) -> str:
    """The vulnerability window in words: `3.24 s`, `34.0 s…` while it is open, with `!` where it was too long."""
    marks = ("…" if incident.get("window_open") else "") + ("!" if incident.get("alarmed") else "")
    return seconds(incident.get("window_seconds")) + marks


def size(count: float) -> str:
    """Bytes with a unit: `512 B`, `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def quantity(count: float) -> str:
    """A count with a suffix: `950`, `6.1k`, `1.2M`."""
    for suffix in ("", "k", "M"):
        if abs(count) < 999.5:
            return f"{count:.0f}" if not suffix else f"{count:.3g}{suffix}"
        count /= 1000
    return f"{count:.3g}G"


def percent(share: float) -> str:
    """A share of one with one digit: `97.3%`."""
    return f"{share * 100:.1f}%"


def clock(at: float | None) -> str:
    """Local time of day with milliseconds."""
    if not at:
        return "-"
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 step`, `3 steps`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def dump(value: object, output: Output) -> str:
    """JSON or YAML, ending without a newline."""
    if output is Output.YAML:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000).rstrip("\n")
    return json.dumps(value, indent=2, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table. `keep` orders columns by importance: the lowest is left out first."""

    header: str
    cell: Callable[[Row], Any]
    keep: int = 5
    right: bool = False
    elastic: bool = False
    """May be cut with an ellipsis on a narrow terminal."""
    state: bool = False
    """Holds a state, and is coloured like one."""


def table(columns: Sequence[Column], rows: Sequence[Row], width: int | None, empty: str) -> Text:
    """The table as text; `width` None means as wide as it is. `empty` is said when there are no rows."""
    if not rows:
        return Text(empty, style=FAINT)
    cells = [[_written(column.cell(row)) for column in columns] for row in rows]
    widths = [
        max(cell_len(column.header), *(cell_len(line[index]) for line in cells))
        for index, column in enumerate(columns)
    ]
    shown, left_out = _fit(columns, widths, width)
    text = _line(
        [columns[index] for index in shown], [columns[i].header for i in shown], [widths[i] for i in shown]
    )
    text.stylize("bold")
    for line in cells:
        text.append("\n")
        text.append_text(
            _line([columns[i] for i in shown], [line[i] for i in shown], [widths[i] for i in shown], True)
        )
    if left_out:
        text.append(
            f"\n(too narrow for {', '.join(columns[i].header for i in left_out)}: -o json has all)", FAINT
        )
    return text


def _written(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split())


def _fit(columns: Sequence[Column], widths: list[int], width: int | None) -> tuple[list[int], list[int]]:
    """Which columns are shown (their widths may shrink in place), and which are left out."""
    shown, left_out = list(range(len(columns))), list[int]()

    def excess() -> int:
        return sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1) - (width or 0)

    if width is None:
        return shown, left_out
    natural = list(widths)
    while True:
        for index in shown:
            widths[index] = natural[index]
        for index in sorted((i for i in shown if columns[i].elastic), key=lambda i: -widths[i]):
            if excess() > 0:
                widths[index] = max(min(natural[index], _NARROWEST), widths[index] - excess())
        if excess() <= 0 or len(shown) == 1:
            widths[shown[0]] = min(widths[shown[0]], width)
            return shown, sorted(left_out)
        least = min(shown, key=lambda i: (columns[i].keep, -i))
        shown.remove(least)
        left_out.append(least)


def _line(
    columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], coloured: bool = False
) -> Text:
    line = Text()
    for position, (column, cell, width) in enumerate(zip(columns, cells, widths, strict=True)):
        short = cell if cell_len(cell) <= width else set_cell_size(cell, max(0, width - 1)) + "…"
        padding = " " * (width - cell_len(short))
        last = position == len(columns) - 1
        style = style_of(cell) if coloured and column.state else ""
        line.append(padding if column.right else "")
        line.append(short, style=style)
        line.append("" if last else ("" if column.right else padding) + _GAP)
    return line


def show(
    console: Console, rows: Sequence[Row], columns: Sequence[Column], output: Output, empty: str
) -> None:
    """Print a list in the form that was asked for; JSON is an array of objects, also when it is empty."""
    if output is Output.TABLE:
        width = console.width if console.is_terminal else None
        console.print(table(columns, rows, width, empty), soft_wrap=True)
    else:
        console.out(dump(list(rows), output), highlight=False)


def show_one(console: Console, value: Row, output: Output) -> None:
    """Print one object as JSON or YAML."""
    console.out(dump(value, output), highlight=False)
