"""The real thing: `understudy run --plain` with controller, agents and trainers, failing as a whole node.

A failure takes agent and trainer of a node at once, by the same signal, at any moment of a step. Nothing is told to the
system; what it did is read from its ledger (`metrics.jsonl`) and, at the end, from its summary.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import process_family
from benchmarks.commit_log import Commit, CommitLog, NoProgress
from benchmarks.recovery_system import RECOVER_SECONDS, Bout, Moments, Result, victims

UNDERSTUDY = Path(sys.executable).with_name("understudy")
NODES = 4
STOP_SECONDS = 60.0
SEAT_SECONDS = 60.0
"""For a spare to take the empty seat."""
PHASES = ("until_decided_seconds", "regroup_seconds", "first_commit_seconds", "redundancy_restored_seconds")
"""From the signal to the decision, then as the controller times them; the last one begins with the first sign."""


class Understudy:
    """`number` is what a node is failed with: SIGKILL, or SIGSTOP (then nobody hears of it before a time-out)."""

    def __init__(self, number: signal.Signals) -> None:
        self._signal = number

    @property
    def name(self) -> str:
        return f"understudy, {self._signal.name}"

    @property
    def setting(self) -> str:
        return f"{self._signal.name} of one of {NODES} nodes, agent and trainer; a spare for each failure"

    def run(self, bout: Bout) -> Result:
        """See `System`."""
        job_file, summary = bout.folder / "job.yaml", bout.folder / "summary.json"
        spares = {"nodes": NODES, "spares": bout.failures}
        job = {**bout.job, "cluster": {**bout.job["cluster"], **spares}}
        job_file.write_text(yaml.safe_dump(job))
        workdir = bout.folder / "run"
        command = [str(UNDERSTUDY), "run", str(job_file), "--workdir", str(workdir)]
        output = bout.folder / "understudy.log"
        with output.open("ab") as stream:
            process = subprocess.Popen(
                [*command, "--plain", "--summary", str(summary)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

        def alive() -> None:
            if process.poll() is not None:
                raise NoProgress(f"the run ended with {process.returncode}:\n{output.read_text()[-3000:]}")

        struck: list[int] = []
        try:
            result = self._fail(bout, workdir, CommitLog(workdir / "metrics.jsonl", alive), struck)
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
        finally:
            process_family.end(process, signal.SIGINT)
            for leader in (*struck, *_leaders(workdir).values()):
                process_family.end_session(leader)
        _read_summary(json.loads(summary.read_text()), result)
        return result

    def _fail(self, bout: Bout, workdir: Path, log: CommitLog, struck: list[int]) -> Result:
        moments, result = Moments(bout), Result()
        usage = _Usage(workdir)
        for node in victims([f"node-{number + 1}" for number in range(NODES)], bout):
            log.wait_steady(SEAT_SECONDS)
            usage.begin()
            step_seconds = moments.wait(log)
            result.note("control_cpu_share", usage.share())
            leader = _leaders(workdir)[node]
            members = process_family.session_members(leader)
            struck.append(leader)
            generation = log.commits[-1].generation
            fail = partial(process_family.send, members, self._signal)
            result.recoveries.append(log.strike(fail, step_seconds, RECOVER_SECONDS))
            # One generation without the node, one with the spare in its place.
            log.wait(partial(_is_later, generation + 1), SEAT_SECONDS, "spare in the seat")
        return result


def _is_later(generation: int, commit: Commit) -> bool:
    return commit.generation > generation


class _Usage:
    """Processor time of what is not a trainer: controller and agents."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self.begin()

    def begin(self) -> None:
        self._at, self._used = time.monotonic(), self._seconds()

    def share(self) -> float:
        """Of one processor, since `begin`."""
        return (self._seconds() - self._used) / max(time.monotonic() - self._at, 1e-9)

    def _seconds(self) -> float:
        leaders = list(_leaders(self._workdir).values())
        try:
            leaders.append(int(json.loads((self._workdir / "controller.json").read_text())["pid"]))
        except FileNotFoundError:
            return 0.0
        return process_family.cpu_seconds(leaders)


def _leaders(workdir: Path) -> dict[str, int]:
    """Node -> pid of its agent, which leads the node's session."""
    found = {}
    for record in sorted((workdir / "nodes").glob("*.json")):
        found[record.stem] = int(json.loads(record.read_text())["pid"])
    return found


def _read_summary(summary: dict[str, Any], result: Result) -> None:
    """Where the time went, as the controller saw it; and the proof that nothing was lost.

    The controller cannot know when the signal was sent: what its phases leave of the whole went by until it decided.
    """
    incidents = summary["incidents"]
    for index, incident in enumerate(incidents):
        phases = incident["phases"]
        for phase in PHASES[1:]:
            result.note(phase, phases[phase])
        after = (phases["regroup_seconds"], phases["first_commit_seconds"])
        if len(incidents) == len(result.recoveries) and None not in after:
            result.note(PHASES[0], result.recoveries[index].seen_seconds - sum(after))
        result.note("steps_lost", float(incident["steps_lost"]))
    result.note("samples_wrong", float(summary["samples_missing"] + summary["samples_duplicated"]))
