"""The ledger of a run, read while it is written: the independent record by which everything is judged.

Reads `metrics.jsonl` and the lines that a restore set aside, and nothing else. Next: `laws.py`, `downtime.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEDGER = "metrics.jsonl"
SET_ASIDE = "metrics.rolled-back.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """One committed step."""

    step: int
    loss: float | None
    generation: int
    time: float
    step_seconds: float
    sample_ids: tuple[int, ...]


def read(path: Path) -> list[Committed]:
    """Whole lines only, in order; none where there is no file yet."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [_committed(json.loads(line)) for line in lines if line.endswith("\n")]


def last_step(workdir: Path) -> int:
    """The newest step in the ledger, 0 where there is none. Reads the end of the file only."""
    try:
        with (workdir / LEDGER).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].startswith(b"{") else 0


def _committed(line: dict[str, Any]) -> Committed:
    return Committed(
        step=int(line["step"]),
        loss=None if line["loss"] is None else float(line["loss"]),
        generation=int(line["generation"]),
        time=float(line["time"]),
        step_seconds=float(line["step_seconds"]),
        sample_ids=tuple(line["sample_ids"]),
    )
