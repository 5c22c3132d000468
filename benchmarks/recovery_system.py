"""What `recovery.py` asks of every system that it compares, and what it gets back.

A system is started for a few failures, in a folder of its own, and ended again; the systems take turns. What must not
live here: how any one of them works.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.commit_log import CommitLog, Recovery

START_SECONDS = 120.0
"""For a system to come up and train some steps."""
RECOVER_SECONDS = 90.0
"""For a system to commit again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bout:
    """One start of a system."""

    folder: Path
    """Empty, and its own."""
    job: Mapping[str, Any]
    """The whole job; the data path is a file."""
    failures: int
    number: int
    """Of this start: seeds the moments, picks the victims."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of a start."""

    recoveries: list[Recovery] = field(default_factory=list)
    details: dict[str, list[float]] = field(default_factory=dict)
    """Further figures by name, one value per failure or per start."""

    def note(self, name: str, value: float | None) -> None:
        """Keep a further figure."""
        if value is not None:
            self.details.setdefault(name, []).append(value)

    def extend(self, other: Result) -> None:
        """Take in another start of the same system."""
        self.recoveries += other.recoveries
        for name, values in other.details.items():
            self.details.setdefault(name, []).extend(values)


class Unavailable(RuntimeError):
    """A system cannot be measured here; says why. The others are measured all the same."""


class System(Protocol):
    """One way to train through failures."""

    @property
    def name(self) -> str: ...

    @property
    def setting(self) -> str:
        """In a sentence: what fails, and with which settings."""
        ...

    def run(self, bout: Bout) -> Result:
        """Train and fail. Raises NoProgress, Unavailable; leaves no process behind."""
        ...


class Moments:
    """When to fail: at any point of a step, the same points in every run of the benchmark."""

    def __init__(self, bout: Bout) -> None:
        self._random = random.Random(bout.number)

    def wait(self, log: CommitLog, members: int = 0) -> float:
        """Wait for steady training, then for a random part of a step; gives the seconds of a step."""
        step_seconds = log.wait_steady(START_SECONDS, members)
        last = log.commits[-1]
        commit = log.wait(lambda each: each.time > last.time, START_SECONDS, "step")
        pause = commit.time + self._random.random() * step_seconds - time.time()
        time.sleep(min(max(pause, 0.0), step_seconds))
        return step_seconds


def victims(names: Sequence[str], bout: Bout) -> list[str]:
    """Different ones within a start, and others in the next start."""
    turn = [(bout.number + 2 * index + index // 2) % len(names) for index in range(len(names))]
    return [names[index] for index in dict.fromkeys(turn)][: bout.failures]
