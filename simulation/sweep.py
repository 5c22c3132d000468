"""Many seeds on several processors, and what a person gets to read of them.

Each process is this program with every n-th seed; it says one line of JSON for each verdict. A seed that fails is told
in full, with the command that tells it again. Next: `seeds.py`.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from simulation.seeds import Verdict, run_seed

LAST_LINES = 120
"""Of the story of a seed that fails; all of it with one seed alone."""
FAILURES_TOLD = 3


def sweep(seeds: Sequence[int], processes: int) -> int:
    """Run all; the number that failed."""
    began = time.monotonic()
    failed: list[Verdict] = []
    endings: Counter[str] = Counter()
    events = steps = incidents = 0
    virtual_seconds = 0.0
    for verdict in _verdicts(seeds, processes):
        events, steps, incidents = (
            events + verdict.events,
            steps + verdict.steps,
            incidents + verdict.incidents,
        )
        virtual_seconds += verdict.virtual_seconds
        endings[verdict.ending or "FAILED"] += 1
        if verdict.failure:
            failed.append(verdict)
            print(f"seed {verdict.seed} FAILED: {verdict.failure}", flush=True)
    for verdict in failed[:FAILURES_TOLD]:
        tell(verdict, LAST_LINES)
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds in {took:.1f} s on {processes} processes: {virtual_seconds / 3600:.1f} hours of trouble, "
        f"{steps} steps, {incidents} incidents, {events} events, each followed by a check of the laws"
    )
    for ending, count in endings.most_common():
        print(f"  {count:6d}  {ending}")
    print(f"{len(failed)} failed" if failed else "no law was broken")
    return len(failed)


def tell(verdict: Verdict, limit: int | None = None) -> None:
    """The story of a seed, or its end, and how to hear it again."""
    lines = verdict.lines if limit is None else verdict.lines[-limit:]
    print("\n".join(lines))
    told = f"FAILED: {verdict.failure}" if verdict.failure else f"ended {verdict.ending}"
    print(f"seed {verdict.seed} {told}; timeline {verdict.digest}; again: make sim SEED={verdict.seed}")


def work(seeds: Sequence[int]) -> None:
    """A process of a sweep: verdicts as JSON, one a line."""
    gc.freeze()  # the programs themselves are no garbage, and there is a lot to look through
    for seed in seeds:
        verdict = run_seed(seed)
        said = asdict(verdict) | {"lines": verdict.lines[-LAST_LINES:] if verdict.failure else ()}
        print(json.dumps(said), flush=True)


def _verdicts(seeds: Sequence[int], processes: int) -> Iterator[Verdict]:
    """As they come."""
    command = [sys.executable, "-m", "simulation", "--work"]
    workers = [
        subprocess.Popen([*command, *map(str, seeds[index::processes])], stdout=subprocess.PIPE, text=True)
        for index in range(min(processes, len(seeds)))
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            for line in worker.stdout:
                said = json.loads(line)
                yield Verdict(**(said | {"lines": tuple(said["lines"])}))
            if worker.wait() != 0:
                raise RuntimeError(f"a process of the sweep ended with status {worker.returncode}")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
