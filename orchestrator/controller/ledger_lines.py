"""One line of the ledger, to and from JSON; and the totals that people ask of a file of them. Reads, never writes.

A line is an object with the keys step, loss, tokens, generation, time, step_seconds, sample_ids, expert_load,
layer_load, learning_rate, gradient_norm, in this order. Numbers that JSON does not know (not finite) are null. The last
three are younger than the others: a line without them is read too. Next: `ledger.py`, which owns the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.controller.ports import LedgerError
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.measurements import StepRecord

_INTEGER = frozenset({int})


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTotals:
    """What the committed steps add up to; `samples_*` proves that every sample counted once."""

    steps: int
    last_step: int
    missing_steps: int
    samples_expected: int
    samples_counted: int
    """Different samples per step, summed over steps."""
    samples_duplicated: int
    samples_missing: int
    tokens: int
    useful_seconds: float
    first_time: float | None
    last_time: float | None
    last_loss: float | None
    generations: int
    """Different generations that committed a step."""


def encode_line(record: StepRecord) -> bytes:
    """A record as one line, with its line end."""
    line = {
        "step": record.step,
        "loss": _finite(record.loss),
        "tokens": record.tokens,
        "generation": record.generation,
        "time": record.time,
        "step_seconds": record.step_seconds,
        "sample_ids": record.sample_ids,
        "expert_load": record.expert_load,
        "layer_load": record.layer_load,
        "learning_rate": _finite(record.learning_rate),
        "gradient_norm": _finite(record.gradient_norm),
    }
    return json.dumps(line, separators=(", ", ": "), allow_nan=False).encode() + b"\n"


def decode_line(line: bytes) -> StepRecord:
    """The record in a line. Raises ValueError saying what is wrong with it."""
    try:
        said: Any = json.loads(line)
        loss = said["loss"]
        return StepRecord(
            step=Step(_whole(said["step"])),
            generation=GenerationNumber(_whole(said["generation"])),
            loss=math.nan if loss is None else float(loss),
            tokens=_whole(said["tokens"]),
            time=float(said["time"]),
            step_seconds=float(said["step_seconds"]),
            sample_ids=_all_whole(said["sample_ids"]),
            expert_load=_all_whole(said["expert_load"]),
            layer_load=tuple(map(_all_whole, said.get("layer_load", ()))),
            learning_rate=_number(said.get("learning_rate")),
            gradient_norm=_number(said.get("gradient_norm")),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a step record ({type(error).__name__}: {error})") from error


def read_records(path: Path) -> Iterator[StepRecord]:
    """The records of a ledger, streamed; a torn last line is left out. Raises LedgerError."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = decode_line(line)
                except ValueError as error:
                    raise corrupt(path, number, str(error)) from error
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"cannot read the ledger {path}: {error.strerror}") from error


def sum_up(path: Path, samples_per_step: int) -> LedgerTotals:
    """Add a ledger up in one pass. Raises LedgerError."""
    steps = last_step = counted = duplicated = tokens = 0
    useful_seconds = 0.0
    first_time = last_time = last_loss = None
    generations: set[int] = set()
    for record in read_records(path):
        different = len(set(record.sample_ids))
        steps += 1
        last_step = max(last_step, record.step)
        counted += different
        duplicated += len(record.sample_ids) - different
        tokens += record.tokens
        useful_seconds += record.step_seconds
        first_time = record.time - record.step_seconds if first_time is None else first_time
        last_time, last_loss = record.time, record.loss
        generations.add(record.generation)
    expected = last_step * samples_per_step
    return LedgerTotals(
        steps=steps,
        last_step=last_step,
        missing_steps=last_step - steps,
        samples_expected=expected,
        samples_counted=counted,
        samples_duplicated=duplicated,
        samples_missing=max(0, expected - counted),
        tokens=tokens,
        useful_seconds=useful_seconds,
        first_time=first_time,
        last_time=last_time,
        last_loss=last_loss,
        generations=len(generations),
    )


def corrupt(path: Path, number: int, what: str) -> LedgerError:
    """The error for a line that cannot be what was written."""
    return LedgerError(
        f"{path}, line {number}: {what}. Whole lines are never damaged by a crash, so the file was edited or the disk "
        f"is failing. Remedy: restore the file, or keep its first {number - 1} lines "
        f"(head -n {number - 1}) and put the others aside; the job itself does not depend on them"
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: Any) -> float | None:  # what JSON holds there
    return None if value is None else float(value)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _all_whole(values: object) -> tuple[int, ...]:
    """Most of a line is these lists, and a restarted controller waits for all lines: no call per number."""
    if not isinstance(values, list) or not _INTEGER.issuperset(map(type, values)):
        raise ValueError(f"{values!r} is not a list of whole numbers")
    return tuple(values)
