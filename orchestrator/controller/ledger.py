"""The ledger of committed steps: DIR/metrics.jsonl, one line a step, from step 1 without gaps. One process writes it.

**What a crash can do.** A line is one `write` to a file opened for appending, so a killed process leaves whole lines;
a power failure may take the last lines, or leave the last one torn. On opening, a torn or unreadable last line is cut
off; the agents send again whatever comes after `reported_through`. Anything wrong before the last line is no crash's
work: LedgerError names the line.

**When it is synced.** A plain append is not (a power failure costs lines that the agents still have); `sync` is called
before a sealed checkpoint is recorded, so that the ledger is never behind a step from which a job can resume; rolling
back and closing sync the file and its folder.

**Rolling back.** `roll_back(step, generation)`: the job goes on from `step` in `generation`, and later lines of earlier
generations are not part of its history. They move to metrics.rolled-back.jsonl in three atomic replacements: the
fence, the file with the moved lines, the ledger without them. After a crash between any two, doing it again completes
it: moved lines that are there already are not added twice, and lines of `generation` itself never move.
The fence is kept in metrics.fence.json: reports of the abandoned future (step > `step`, generation < `generation`)
which a cut-off agent brings along later are refused for good.

Next: `ledger_lines.py` (format, totals).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.controller.ledger_lines import LedgerTotals, corrupt, decode_line, encode_line, sum_up
from orchestrator.controller.ports import LedgerError
from orchestrator.controller.validations import FileValidations
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.measurements import StepRecord, ValidationRecord

log = logging.getLogger(__name__)

LEDGER_FILE = "metrics.jsonl"
ROLLED_BACK_FILE = "metrics.rolled-back.jsonl"
FENCE_FILE = "metrics.fence.json"

PENDING_LIMIT = 4096
"""Records that wait for a gap to close; beyond it the farthest are dropped, and come again when agents register."""


class FileLedger:
    """The Ledger port on a folder. Used by the controller's thread only."""

    def __init__(self, folder: Path, *, pending_limit: int = PENDING_LIMIT) -> None:
        assert pending_limit > 0
        self._path = folder / LEDGER_FILE
        self._rolled_back = folder / ROLLED_BACK_FILE
        self._fence_path = folder / FENCE_FILE
        self._pending_limit = pending_limit
        self._pending: dict[Step, StepRecord] = {}
        self._validations = FileValidations(folder)
        self._refused = 0
        try:
            self._fences = _read_fences(self._fence_path)
            self._end, self._size, self._newest_generation = _scan(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(f"cannot open the ledger {self._path}: {error.strerror}") from error
        try:
            if os.fstat(self._file).st_size != self._size:
                log.warning("%s: a torn last line was cut off; step %d is the last", self._path, self._end)
                os.ftruncate(self._file, self._size)
        except OSError as error:
            os.close(self._file)
            raise LedgerError(f"cannot repair the ledger {self._path}: {error.strerror}") from error

    @property
    def reported_through(self) -> Step:
        """Last step that is in the file with all before it; 0 when empty."""
        return self._end

    @property
    def newest_generation(self) -> GenerationNumber:
        """Highest generation in the file; 0 when empty."""
        return self._newest_generation

    @property
    def waiting(self) -> int:
        """Records that wait for a gap to close."""
        return len(self._pending)

    def measured(self, record: ValidationRecord) -> None:
        """Take a measurement, for the file of validations. Raises LedgerError."""
        if self.takes(record.step, record.generation):
            self._validations.append(record)

    def takes(self, step: Step, generation: GenerationNumber) -> bool:
        """False for a report of a future that was rolled back."""
        return not any(step > fence and generation < since for fence, since in self._fences)

    def append(self, record: StepRecord) -> Step:
        """Take a record: write it and those that waited for it, or have it wait. Returns the new end.

        Records that are in the file already, and those of a future that was rolled back, are dropped. LedgerError when
        the disk does not take it; the file is then as it was before.
        """
        if record.step <= self._end or not self.takes(record.step, record.generation):
            return self._end
        if record.step != self._end + 1:
            self._wait(record)
            return self._end
        ready = [record]
        while (following := self._pending.pop(Step(ready[-1].step + 1), None)) is not None:
            ready.append(following)
        self._write(b"".join(encode_line(each) for each in ready))
        self._end = ready[-1].step
        self._newest_generation = max([self._newest_generation, *(each.generation for each in ready)])
        return self._end

    def roll_back(self, step: Step, generation: GenerationNumber) -> None:
        """Move lines after `step` of generations before `generation` aside; refuse such records from now on.

        Crash-safe and idempotent, see the top of the module. Raises LedgerError.
        """
        assert step >= 0 and generation > 0, (step, generation)
        self._validations.roll_back(step, generation)
        try:
            self._raise_fence(step, generation)
            moved = [line for line, moves in self._judged(step, generation) if moves]
            if moved:
                self._keep_aside(moved)
                _replace(self._path, (line for line, moves in self._judged(step, generation) if not moves))
                self._reopen()
                log.warning(
                    "%s: %d lines after step %d moved to %s", self._path, len(moved), step, self._rolled_back
                )
        except OSError as error:
            raise LedgerError(
                f"cannot roll the ledger {self._path} back to step {step}: {error.strerror}; "
                "make room or repair the disk, then start the controller again: the roll-back is completed then"
            ) from error
        self._pending = {
            each.step: each for each in self._pending.values() if self.takes(each.step, each.generation)
        }

    def totals(self, samples_per_step: int) -> LedgerTotals:
        """What the file adds up to, streamed from it. Raises LedgerError."""
        return sum_up(self._path, samples_per_step)

    def sync(self) -> None:
        """Make what is in the file survive a power failure. Raises LedgerError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise LedgerError(f"cannot sync the ledger {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Sync and close; harmless when closed already."""
        if self._file >= 0:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = -1

    def _write(self, data: bytes) -> None:
        self._check_alone()
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(0, f"only {written} of {len(data)} bytes were written (disk full?)")
        except OSError as error:
            self._take_back()
            raise LedgerError(
                f"cannot append to the ledger {self._path}: {error.strerror}; make room"
            ) from error
        self._size += written

    def _check_alone(self) -> None:
        """Another controller that took over while this one was stopped has gone on in the same file: leave it alone.

        The lease cannot tell in time: a step report that changes nothing is not committed, so no fence is asked.
        """
        size = os.fstat(self._file).st_size
        if size != self._size:
            raise LedgerError(
                f"the ledger {self._path} has {size} bytes, and this controller has left it with {self._size}: "
                "another one has taken over, or somebody has changed the file. Nothing was appended. Remedy: none "
                "needed after a take-over; otherwise start the controller again, which reads the file anew"
            )

    def _take_back(self) -> None:
        """Cut off what a failed write left, so that the file ends with a whole line; opening would do it as well."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError as error:
            log.warning("%s: half a line could not be cut off: %s", self._path, error.strerror)

    def _wait(self, record: StepRecord) -> None:
        self._pending[record.step] = record
        if len(self._pending) > self._pending_limit:
            del self._pending[max(self._pending)]
            self._refused += 1
            if self._refused == 1 or self._refused % self._pending_limit == 0:
                log.warning(
                    "%s: step %d is missing while %d later ones wait; %d reports were dropped, agents send them again",
                    self._path, self._end + 1, len(self._pending), self._refused,
                )  # fmt: skip

    def _raise_fence(self, step: Step, generation: GenerationNumber) -> None:
        """Remember a roll-back. An older fence is kept only while it refuses something that a newer one does not."""
        end = min(self._end, step)
        older = {each for each in self._fences if each[1] > generation or max(each[0], end) < step}
        needed = {*older, (step, generation)}
        if needed != self._fences:
            lines = [{"step": each[0], "generation": each[1]} for each in sorted(needed)]
            _replace(self._fence_path, [json.dumps({"rolled_back": lines}).encode() + b"\n"])
            self._fences = needed

    def _judged(self, step: Step, generation: GenerationNumber) -> Iterator[tuple[bytes, bool]]:
        """Every line, and whether it moves aside."""
        with self._path.open("rb") as lines:
            for line in lines:
                record = decode_line(line)
                yield line, record.step > step and record.generation < generation

    def _keep_aside(self, moved: list[bytes]) -> None:
        """Add lines to the rolled-back file unless an attempt that a crash cut short has added them."""
        before = self._rolled_back.read_bytes() if self._rolled_back.exists() else b""
        data = b"".join(moved)
        if not before.endswith(data):
            _replace(self._rolled_back, [before, data])

    def _reopen(self) -> None:
        """Go on with the file that has taken the ledger's place."""
        self._end, self._size, self._newest_generation = _scan(self._path)
        opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.close(self._file)
        self._file = opened


def _scan(path: Path) -> tuple[Step, int, GenerationNumber]:
    """Last step, length of what is whole, highest generation. Raises LedgerError for damage before the last line."""
    end, size, newest = Step(0), 0, GenerationNumber(0)
    if not path.exists():
        return end, size, newest
    unreadable: LedgerError | None = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if unreadable is not None:
                raise unreadable
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("the line has no end")
                record = decode_line(line)
            except ValueError as error:
                unreadable = corrupt(path, number, str(error))
                continue
            if record.step != end + 1:
                raise corrupt(path, number, f"step {record.step} follows step {end}")
            end, size = record.step, size + len(line)
            newest = max(newest, record.generation)
    return end, size, newest


def _read_fences(path: Path) -> set[tuple[Step, GenerationNumber]]:
    if not path.exists():
        return set()
    try:
        said = json.loads(path.read_bytes())["rolled_back"]
        return {(Step(int(each["step"])), GenerationNumber(int(each["generation"]))) for each in said}
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{path} is damaged ({error}). Remedy: delete it; then reports of steps that were rolled back may enter "
            "the ledger once more if an agent from before that time is still alive"
        ) from error


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Put a new file in the place of `path`, durably: content, then name."""
    scratch = path.with_name(path.name + ".new")
    with scratch.open("wb") as new:
        new.writelines(chunks)
        new.flush()
        os.fsync(new.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
