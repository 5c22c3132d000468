"""The live view as SVG files: the moment when the first incident has its new generation, and the end.

For the README and for reports (`understudy run --record-svg FILE`). Next: `live.py`, which draws.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from orchestrator.cli.live import render
from orchestrator.cli.workdir import write_atomically
from protos import admin_pb2

_WIDTH = 92


class Recorder:
    """Looks at every view and keeps two of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._incident_saved = False

    def see(self, view: admin_pb2.JobView) -> None:
        """Save the first view in which an incident has its new generation. Raises OSError."""
        if self._incident_saved or not any(
            each.phases.HasField("regroup_seconds") for each in view.incidents
        ):
            return
        self._incident_saved = True
        write_atomically(self._path, svg(view))

    def end(self, view: admin_pb2.JobView) -> None:
        """Save the last view, beside the first (`FILE-end.svg`). Raises OSError."""
        if not self._incident_saved:
            write_atomically(self._path, svg(view))
        write_atomically(self._path.with_stem(f"{self._path.stem}-end"), svg(view))


def svg(view: admin_pb2.JobView, width: int = _WIDTH) -> str:
    """The picture as an SVG document."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(render(view, width))
    return console.export_svg(title=f"understudy run: {view.job.name}")
