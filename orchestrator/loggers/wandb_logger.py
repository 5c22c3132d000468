"""Weights & Biases: what is told to a process of its own, which alone loads their library (the extra `wandb`).

The library starts threads, handlers and a service, may wait for a network, and may end in its own way; so it lives in
`wandb_process.py`, and hears lines of JSON. Where that process stands is in DIR/wandb/position.json, which it writes
after each line: whoever starts it again goes on behind that. A run at W&B cannot take back what it was told. So after
a roll-back a new run of the same group begins, and is told all steps that are committed, from the first one on.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.controller.ledger_lines import decode_line, read_records
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.loggers.events import Point
from orchestrator.loggers.lines import LineFollower
from orchestrator.loggers.lock import locked
from orchestrator.loggers.logger import Unavailable
from orchestrator.loggers.points import StepPoints, incident_point, validation_point
from orchestrator.loggers.told import Told
from orchestrator.settings import SettingsError

FOLDER = "wandb"
POSITION_FILE = "position.json"
LOCK_FILE = "lock"
TURN_LINES = 200
INCIDENT_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 600.0
"""Between two starts of a process that does not stay."""
END_SECONDS = 8.0
"""How long its end is waited for; what it has still to send it sends alone."""


def check(spec: JobSpec, job_file: str | None) -> None:
    """Raises SettingsError for a job that wants W&B where its library is not installed."""
    if not spec.logging.wandb.project or importlib.util.find_spec("wandb") is not None:
        return
    raise SettingsError(
        "--job",
        job_file,
        f"cannot run, nothing was started:\nlogging.wandb.project: {spec.logging.wandb.project}: the library of "
        "Weights & Biases is not installed where the controller runs: pip install 'understudy[wandb]', or leave "
        "logging.wandb out",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What the run has been told."""

    run: str
    """The same for all runs of a job."""
    number: int = 1
    """Of the run, counted up by each roll-back."""
    step: int = 0
    time: float = 0.0
    """Of the step: the same step is another one after a roll-back."""
    validation: int = 0
    """The last step whose validation was told."""
    incidents: tuple[str, ...] = field(default=())


def read_position(path: Path) -> Position | None:
    """Where the process has got to; None before it was ever started. Raises OSError, ValueError."""
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
        return Position(**{**said, "incidents": tuple(said["incidents"])})
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and a new run begins") from error


class WandbSink:
    """See `logger.Sink`."""

    def __init__(self, workdir: Path, told: Told) -> None:
        self._workdir = workdir
        self._told = told
        self._steps = LineFollower(told.ledger)
        self._validations = LineFollower(told.validations)
        self._points = StepPoints()
        self._position = Position(run="")
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._failures = 0
        self._begun_at: Position | None = None
        """Where the process before this one has begun: one that has got no further has failed."""
        self._looked_at = 0.0

    def turn(self) -> bool:
        """See `logger.Sink`."""
        found = self._steps.look(TURN_LINES)
        if found.anew:
            self._begin()
        for line in found.lines:
            record = decode_line(line)
            point = self._points.point(record)
            if record.step > self._position.step:
                self._position = replace(self._position, step=record.step, time=record.time)
                self._tell(_row("train", point), point.counts)
        if not found.more:
            self._tell_validations()
            self._tell_incidents(closing=False)
        return found.more

    def begin_again(self) -> None:
        """See `logger.Sink`."""
        self._steps.forget()
        self._end_process()

    def close(self) -> None:
        """See `logger.Sink`."""
        try:
            self._tell_incidents(closing=True)
        finally:
            self._steps.forget()
            self._validations.forget()
            self._end_process()

    def _begin(self) -> None:
        """Find out where to go on, and start the process."""
        now = self._told.clock()
        if now < self._not_before:
            raise Unavailable(
                "the process for W&B did not stay (what it said is in this log); it is started again after a pause, "
                f"which grows to {LONGEST_PAUSE_SECONDS:.0f} s"
            )
        self._end_process()
        path = self._workdir / FOLDER / POSITION_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(LOCK_FILE)) as free:
            if not free:
                raise Unavailable("the process for W&B that was there before has still something to send")
            position = read_position(path) or self._begun_at or Position(run=secrets.token_hex(4))
        if position != self._begun_at:
            self._begun_at, self._failures = position, 0
        if position.step and not self._still_true(position):
            position = Position(run=position.run, number=position.number + 1)
        self._position = position
        self._points = StepPoints()
        self._validations.forget()
        self._looked_at = 0.0
        self._failures += 1
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self._failures - 1))
        self._not_before = now + pause
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "wandb"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the controller
        )
        self._write(self._first_words(path))

    def _still_true(self, position: Position) -> bool:
        for record in read_records(self._told.ledger):
            if record.step == position.step:
                return record.time == position.time
        return False

    def _first_words(self, position_path: Path) -> Mapping[str, object]:
        spec, wandb = self._told.spec, self._told.spec.logging.wandb
        return {
            "position_path": str(position_path),
            "folder": str(self._workdir),
            "id": f"{self._position.run}-{self._position.number}",
            "project": wandb.project,
            "entity": wandb.entity or None,
            "group": wandb.group or spec.name,
            "name": spec.name if self._position.number == 1 else f"{spec.name} ({self._position.number})",
            "tags": list(wandb.tags),
            "mode": wandb.mode.value,
            "config": to_mapping(spec),
        }

    def _tell_validations(self) -> None:
        for line in self._validations.look(TURN_LINES).lines:
            point = validation_point(json.loads(line))
            if point.step > self._position.validation:
                self._position = replace(self._position, validation=point.step)
                self._tell(_row("validation", point))

    def _tell_incidents(self, *, closing: bool) -> None:
        now = self._told.clock()
        if self._process is None or (now - self._looked_at < INCIDENT_SECONDS and not closing):
            return
        self._looked_at = now
        for incident in self._told.closed_incidents():
            if incident.id in self._position.incidents:
                continue
            point = incident_point(incident, self._points.first_step_of(incident.generation))
            self._position = replace(self._position, incidents=(*self._position.incidents, incident.id))
            summary = {f"incidents/{incident.id}": text for text in point.texts.values()}
            self._tell(_row("", point), summary=summary)

    def _tell(
        self,
        row: Mapping[str, float],
        counts: Mapping[str, object] | None = None,
        summary: Mapping[str, str] | None = None,
    ) -> None:
        said = {
            "row": row,
            "counts": counts or {},
            "summary": summary or {},
            "position": asdict(self._position),
        }
        self._write(said)

    def _write(self, said: Mapping[str, object]) -> None:
        assert self._process is not None and self._process.stdin is not None, "a process was started"
        try:
            self._process.stdin.write(json.dumps(said).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable("the process for W&B did not stay; what it said is in this log") from None

    def _end_process(self) -> None:
        """Let it finish what it was told, and wait for that a while."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # it has a limit of its own, and then ends without us


def _row(prefix: str, point: Point) -> dict[str, float]:
    row = {f"{prefix}/{name}" if prefix else name: value for name, value in point.scalars.items()}
    return {"step": point.step, "_timestamp": point.at, **row}
