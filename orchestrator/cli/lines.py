"""Lines of styled text: cutting, padding, sparklines, bars. A picture is a list of lines that fit its width.

Pure functions on `rich.text.Text`. Next: `live.py`, which composes the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from orchestrator.cli.render import FAINT

_MOST_LINES = 100
BLOCKS = "▁▂▃▄▅▆▇█"


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """One line from pieces: plain strings, (text, style) pairs, other lines."""
    return Text.assemble(*parts, no_wrap=True)


def cut(text: Text, width: int) -> Text:
    """At most `width` cells, with an ellipsis where something was cut off."""
    short = text.copy()
    short.rstrip()
    short.truncate(max(1, width), overflow="ellipsis")
    return short


def padded(text: Text, width: int) -> Text:
    """Exactly `width` cells."""
    short = cut(text, width)
    short.pad_right(width - short.cell_len)
    return short


def spread(left: Text, right: Text, width: int) -> Text:
    """One piece on each edge; the right one gives way when there is no room for both."""
    room = width - left.cell_len - right.cell_len
    if room < 2:
        return cut(left, width)
    return line(left, " " * room, right)


def heading(title: str, width: int, note: str = "") -> Text:
    """A rule with a title and, where there is room, a note at its end."""
    start = f"── {title} "
    end = f" {note} ──" if note and len(start) + len(note) + 8 <= width else ""
    return line((start, FAINT), ("─" * max(0, width - len(start) - len(end)), FAINT), (end, FAINT))


def wrapped(text: str, width: int, lead: str, style: str = "", most: int = 3) -> list[Text]:
    """A sentence over at most `most` lines; the first begins with `lead`, the others are indented like it."""
    found: list[str] = []
    for word in text.split():
        if found and len(found[-1]) + 1 + len(word) <= width - len(lead):
            found[-1] += f" {word}"
        else:
            found.append(word)
    if len(found) > most:
        found = [*found[: most - 1], " ".join(found[most - 1 :])]
    leads = [lead, *([" " * len(lead)] * (len(found) - 1))]
    return [
        cut(line((start, FAINT), (each, style)), width) for start, each in zip(leads, found, strict=False)
    ]


def paragraph(text: str, width: int | None, lead: str, style: str = "") -> list[Text]:
    """The whole sentence, however many lines it takes; `width` None leaves it in one."""
    if width is None:
        return [line((lead, FAINT), (" ".join(text.split()), style))]
    return wrapped(text, width, lead, style, most=_MOST_LINES)


def beside(left: Sequence[Text], right: Sequence[Text], left_width: int, gap: int) -> list[Text]:
    """Two blocks next to each other."""
    rows = max(len(left), len(right))
    blank = Text("")
    filled = [[*block, *([blank] * (rows - len(block)))] for block in (left, right)]
    return [line(padded(one, left_width), " " * gap, two) for one, two in zip(*filled, strict=True)]


def sparkline(values: Sequence[float], width: int) -> str:
    """Newest values to the right; a lower value is a lower block. Non-finite values leave a gap."""
    shown = list(values)[-width:] if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((each - low) * scale)] if math.isfinite(each) else " " for each in shown)


def bar(share: float, width: int, style: str) -> Text:
    """A progress bar of `width` cells."""
    full = round(max(0.0, min(1.0, share)) * width)
    return line(("━" * full, style), ("─" * (width - full), FAINT))
