"""The report at the end of a run: what was trained, what failed and what that cost, where things are, what to try next.

Pure: the summary of the controller (`--summary`'s object) and the last view in, text out. Next: `session.py`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.lines import line, paragraph
from orchestrator.cli.render import BAD, FAINT, GOOD, Column, percent, plural, seconds, size, style_of, table
from orchestrator.cli.rows import Row

_MOST_INCIDENTS = 20
_LEGEND = 14
_NAMES = 18
"""Columns for names of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that is over."""

    job: Row
    """As `rows.job`."""
    summary: dict[str, Any]
    workdir: Path
    job_words: tuple[str, ...]
    """The job as it was named on the command line: the file, and what was changed about it."""
    nodes: int
    steps: int
    notes: tuple[str, ...] = ()
    """What happened on the launcher's side: restarts of the controller."""


_COLUMNS = (
    Column(header="INCIDENT", cell=lambda row: row["id"], keep=9),
    Column(header="KIND", cell=lambda row: row["kind"], keep=7),
    Column(header="NODE", cell=lambda row: row["node"], keep=8),
    Column(header="DETECT", cell=lambda row: seconds(row["phases"]["detect_seconds"]), right=True, keep=4),
    Column(header="REGROUP", cell=lambda row: seconds(row["phases"]["regroup_seconds"]), right=True, keep=3),
    Column(
        header="COMMIT", cell=lambda row: seconds(row["phases"]["first_commit_seconds"]), right=True, keep=4
    ),
    Column(header="TRAINING", cell=lambda row: seconds(rows.training_after(row)), right=True, keep=8),
    Column(
        header="REDUNDANT",
        cell=lambda row: seconds(row["phases"]["redundancy_restored_seconds"]),
        right=True,
        keep=6,
    ),
    Column(header="LOST", cell=lambda row: row["steps_lost"], right=True, keep=6),
    Column(header="REDONE", cell=lambda row: row["steps_redone"], right=True, keep=5),
)


def report(ended: Ended, width: int | None) -> Text:
    """What was trained and what failed; `width` None for a pipe."""
    return Text("\n").join([_title(ended), *_results(ended, width), *_incidents(ended, width)])


def afterwards(ended: Ended) -> Text:
    """Where things are and what to try next: lines to be copied, so nothing is wrapped or framed."""
    return Text("\n").join([*_places(ended), *_next(ended)])


def _title(ended: Ended) -> Text:
    job = ended.job
    reason = f": {job['reason']}" if job["reason"] and job["state"] != "finished" else ""
    return line((job["name"], "bold"), " ", (job["state"], f"bold {style_of(job['state'])}"), reason)


def _row(legend: str, *parts: str | tuple[str, str] | Text, wide: int = _LEGEND) -> Text:
    return line((legend.ljust(wide), FAINT), *parts)


def _results(ended: Ended, width: int | None) -> list[Text]:
    summary, job = ended.summary, ended.job
    took = ""
    if job["started_at"] and job["ended_at"]:
        took = f", {seconds(job['ended_at'] - job['started_at'])} of training"
    loss = summary["final_loss"]
    found = [
        _row("steps", (str(summary["steps_committed"]), "bold"), f" of {ended.steps} committed{took}"),
        _row("final loss", ("-" if loss is None else f"{loss:.6f}", "bold")),
        *_validation(summary.get("validation")),
        _samples(summary),
        _row("goodput", (percent(summary["goodput"]), "bold"), " of the time went into committed steps"),
        _row("generations", str(summary["generations"])),
        _row("checkpoints", _checkpoints(summary["checkpoints"])),
    ]
    for note in ended.notes:
        found += paragraph(note, width, "note".ljust(_LEGEND))
    return found


def _validation(measured: dict[str, Any] | None) -> list[Text]:
    if measured is None or measured["loss"] is None:
        return []
    rest = (
        f" at step {measured['step']}: perplexity {measured['perplexity']:.3f}, "
        f"{measured['bits_per_byte']:.4f} bits per byte"
    )
    return [_row("validation", (f"{measured['loss']:.6f}", "bold"), rest)]


def _samples(summary: dict[str, Any]) -> Text:
    expected, counted = summary["samples_expected"], summary["samples_counted"]
    duplicated, missing = summary["samples_duplicated"], summary["samples_missing"]
    whole = expected == counted and not duplicated and not missing
    verdict = ("exactly once", GOOD) if whole else ("NOT exactly once", BAD)
    numbers = f"{expected} expected, {counted} counted, {duplicated} duplicated, {missing} missing: "
    return _row("samples", numbers, verdict)


def _checkpoints(sealed: list[dict[str, Any]]) -> str:
    if not sealed:
        return "none sealed"
    last = sealed[-1]
    took = "" if last["seconds"] is None else f" in {seconds(last['seconds'])}"
    steps = ", ".join(str(each["step"]) for each in sealed)
    return (
        f"sealed at {'step' if len(sealed) == 1 else 'steps'} {steps} (newest: {size(last['bytes'])}{took})"
    )


def _incidents(ended: Ended, width: int | None) -> list[Text]:
    incidents = ended.summary["incidents"]
    if not incidents:
        return [line("\n", ("no incident", GOOD), ": nothing failed")]
    shown = incidents[-_MOST_INCIDENTS:]
    found = [line(("\nincidents", "bold"))]
    found.append(table(_COLUMNS, shown, width, ""))
    meaning = (
        "TRAINING: from the first sign to the next committed step; REDUNDANT: until every replica was back"
    )
    found += paragraph(meaning, width, "", FAINT)
    if len(incidents) > len(shown):
        found.append(line((f"and {plural(len(incidents) - len(shown), 'earlier one')}", FAINT)))
    for incident in shown:
        found.append(line((f"\n{incident['id']}", "bold"), f": {incident['action'] or incident['kind']}"))
        for reason in dict.fromkeys([incident["cause"], *incident["reasons"]]):
            found += paragraph(reason, width, "  · ")
    return found


def _places(ended: Ended) -> list[Text]:
    found = [line(("where things are", "bold"))]
    found.append(_row("workdir", str(ended.workdir), wide=_NAMES))
    names = (
        (workdirs.METRICS_FILE, "one line per committed step"),
        (workdirs.VALIDATION_FILE, "one line per measurement of the held-out windows"),
        (workdirs.CURVES_FOLDER, f"curves: tensorboard --logdir {shlex.quote(str(ended.workdir))}"),
        (workdirs.SUMMARY_FILE, "this report as JSON"),
        ("checkpoints", "sealed checkpoints"),
        ("logs", "controller and nodes"),
    )
    found += [
        _row(name, (words, FAINT), wide=_NAMES) for name, words in names if (ended.workdir / name).exists()
    ]
    return found


def _next(ended: Ended) -> list[Text]:
    found = [line(("\nwhat to try next", "bold"))]
    for command, words in next_commands(ended):
        found.append(line(f"  {command}"))
        found.append(line((f"      {words}", FAINT)))
    return found


def next_commands(ended: Ended) -> list[tuple[str, str]]:
    """Three commands that make sense now, with what each shows."""
    here = shlex.quote(str(ended.workdir))
    job = shlex.join(ended.job_words)
    incidents = ended.summary["incidents"]
    state = ended.job["state"]
    middle = max(1, ended.steps // 3)
    explain = (
        f"understudy explain {incidents[-1]['id']} --workdir {here}" if incidents else "",
        "the whole story of the last incident",
    )
    kill = (
        f"understudy run {job} --fail 'step={middle},kind=sigkill,node=node-{min(2, ended.nodes)}'",
        "kill a node in mid-step and watch its experts being played on",
    )
    freeze = (
        f"understudy run {job} --fail 'step={middle},kind=sigstop,node=node-{min(3, ended.nodes)}'",
        "freeze a node instead of killing it: the failure that no socket reports",
    )
    longer = (
        f"understudy run --resume {here} --steps {2 * ended.steps}",
        "train on from the newest checkpoint",
    )
    resume = (f"understudy run --resume {here}", "go on from the newest checkpoint")
    log = (
        f"tail -n 50 {shlex.quote(str(ended.workdir / workdirs.CONTROLLER_LOG))}",
        "what the controller saw last",
    )
    choices = {"failed": (log, explain, resume, kill), "stopped": (resume, explain, kill, freeze)}
    after = (explain, freeze, longer) if incidents else (kill, freeze, longer)
    picked = choices.get(state, after)
    return [each for each in picked if each[0]][:3]
