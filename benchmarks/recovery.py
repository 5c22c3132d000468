"""From a failure to the next committed step: ours, and two others on the same model, in turns on the same machine.

    python -m benchmarks.recovery [--quick] [--json FILE] [--only NAME]

Ours runs as users run it (`understudy run`), and loses whole nodes by SIGKILL and by SIGSTOP. Beside it: torchrun with
torch.distributed.checkpoint, which restarts all workers, and torchft where it can be installed. The systems take turns,
so that noise meets all of them. Goals: the next commit within a step and 0.5 s of a SIGKILL; within a step and 1 s of
the moment at which a frozen node's lease is over. Next: `recovery_understudy.py` and its neighbours.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.commit_log import NoProgress, Recovery
from benchmarks.noise import Spread, conditions, machine, machine_text, table
from benchmarks.recovery_system import Bout, Result, System, Unavailable
from benchmarks.recovery_torchft import Torchft
from benchmarks.recovery_torchrun import Torchrun
from benchmarks.recovery_understudy import PHASES, Understudy
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.jobfile import load_job_file
from worker.data.text import open_text

ROOT = Path(__file__).resolve().parents[1]
KILLED, FROZEN = "understudy, SIGKILL", "understudy, SIGSTOP"
KILL_GOAL_SECONDS = 0.5
"""Beyond one step."""
FROZEN_GOAL_SECONDS = 1.0
STEPS = 100_000
"""Nobody gets there."""
_UNAVAILABLE = "unavailable"
ATTEMPTS = 2
"""Of one start of a system that did not get anywhere (a port taken, a machine that stood still)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A system and how often it is failed."""

    system: System
    starts: int
    failures: int
    """In each start."""


def compare(entries: Sequence[Entry], job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """All systems in turns. A system that cannot be measured is reported as such."""
    results = {entry.system.name: Result() for entry in entries}
    troubles: dict[str, list[str]] = {entry.system.name: [] for entry in entries}
    try:
        for number in range(max(entry.starts for entry in entries)):
            for entry in entries:
                name = entry.system.name
                if number < entry.starts and not any(
                    each.startswith(_UNAVAILABLE) for each in troubles[name]
                ):
                    place = folder / f"{name.replace(' ', '-').replace(',', '')}-{number}"
                    bout = Bout(folder=place, job=job, failures=entry.failures, number=number)
                    _start(entry.system, bout, results[name], troubles[name])
                    _progress(name, number, results[name], troubles[name])
    except KeyboardInterrupt:
        for said in troubles.values():
            said.append("interrupted: fewer failures than planned")
    return {
        "systems": {
            entry.system.name: _figures(entry.system, results[entry.system.name], troubles[entry.system.name])
            for entry in entries
        }
    }


def _start(system: System, bout: Bout, result: Result, troubles: list[str]) -> None:
    """One start, and another one if it gets nowhere."""
    for attempt in range(ATTEMPTS):
        place = bout.folder.with_name(f"{bout.folder.name}-{attempt}")
        place.mkdir()
        try:
            result.extend(system.run(replace(bout, folder=place)))
            return
        except Unavailable as error:
            troubles.append(f"{_UNAVAILABLE}: {error}")
            return
        except NoProgress as error:
            troubles.append(str(error))


def _progress(name: str, number: int, result: Result, troubles: list[str]) -> None:
    last = result.recoveries[-1].commit_seconds if result.recoveries else float("nan")
    trouble = f"; {troubles[-1].splitlines()[0]}" if troubles else ""
    count = len(result.recoveries)
    print(
        f"  turn {number + 1}: {name}: {count} failures so far, last {last:.2f} s{trouble}", file=sys.stderr
    )


def _figures(system: System, result: Result, troubles: list[str]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float] | None:
        found = Spread.of(values)
        return found.mapping() if found else None

    recoveries: list[Recovery] = result.recoveries
    return {
        "setting": system.setting,
        "failures": len(recoveries),
        "step_seconds": spread([each.step_seconds for each in recoveries]),
        "commit_seconds": spread([each.commit_seconds for each in recoveries]),
        "seen_seconds": spread([each.seen_seconds for each in recoveries]),
        "new_step_seconds": spread([each.new_step_seconds for each in recoveries]),
        "beyond_a_step_seconds": spread([each.commit_seconds - each.step_seconds for each in recoveries]),
        "steps_lost": spread([float(each.steps_lost) for each in recoveries]),
        "details": {name: spread(values) for name, values in result.details.items()},
        "recoveries": [asdict(each) for each in recoveries],
        "troubles": troubles,
    }


def show(report: dict[str, Any], lease_seconds: float) -> str:
    """The figures as tables and verdicts."""
    systems = report["systems"]
    head = ["", "failures", "a step", "next commit", "next new step", "steps lost"]
    rows = [
        [
            name,
            str(each["failures"]),
            *(_text(each[key]) for key in ("step_seconds", "commit_seconds", "new_step_seconds")),
            _text(each["steps_lost"], 0),
        ]
        for name, each in systems.items()
    ]
    lines = ["seconds, median (lowest to highest)", table(head, rows), ""]
    lines += [f"{name}: {each['setting']}" for name, each in systems.items()]
    for name, each in systems.items():
        lines += [f"{name}: {trouble.splitlines()[0]}" for trouble in each["troubles"]]
    for name in (KILLED, FROZEN):
        if name in systems and systems[name]["failures"]:
            lines += ["", *_ours(name, systems[name], lease_seconds)]
    lines += ["", *_ratios(systems)]
    return "\n".join(lines)


def _ours(name: str, figures: dict[str, Any], lease_seconds: float) -> list[str]:
    details = figures["details"]
    beyond = statistics.median(
        each["commit_seconds"] - each["step_seconds"] for each in figures["recoveries"]
    )
    said = "beyond one step"
    goal = KILL_GOAL_SECONDS
    if name == FROZEN:
        beyond, goal = beyond - lease_seconds, FROZEN_GOAL_SECONDS
        said += f" and the lease of {lease_seconds:g} s"
    verdict = "within" if beyond <= goal else "MORE than"
    rows = [[phase.removesuffix("_seconds").replace("_", " "), _text(details.get(phase))] for phase in PHASES]
    rows.append(["line in metrics.jsonl", _text(figures["seen_seconds"])])
    wrong, share = _text(details.get("samples_wrong"), 0), _text(details.get("control_cpu_share"), 3)
    return [
        f"{name}: {beyond:.3f} s {said} ({verdict} the goal of {goal:g} s)",
        table(["where the time goes", "seconds"], rows),
        f"samples missing or counted twice: {wrong}; controller and agents use {share} of one processor",
    ]


def _ratios(systems: dict[str, Any]) -> list[str]:
    ours = systems.get(KILLED, {}).get("commit_seconds")
    if not ours:
        return []
    return [
        f"{name}: {each['commit_seconds']['median'] / ours['median']:.1f} times as long to the next commit, "
        f"{each['new_step_seconds']['median'] / systems[KILLED]['new_step_seconds']['median']:.1f} times to a new step"
        for name, each in systems.items()
        if name not in (KILLED, FROZEN) and each["commit_seconds"]
    ]


def _text(spread: dict[str, float] | None, digits: int = 2) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f} to {spread['high']:.{digits}f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The time from a failure to the next committed step.")
    parser.add_argument("--quick", action="store_true", help="one start of each system, one failure")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--only", help="only systems whose name contains this")
    parser.add_argument(
        "--keep", type=Path, help="leave the folders of all runs there, for a look at the logs"
    )
    given = parser.parse_args()
    # SIGTERM ends it as Ctrl-C does: no process is left behind, and what was measured is shown.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failures = 1 if given.quick else 2
    starts, other_starts, frozen_starts = (1, 1, 1) if given.quick else (5, 3, 2)
    before = conditions()
    with tempfile.TemporaryDirectory(prefix="understudy-recovery-") as scratch:
        folder = Path(given.keep or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / "text"
        sources = open_text("stdlib")
        sources.read(0, sources.bytes).tofile(text)
        changes = [f"steps={STEPS}", f"data.path={text}"]
        spec = load_job_file(str(ROOT / "examples" / "stdlib-moe.yaml"), changes)
        entries = [
            Entry(system=Understudy(signal.SIGKILL), starts=starts, failures=failures),
            Entry(system=Torchrun(), starts=other_starts, failures=failures),
            Entry(system=Torchft(folder / "torchft"), starts=other_starts, failures=failures),
            Entry(system=Understudy(signal.SIGSTOP), starts=frozen_starts, failures=failures),
        ]
        chosen = [entry for entry in entries if not given.only or given.only in entry.system.name]
        report = compare(chosen, to_mapping(spec), folder)
    report["machine"] = machine(before)
    report["lease_seconds"] = spec.timeouts.lease_seconds
    print(machine_text(report["machine"]))
    print(show(report, spec.timeouts.lease_seconds))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
