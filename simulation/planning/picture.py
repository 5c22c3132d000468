"""The picture of a scenario: goodput and capacity over time, every failure marked, and where the hours went.

An SVG of its own, readable on light and dark ground. Draws a report and computes nothing else. Next: `report.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 1000, 640
LEFT, RIGHT = 84, 24
GOODPUT_TOP, GOODPUT_HEIGHT = 112, 190
MARKS_TOP, MARK_ROW = 322, 14
CAPACITY_HEIGHT = 60
BARS = 7
BAR_ROW = 19

_STYLE = """
  .ground { fill: #ffffff } .ink { fill: #1c2430 } .faint { fill: #5b6675 } .line { stroke: #d5dae1 }
  .ours { stroke: #1769aa } .fill { fill: #1769aa } .other { stroke: #c25e00 } .otherfill { fill: #c25e00 }
  .area { fill: #1769aa; fill-opacity: 0.18 } .mark { stroke: #b3261e } .goal { stroke: #3c7d3c }
  text { font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 12px }
  .title { font-size: 17px; font-weight: 600 } .big { font-size: 14px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #12161c } .ink { fill: #e8ecf2 } .faint { fill: #9aa6b5 } .line { stroke: #323a46 }
    .ours { stroke: #6cb6ff } .fill { fill: #6cb6ff } .other { stroke: #ffab5e } .otherfill { fill: #ffab5e }
    .area { fill: #6cb6ff; fill-opacity: 0.22 } .mark { stroke: #ff8a80 } .goal { stroke: #7ccf7c }
  }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def draw_svg(report: Mapping[str, Any]) -> str:
    """The picture as one SVG document."""
    days = report["scenario"]["days"]
    x = _Scale(low=0.0, high=days * 24.0, start=LEFT, end=WIDTH - RIGHT)
    kinds = [kind for kind in report["failures"] if report["failures"][kind]]
    capacity_top = MARKS_TOP + MARK_ROW * max(1, len(kinds)) + 24
    bars_top = capacity_top + CAPACITY_HEIGHT + 52
    height = max(HEIGHT, bars_top + 24 + BAR_ROW * BARS + 16)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    label = escape(_headline(report), quote=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        *_head(report),
        *_goodput(report, x),
        *_marks(report, kinds, x),
        *_capacity(report, x, capacity_top),
        *_days(days, x, capacity_top + CAPACITY_HEIGHT),
        *_losses(report, bars_top),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, css: str = "ink", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(y: float, css: str = "line", dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line class="{css}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"{dashed}/>'


def _headline(report: Mapping[str, Any]) -> str:
    scenario = report["scenario"]
    failures = sum(report["failures"].values())
    return (
        f"{scenario['name']}: {scenario['gpus']:,} GPUs, {scenario['days']:g} days, {failures:,} failures: "
        f"goodput {report['goodput']:.2%}"
    )


def _head(report: Mapping[str, Any]) -> Iterable[str]:
    scenario, baseline = report["scenario"], report["baseline"]
    yield _text(LEFT, 34, scenario["name"], "ink title")
    checkpoints = (
        "derived"
        if scenario["checkpoint_interval"] == "auto"
        else f"every {scenario['checkpoint_interval_seconds'] / 60:g} min"
    )
    yield _text(
        LEFT,
        54,
        f"{scenario['gpus']:,} GPUs in {scenario['nodes']} nodes, {scenario['spare_nodes']} spare nodes, "
        f"{scenario['experts']} experts in {scenario['replicas']} replicas, checkpoints {checkpoints}, "
        f"{scenario['days']:g} days, {sum(report['failures'].values()):,} failures",
        "faint",
    )
    lost = f"{report['steps_lost']:,} committed steps lost"
    yield f'<line class="ours" stroke-width="3" x1="{LEFT}" x2="{LEFT + 26}" y1="78" y2="78"/>'
    yield _text(LEFT + 34, 82, f"Understudy: goodput {report['goodput']:.2%}, {lost}", "ink big")
    yield f'<line class="other" stroke-width="2" x1="{LEFT + 480}" x2="{LEFT + 506}" y1="78" y2="78"/>'
    lost = f"{baseline['steps_lost']:,} steps lost"
    text = f"restart from checkpoint: goodput {baseline['goodput']:.2%}, {lost}"
    yield _text(LEFT + 514, 82, text, "ink")


def _goodput(report: Mapping[str, Any], x: _Scale) -> Iterable[str]:
    timeline = report["timeline"]
    values = [each[name] for each in timeline for name in ("goodput", "baseline_goodput")]
    low = max(0.0, min(0.9, int(min(values) * 20) / 20))
    y = _Scale(low=low, high=1.0, start=GOODPUT_TOP + GOODPUT_HEIGHT, end=GOODPUT_TOP)
    for index in range(5):
        value = low + (1.0 - low) * index / 4
        yield _rule(y(value))
        yield _text(LEFT - 8, y(value) + 4, f"{value:.1%}", "faint", "end")
    yield _text(16, GOODPUT_TOP - 10, "goodput", "faint")
    yield _rule(y(report["goodput_goal"]), "goal", "5 4")
    yield _text(
        WIDTH - RIGHT, y(report["goodput_goal"]) - 5, f"goal {report['goodput_goal']:.1%}", "faint", "end"
    )
    for name, css, width in (("baseline_goodput", "other", 1.2), ("goodput", "ours", 1.8)):
        path = _steps(timeline, name, x, y)
        yield f'<path class="{css}" fill="none" stroke-width="{width}" d="{path}"/>'


def _steps(timeline: Sequence[Mapping[str, float]], name: str, x: _Scale, y: _Scale) -> str:
    """A line with a level for each slice."""
    hours = [each["hours"] for each in timeline] + [x.high]
    commands = []
    for index, each in enumerate(timeline):
        commands.append(f"{'L' if index else 'M'}{x(hours[index]):.1f},{y(each[name]):.1f}")
        commands.append(f"H{x(hours[index + 1]):.1f}")
    return "".join(commands)


def _marks(report: Mapping[str, Any], kinds: Sequence[str], x: _Scale) -> Iterable[str]:
    """A row of ticks for each kind of failure."""
    if not kinds:
        yield _text(LEFT, MARKS_TOP + 10, "nothing fails", "faint")
    for row, kind in enumerate(kinds):
        y = MARKS_TOP + row * MARK_ROW
        yield _text(LEFT - 8, y + 10, kind.replace("_", " "), "faint", "end")
        for mark in report["marks"]:
            if mark["kind"] == kind:
                at = x(mark["hours"])
                yield f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{y}" y2="{y + MARK_ROW - 4}"/>'


def _capacity(report: Mapping[str, Any], x: _Scale, top: float) -> Iterable[str]:
    gpus = report["scenario"]["gpus"]
    y = _Scale(low=0.0, high=float(gpus), start=top + CAPACITY_HEIGHT, end=top)
    path = _steps(report["timeline"], "gpus", x, y)
    bottom = y(0)
    yield _rule(top)
    yield _rule(bottom)
    yield f'<path class="area" d="{path}V{bottom:.1f}H{LEFT}Z"/>'
    yield f'<path class="ours" fill="none" stroke-width="1" d="{path}"/>'
    yield _text(LEFT - 8, top + 4, f"{gpus:,}", "faint", "end")
    yield _text(LEFT - 8, bottom + 4, "0", "faint", "end")
    yield _text(16, top + CAPACITY_HEIGHT / 2 - 2, "GPUs", "faint")
    yield _text(16, top + CAPACITY_HEIGHT / 2 + 12, "with a seat", "faint")


def _days(days: float, x: _Scale, y: float) -> Iterable[str]:
    """The axis of time, in days or hours."""
    unit, total, step = ("day", days, 1.0) if days >= 2 else ("hour", days * 24, 1.0)
    while total / step > 12:
        step += 1.0 if step < 5 else 5.0
    count = int(total / step)
    for index in range(count + 1):
        at = x(index * step * (24 if unit == "day" else 1))
        label = f"{unit} {index * step:g}" if index == 0 else f"{index * step:g}"
        yield _text(at, y + 18, label, "faint", "start" if index == 0 else "middle")


def _losses(report: Mapping[str, Any], top: float) -> Iterable[str]:
    """What the hours that were not useful went into, beside the same of the baseline."""
    mine, other = report["gpu_hours"], report["baseline"]["gpu_hours"]
    names = [name for name in mine if name not in ("total", "useful")]
    names = sorted(names, key=lambda name: -max(mine[name], other[name]))[:BARS]
    longest = max([max(mine[name], other[name]) for name in names] + [1e-9])
    yield _text(LEFT, top, "GPU-hours that were not useful, by cause", "ink big")
    yield _text(WIDTH - RIGHT, top, "upper bar Understudy, lower bar restart from checkpoint", "faint", "end")
    scale = _Scale(low=0.0, high=longest, start=0.0, end=WIDTH - RIGHT - 260 - 170)
    for row, name in enumerate(names):
        y = top + 14 + row * BAR_ROW
        yield _text(LEFT + 130, y + 11, name.replace("_", " "), "ink", "end")
        for offset, css, value in ((1, "fill", mine[name]), (8, "otherfill", other[name])):
            width = max(scale(value), 0.5 if value else 0.0)
            yield f'<rect class="{css}" x="{LEFT + 140}" y="{y + offset}" width="{width:.1f}" height="6"/>'
        text = f"{mine[name]:,.0f} | {other[name]:,.0f}"
        end = LEFT + 148 + scale(max(mine[name], other[name]))
        yield _text(end, y + 11, text, "faint")
