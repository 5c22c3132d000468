"""Committed steps as a file of JSON lines that grows, and the time from a failure to the next one.

Every system under test appends a line per committed step: `step`, `time` (seconds since the epoch, at the commit) and
`generation` (whatever counts its memberships: generation, restart, quorum). What must not live here: any one system.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.005
STEADY_STEPS = 4
"""So many step times tell how long a step takes."""


class NoProgress(RuntimeError):
    """A system did not do in time what it was waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One committed step."""

    step: int
    generation: int
    time: float
    seen: float
    """When the line was read here."""
    members: int
    """0 where a system does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What one failure cost, in seconds."""

    step_seconds: float
    """Median of the steps before the failure."""
    commit_seconds: float
    """From the signal to the first step that the new membership committed, new or trained again."""
    seen_seconds: float
    """To the moment at which that step stood in the log for others to read."""
    new_step_seconds: float
    """To the first step that had not been committed before."""
    steps_lost: int
    """Committed steps that were trained again."""
    step: int
    """The last one before the failure."""


class CommitLog:
    """Follows one file. The first line of a step in a generation counts; later copies of it do not."""

    def __init__(self, path: Path, alive: Callable[[], None]) -> None:
        """`alive` is called while waiting, and raises when there is nothing to wait for any more."""
        self._path = path
        self._alive = alive
        self._offset = 0
        self._known: set[tuple[int, int]] = set()
        self.commits: list[Commit] = []

    def poll(self) -> None:
        """Take in what is new; a line that is not whole yet is left for later."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        seen = time.time()
        for line in whole.splitlines():
            said: dict[str, Any] = json.loads(line)
            key = int(said["generation"]), int(said["step"])
            if key not in self._known:
                self._known.add(key)
                members = int(said.get("members", 0))
                self.commits.append(
                    Commit(step=key[1], generation=key[0], time=said["time"], seen=seen, members=members)
                )

    def wait(self, wanted: Callable[[Commit], bool], limit_seconds: float, what: str) -> Commit:
        """The first commit that is wanted, looked for from the beginning. Raises NoProgress."""
        deadline = time.monotonic() + limit_seconds
        looked_at = 0
        while True:
            self.poll()
            for commit in self.commits[looked_at:]:
                if wanted(commit):
                    return commit
            looked_at = len(self.commits)
            if time.monotonic() > deadline:
                raise NoProgress(f"no {what} within {limit_seconds:.0f} s")
            self._alive()
            time.sleep(POLL_SECONDS)

    def wait_steady(self, limit_seconds: float, members: int = 0) -> float:
        """Wait for some steps in a row in the newest generation (of so many members); gives their median seconds."""
        deadline = time.monotonic() + limit_seconds
        while True:
            self.poll()
            newest = self.commits[-1] if self.commits else None
            times = [each.time for each in self.commits if newest and each.generation == newest.generation]
            enough = len(times) > STEADY_STEPS and newest is not None and newest.members >= members
            if enough:
                return statistics.median(later - earlier for earlier, later in pairwise(times))
            if time.monotonic() > deadline:
                raise NoProgress(f"no {STEADY_STEPS} steps in a row within {limit_seconds:.0f} s")
            self._alive()
            time.sleep(POLL_SECONDS)

    def strike(self, fail: Callable[[], None], step_seconds: float, limit_seconds: float) -> Recovery:
        """Fail now, and time what follows. The order: look, note the time, send the signal, wait."""
        self.poll()
        generation = self.commits[-1].generation
        at = time.time()
        fail()

        def is_next(commit: Commit) -> bool:
            return commit.generation > generation and commit.time > at

        first = self.wait(is_next, limit_seconds, "commit after the failure")
        before = max(each.step for each in self.commits if each.generation <= generation)
        new = self.wait(lambda each: is_next(each) and each.step > before, limit_seconds, "new step")
        return Recovery(
            step_seconds=step_seconds,
            commit_seconds=first.time - at,
            seen_seconds=first.seen - at,
            new_step_seconds=new.time - at,
            steps_lost=before + 1 - first.step,
            step=before,
        )


def append_commit(path: Path, **fields: Any) -> None:
    """Write a line as one write, so that several writers do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(fields | {"time": time.time()}).encode() + b"\n")
