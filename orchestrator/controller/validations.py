"""Validations: DIR/validation.jsonl, one line for each measurement, by step. One process writes it.

A line is `step, loss, perplexity, bits_per_byte, tokens, windows, generation, time, seconds`. The first report of a
step stands: members of several nodes report the same, and a measurement that is made once more gives the same. A line
is one `write` to a file opened for appending; a torn last line is cut off on opening. Lines of a future that was
rolled back move to validation.rolled-back.jsonl, and late reports of it are refused by the fence of the ledger of
steps.

Next: `ledger.py`, the file of committed steps.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from orchestrator.controller.ports import LedgerError
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.measurements import ValidationRecord

VALIDATIONS_FILE = "validation.jsonl"
ROLLED_BACK_FILE = "validation.rolled-back.jsonl"
_LARGEST_EXPONENT = 700.0


class FileValidations:
    """Beside the ledger, which owns it. Used by the controller's thread only."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / VALIDATIONS_FILE
        self._rolled_back = folder / ROLLED_BACK_FILE
        try:
            lines = self._whole_lines()
            self._steps = {int(json.loads(line)["step"]) for line in lines}
            if self._path.exists():
                os.truncate(self._path, sum(map(len, lines)))
        except OSError as error:
            raise LedgerError(f"cannot open {self._path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            remedy = "put the file aside; the job does not depend on it"
            raise LedgerError(f"{self._path} is damaged ({error}). Remedy: {remedy}") from error

    def append(self, record: ValidationRecord) -> None:
        """Write a measurement, unless there is one of its step. Raises LedgerError; the file is then as before."""
        if record.step in self._steps:
            return
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            try:
                with self._path.open("ab") as file:
                    file.write(encode(record))
            except OSError:
                if self._path.exists():
                    os.truncate(self._path, size)
                raise
        except OSError as error:
            raise LedgerError(f"cannot append to {self._path}: {error.strerror}; make room") from error
        self._steps.add(record.step)

    def roll_back(self, step: Step, generation: GenerationNumber) -> None:
        """Move lines after `step` of generations before `generation` aside; again after a crash completes it."""
        try:
            moved: list[bytes] = []
            kept: list[bytes] = []
            for line in self._whole_lines():
                said = json.loads(line)
                (moved if said["step"] > step and said["generation"] < generation else kept).append(line)
            if not moved:
                return
            before = self._rolled_back.read_bytes() if self._rolled_back.exists() else b""
            if not before.endswith(b"".join(moved)):
                _replace(self._rolled_back, before + b"".join(moved))
            _replace(self._path, b"".join(kept))
            self._steps = {int(json.loads(line)["step"]) for line in kept}
        except OSError as error:
            raise LedgerError(f"cannot roll {self._path} back to step {step}: {error.strerror}") from error

    def _whole_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().splitlines(keepends=True)
        return [line for line in lines if line.endswith(b"\n")]


def encode(record: ValidationRecord) -> bytes:
    """A record as one line, with its line end; what is not finite is null."""
    finite = math.isfinite(record.loss)
    line = {
        "step": record.step,
        "loss": record.loss if finite else None,
        "perplexity": math.exp(min(record.loss, _LARGEST_EXPONENT)) if finite else None,
        "bits_per_byte": record.bits_per_byte if finite else None,
        "tokens": record.tokens,
        "windows": record.windows,
        "generation": record.generation,
        "time": record.time,
        "seconds": record.seconds,
    }
    return json.dumps(line, separators=(", ", ": "), allow_nan=False).encode() + b"\n"


def read_validations(path: Path) -> list[dict[str, Any]]:
    """The lines as objects, by step; a torn last line is left out. Raises ValueError for a damaged one."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return sorted((json.loads(line) for line in lines if line.endswith(b"\n")), key=lambda each: each["step"])


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(path.name + ".new")
    with scratch.open("wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    scratch.replace(path)
