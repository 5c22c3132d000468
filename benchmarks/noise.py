"""What every benchmark says beside its figures: medians with their ranges, and how quiet the machine was.

Pure arithmetic, and reads of /proc. What must not live here: anything that is measured.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

QUIET_LOAD_SHARE = 0.25
"""Of the processors: a machine with more load than this before the start is not quiet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median and its range; `count` values."""

    count: int
    median: float
    low: float
    high: float
    quarter: float
    three_quarters: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None for no values at all."""
        if not values:
            return None
        ordered = sorted(values)
        lower, _, upper = (
            statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        )
        return cls(
            count=len(ordered),
            median=statistics.median(ordered),
            low=ordered[0],
            high=ordered[-1],
            quarter=lower,
            three_quarters=upper,
        )

    def text(self, digits: int = 3) -> str:
        """`median (low to high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def mapping(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The machine at one moment."""

    load: float
    """Runnable processes, mean of the last minute."""
    idle_seconds: float
    """Of all processors since the machine started."""
    stolen_seconds: float
    """That a hypervisor gave to somebody else."""
    total_seconds: float


def conditions() -> Conditions:
    """Now."""
    ticks = [float(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    hertz = float(os.sysconf("SC_CLK_TCK"))
    return Conditions(
        load=os.getloadavg()[0],
        idle_seconds=(ticks[3] + ticks[4]) / hertz,
        stolen_seconds=ticks[7] / hertz,
        total_seconds=sum(ticks[:8]) / hertz,
    )


def machine(before: Conditions) -> dict[str, Any]:
    """What the figures were measured on, and how quiet it was: for the head of a report."""
    now = conditions()
    spent = max(now.total_seconds - before.total_seconds, 1e-9)
    cores = os.cpu_count() or 1
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": cores,
        "python": platform.python_version(),
        "load_before": before.load,
        "quiet_before": before.load <= QUIET_LOAD_SHARE * cores,
        "stolen_share": (now.stolen_seconds - before.stolen_seconds) / spent,
    }


def machine_text(described: dict[str, Any]) -> str:
    """One line for people."""
    quiet = "quiet" if described["quiet_before"] else "NOT quiet"
    return (
        f"{described['cores']} cores ({described['processor']}), Python {described['python']}; before the start "
        f"{quiet} (load {described['load_before']:.2f}); stolen by the host {described['stolen_share']:.1%}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first to the left, the others to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
