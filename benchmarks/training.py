"""What the training features cost and bring: pipelines against the plain model and torch's own; a stage loses a seat.

    python -m benchmarks.training [--quick] [--json FILE] [--only steps,spare,thin]

`steps` times one step (forward, backward, reduction) of the same model in four ways that take turns: one process, data
x expert parallel, our pipeline, torch.distributed.pipelining. `spare` and `thin` kill a seat of a middle stage of
`understudy run` at random moments, with a spare for it and without; `thin` also compares the steps before (8 of 8
seats) with those after (7). Ratios are taken within a run; figures are medians with ranges. 8 minutes on 2 quiet cores.
Next: `training_rank.py`, one rank of `steps`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks import process_family
from benchmarks.commit_log import Commit, CommitLog, NoProgress, Recovery
from benchmarks.noise import Spread, conditions, machine, machine_text, table
from benchmarks.recovery_system import RECOVER_SECONDS, Bout, Moments
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.jobfile import load_job_file

ROOT = Path(__file__).resolve().parents[1]
UNDERSTUDY = Path(sys.executable).with_name("understudy")
PARTS = ("steps", "spare", "thin")
DEPTHS = (2, 4)
MICROBATCHES = 8
RANK_SECONDS = 600.0
SEAT_SECONDS = 60.0
STOP_SECONDS = 60.0
GOAL_SECONDS = 0.5
"""Beyond one step."""
MODEL = {
    "vocabulary": 256,
    "width": 128,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "experts": 8,
    "top_k": 2,
    "expert_width": 256,
    "sequence_length": 128,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "aux_loss": 0.0,  # torch's pipelining carries one tensor between stages, so no load-balance loss
    "router_temperature": 1.0,
    "router_noise": 0.0,
}
EXAMPLE = ROOT / "examples" / "pipeline-4x4.yaml"
PLAIN, TORCH, OURS = "plain model, one process", "torch.distributed.pipelining", "pipeline"


# ---- steps ----


def steps(depth: int, *, count: int, folder: Path) -> dict[str, Any]:
    """One step in four ways, over `depth` ranks."""
    text, out = folder / "text.txt", folder / f"steps-{depth}.json"
    text.write_bytes(b"".join(sorted(path.read_bytes() for path in (ROOT / "worker").rglob("*.py"))))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = ["--stages", str(depth), "--port", str(port), "--microbatches", str(MICROBATCHES)]
    shared += ["--steps", str(count), "--warm-steps", "2", "--model", json.dumps(MODEL)]
    shared += ["--text", str(text), "--out", str(out)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_rank", "--rank", str(rank), *shared],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(depth)
    ]
    try:
        codes = [each.wait(RANK_SECONDS) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    if any(codes):
        raise NoProgress(f"ranks ended with {codes}")
    found: dict[str, Any] = json.loads(out.read_text())
    losses = list(found["losses"].values())
    assert max(losses) - min(losses) < 1e-3 * max(losses), (
        f"the arms compute different things: {found['losses']}"
    )
    return found


def steps_text(depth: int, found: Mapping[str, Any]) -> str:
    """A table for people. Ratios are of steps that followed each other."""
    seconds: dict[str, list[float]] = found["seconds"]
    rows = []
    for name, mine in seconds.items():
        ratios = [_text(_ratios(mine, seconds[other])) for other in (PLAIN, TORCH)]
        rows.append([name, _text(mine), *ratios, _text(found["processor_seconds"][name])])
    head = [f"{depth} ranks, {MICROBATCHES} microbatches", "step s", "of plain", "of torch's", "processor s"]
    theory = (depth - 1) / (MICROBATCHES + depth - 1)
    return (
        f"{table(head, rows)}\n"
        f"bubble of our pipeline: {_text(found['bubble'])} by the processor time of its turns; the schedule's "
        f"{found['bubble_of_schedule']:.3f}, theory (P-1)/(m+P-1) {theory:.3f}; its ranks waited "
        f"{_text(found['waited_share'])} of a step{_crowded(depth)}"
    )


def _crowded(depth: int) -> str:
    cores = len(os.sched_getaffinity(0))
    return f" ({cores} cores for {depth} ranks: also for a core)" if cores < depth else ""


def _ratios(mine: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, other, strict=True)]


def _text(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return spread.text() if spread else "-"


# ---- whole runs ----


class Run:
    """`understudy run` of a job, watched through its ledger. Use as a context."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.workdir, self._output = folder / "run", folder / "understudy.log"
        job_file = folder / "job.yaml"
        job_file.write_text(yaml.safe_dump(dict(job)))
        with self._output.open("ab") as stream:
            self._process = subprocess.Popen(
                [str(UNDERSTUDY), "run", str(job_file), "--workdir", str(self.workdir), "--plain"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.log = CommitLog(self.workdir / "metrics.jsonl", self._alive)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *unused: object) -> None:
        leaders = self.leaders()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        process_family.end(self._process, signal.SIGINT)
        for leader in leaders.values():
            process_family.end_session(leader)

    def _alive(self) -> None:
        if self._process.poll() is not None:
            raise NoProgress(
                f"the run ended with {self._process.returncode}:\n{self._output.read_text()[-3000:]}"
            )

    def leaders(self) -> dict[str, int]:
        """Node -> pid of its agent, which leads the node's session."""
        records = sorted((self.workdir / "nodes").glob("*.json"))
        return {each.stem: int(json.loads(each.read_text())["pid"]) for each in records}

    def kill(self, node: str) -> Callable[[], None]:
        """What kills a node, agent and trainer at once."""
        members = process_family.session_members(self.leaders()[node])
        return partial(process_family.send, members, signal.SIGKILL)


def _job(**cluster: int) -> dict[str, Any]:
    """The example, four stages of two, small enough for two cores."""
    job = dict(to_mapping(load_job_file(str(EXAMPLE))))
    job["steps"] = 100_000
    job["cluster"] = {**job["cluster"], **cluster}
    job["model"] = {**job["model"], "layers": 4}
    job["batch"] = {"microbatches": 8, "microbatch_size": 2}
    # A node that was killed stays away: what is measured is life with what is left.
    job["recovery"] = {**job["recovery"], "node_starts": 1, "node_failures": 1, "quarantine_seconds": 3600.0}
    return job


MIDDLE = ("node-2", "node-3", "node-6", "node-7")
"""Nodes with the seats of the second and the third of four stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin:
    """A run without spares: seconds of a step with all seats, what the loss of one cost, and seconds without it."""

    whole: float
    recovery: Recovery
    thin: float

    @property
    def speed(self) -> float:
        """Steps in a second without the seat, of those with it."""
        return self.whole / self.thin


def spare(*, starts: int, folder: Path) -> list[Recovery]:
    """From SIGKILL of a seat of a middle stage to the next commit, twice a start, with a spare for each."""
    found: list[Recovery] = []
    for number in range(starts):
        job = _job(spares=2)
        with Run(folder / f"spare-{number}", job) as run:
            moments = Moments(Bout(folder=folder, job=job, failures=2, number=number))
            for index in range(2):
                seconds = moments.wait(run.log)
                generation = run.log.commits[-1].generation
                victim = MIDDLE[(number + index) % len(MIDDLE)]
                found.append(run.log.strike(run.kill(victim), seconds, RECOVER_SECONDS))
                print(f"  {victim}: {_cost(found[-1])}", flush=True)
                run.log.wait(partial(_is_later, generation + 1), SEAT_SECONDS, "spare in the seat")
    return found


def thin(*, starts: int, count: int, folder: Path) -> list[Thin]:
    """One failure a start, with nobody to take the seat: `count` steps before, and as many after."""
    found: list[Thin] = []
    for number in range(starts):
        job = _job(spares=0)
        with Run(folder / f"thin-{number}", job) as run:
            moments = Moments(Bout(folder=folder, job=job, failures=1, number=100 + number))
            whole = _typical(run.log, count)
            seconds = moments.wait(run.log)
            victim = MIDDLE[number % len(MIDDLE)]
            recovery = run.log.strike(run.kill(victim), seconds, RECOVER_SECONDS)
            found.append(Thin(whole=whole, recovery=recovery, thin=_typical(run.log, count)))
            print(f"  {victim}: {_cost(recovery)}; then {found[-1].speed:.3f} of the speed", flush=True)
    return found


def _typical(log: CommitLog, count: int) -> float:
    """Median seconds of the next `count` steps of the newest generation, once it runs steadily."""
    log.wait_steady(SEAT_SECONDS)
    newest = log.commits[-1]
    enough = newest.step + count
    last = log.wait(lambda each: each.step >= enough and each.time > newest.time, RANK_SECONDS, "steps")
    times = [
        each.time
        for each in log.commits
        if each.generation == last.generation and newest.step <= each.step <= last.step
    ]
    return statistics.median(later - earlier for earlier, later in pairwise(times))


def _is_later(generation: int, commit: Commit) -> bool:
    return commit.generation > generation


def _cost(each: Recovery) -> str:
    beyond = each.commit_seconds - each.step_seconds
    return f"{each.commit_seconds:.2f} s to the next commit, {beyond:+.2f} s beyond a step of {each.step_seconds:.2f} s"


def recovery_text(name: str, found: Sequence[Recovery]) -> str:
    """In a line."""
    beyond = [each.commit_seconds - each.step_seconds for each in found]
    met = sum(each <= GOAL_SECONDS for each in beyond)
    return (
        f"middle-stage seat killed, {name}: next commit after {_text([e.commit_seconds for e in found])} s, "
        f"{_text(beyond)} s beyond one step (goal {GOAL_SECONDS} s: met {met} of {len(found)}), "
        f"steps lost {sum(each.steps_lost for each in found)}"
    )


def thin_text(found: Sequence[Thin]) -> str:
    """In a line. The thin stage computes 8 rounds where the others have 4, and 3 stages fill and drain."""
    bound = (MICROBATCHES / 2 + 3) / (MICROBATCHES + 3)
    return (
        f"7 of 8 seats: {_text([each.speed for each in found])} of the steps a second of 8 of 8, each in one run "
        f"({_text([each.thin for each in found])} and {_text([each.whole for each in found])} s a step); "
        f"7/8 is {7 / 8:.3f}; where every seat has a core of its own the thin stage allows {bound:.3f}"
    )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and failures")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if set(chosen) - set(PARTS):
        parser.error(f"--only {given.only}: choose some of {', '.join(PARTS)}")
    before = conditions()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="understudy-training-") as name:
        folder = Path(name)
        if "steps" in chosen:
            for depth in DEPTHS:
                found = steps(depth, count=5 if given.quick else 20, folder=folder)
                figures[f"steps-{depth}"] = found
                print(steps_text(depth, found), flush=True)
        if "spare" in chosen:
            cost = spare(starts=1 if given.quick else 3, folder=folder)
            figures["spare"] = [asdict(each) for each in cost]
            print(recovery_text("a spare for each", cost), flush=True)
        if "thin" in chosen:
            runs = thin(starts=1 if given.quick else 3, count=15 if given.quick else 30, folder=folder)
            figures["thin"] = [asdict(each) for each in runs]
            print(recovery_text("no spare", [each.recovery for each in runs]))
            print(thin_text(runs), flush=True)
    figures["machine"] = machine(before)
    print(machine_text(figures["machine"]))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
