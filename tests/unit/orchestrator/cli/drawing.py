"""Draws a view as a terminal would show it, and gives the lines."""

from __future__ import annotations

import io
from typing import Literal

from rich.console import Console, RenderableType


def lines(renderable: RenderableType, width: int, *, colours: bool = False) -> list[str]:
    """What comes out at a width, without spaces at line ends."""
    out = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if colours else None
    console = Console(file=out, width=width, force_terminal=colours, color_system=system, highlight=False)
    console.print(renderable)
    return [each.rstrip() for each in out.getvalue().splitlines()]
