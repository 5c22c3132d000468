"""What an invocation has to tell: a line for each run, a table for each fault, and all about a run that failed.

Pure: results in, text or JSON out. Next: `command.py`.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from chaos.downtime import PHASES
from chaos.kinds import TRAITS, Kind
from chaos.player import RunResult, StrikeResult
from orchestrator.cli import rows as cli_rows

MEASURES = {
    "detect": ("detect_seconds",),
    "regroup": ("regroup_seconds",),
    "first_commit": ("first_commit_seconds",),
    "outage": PHASES,
}
_LEGEND = (
    "Seconds are median / worst over the incidents that training waited for. OUTAGE is from the first sign to the next",
    "commit: the sum of the phases, confirmed by the ledger in each run. WHOLE AGAIN is from a strike until each",
    "expert has its replicas and two more steps are committed. A run that fails counts against all of its faults.",
)
_LINES_OF_OUTPUT = 60
_DULL = (" step ", " nodes ")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """All strikes of a kind."""

    kind: Kind
    runs: int
    survived: int
    skipped: str
    """Why it was never played, if so."""
    seconds: dict[str, tuple[float, float] | None]
    """Median and worst of each measure, over the incidents of its strikes that training waited for."""
    rest_seconds: tuple[float, float] | None
    """Median and worst from a strike until every expert had its replicas again and two more steps were committed."""


def rows(results: Sequence[RunResult]) -> list[FaultRow]:
    """By kind, in the order of the catalogue; kinds that were not drawn are left out."""
    found = []
    for kind in Kind:
        strikes = [(run, each) for run in results for each in run.strikes if each.strike.kind is kind]
        if not strikes:
            continue
        played = [(run, each) for run, each in strikes if not each.skipped]
        known = [run.incidents.get(name) for run, each in played for name in each.incidents]
        incidents = [each for each in known if each is not None and not cli_rows.went_on(each)]
        found.append(
            FaultRow(
                kind=kind,
                runs=len(played),
                survived=sum(run.survived for run, _ in played),
                skipped="" if played else strikes[0][1].skipped,
                seconds={name: _spread(incidents, phases) for name, phases in MEASURES.items()},
                rest_seconds=_summary(
                    [each.rest_seconds for _, each in played if each.rest_seconds is not None]
                ),
            )
        )
    return found


def table(results: Sequence[RunResult]) -> str:
    """For people; seconds as median and worst."""
    head = (
        "FAULT",
        "RUNS",
        "SURVIVED",
        "DETECT",
        "REGROUP",
        "FIRST COMMIT",
        "OUTAGE",
        "WHOLE AGAIN",
        "WHAT IT IS",
    )
    lines: list[tuple[str, ...]] = [head]
    for row in rows(results):
        what = f"not here: needs {row.skipped}" if row.skipped else TRAITS[row.kind].words
        cells = [*(_pair(row.seconds[name]) for name in MEASURES), _pair(row.rest_seconds)]
        lines.append((row.kind.value, str(row.runs), str(row.survived), *cells, what))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.append("")
    text += _LEGEND
    return "\n".join(text)


def as_json(seed: int, results: Sequence[RunResult]) -> str:
    """For scripts."""
    return json.dumps(
        {
            "seed": seed,
            "runs": len(results),
            "survived": sum(each.survived for each in results),
            "faults": [
                {
                    "fault": row.kind.value,
                    "runs": row.runs,
                    "survived": row.survived,
                    "skipped": row.skipped or None,
                    **{
                        f"{name}_seconds": None if pair is None else {"median": pair[0], "worst": pair[1]}
                        for name, pair in (*row.seconds.items(), ("rest", row.rest_seconds))
                    },
                }
                for row in rows(results)
            ],
            "failures": [
                {"run": each.plan.number, "offences": each.offences, "folder": str(each.workdir)}
                for each in results
                if not each.survived
            ],
        },
        indent=2,
    )


def run_line(result: RunResult) -> str:
    """One run in one line."""
    plan = result.plan
    cluster = f"{plan.nodes} nodes, {plan.spares} spares, {plan.replicas} replicas"
    cluster += f", {plan.stages} stages" if plan.stages > 1 else ""
    names = [_told(each) for each in result.strikes]
    verdict = "survived" if result.survived else f"FAILED: {result.offences[0].splitlines()[0]}"
    return (
        f"run {plan.number:3d}  {cluster}  {result.steps} steps, {len(result.incidents)} incidents, "
        f"{result.seconds:.0f} s  {verdict}  [{', '.join(names)}]"
    )


def _told(strike: StrikeResult) -> str:
    name = strike.strike.kind.value
    if strike.skipped:
        return f"({name})"
    return name if strike.rest_seconds is None else f"{name} {strike.rest_seconds:.0f} s"


def failure(result: RunResult, repeat: Sequence[str]) -> str:
    """All that is needed to look into a run that failed."""
    lines = [f"run {result.plan.number} failed:"]
    lines += [f"  - {each}" for each in result.offences]
    lines.append(f"its folder: {result.workdir}  (beside it: .out, .yaml, .summary.json)")
    lines.append(f"again:      {shlex.join(repeat)}")
    lines.append("timeline:")
    lines += timeline(result)
    return "\n".join(lines)


def timeline(result: RunResult) -> list[str]:
    """What we did between what the run said, by the clock."""
    told = [(stamp, f"  {stamp}  >>> {words}") for stamp, words in _deeds(result.strikes)]
    output = result.workdir.with_suffix(".out")
    for line in _said(output)[-_LINES_OF_OUTPUT:]:
        told.append((line[:8], f"  {line[:8]}  {line[9:]}"))
    return [line for _, line in sorted(told, key=lambda each: each[0])]


def _deeds(strikes: Sequence[StrikeResult]) -> list[tuple[str, str]]:
    found = []
    for each in strikes:
        if not each.skipped:
            words = each.deed.words if each.deed else "struck, and did not get over it"
            found.append(
                (time.strftime("%H:%M:%S", time.localtime(each.at)), f"{each.strike.kind.value}: {words}")
            )
    return found


def _said(output: Path) -> list[str]:
    """The lines of a run with a time, without those about steps."""
    try:
        lines = output.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [
        line for line in lines if line[2:3] == ":" and line[5:6] == ":" and not any(w in line for w in _DULL)
    ]


def _spread(incidents: Sequence[dict[str, Any]], phases: Sequence[str]) -> tuple[float, float] | None:
    taken = []
    for incident in incidents:
        values = [incident["phases"][name] for name in phases]
        if None not in values:
            taken.append(sum(values))
    return _summary(taken)


def _summary(taken: Sequence[float]) -> tuple[float, float] | None:
    return (round(median(taken), 3), round(max(taken), 3)) if taken else None


def _pair(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"
