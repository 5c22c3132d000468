"""TensorBoard's files of a job: DIR/tensorboard, with a folder for steps, one for validations, one for the job.

`tensorboard --logdir DIR` shows `train` and `validation` as two runs with the same names of curves, and in `job` the
job file and each incident with its explanation. Next: `folder.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from orchestrator.controller.ledger_lines import decode_line
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.loggers.events import Point
from orchestrator.loggers.folder import EventFolder
from orchestrator.loggers.lines import LineFollower
from orchestrator.loggers.lock import take_lock
from orchestrator.loggers.logger import Unavailable
from orchestrator.loggers.points import StepPoints, incident_point, validation_point
from orchestrator.loggers.told import Told

FOLDER = "tensorboard"
LOCK_FILE = ".lock"
TURN_LINES = 200
"""In one turn: a ledger with a million steps is told in many, with a breath in between."""
INCIDENT_SECONDS = 5.0
"""Between two looks at the database."""


class TensorBoardSink:
    """See `logger.Sink`."""

    def __init__(self, folder: Path, told: Told) -> None:
        self._path = folder
        self._told = told
        self._lock: int | None = None
        self._steps = LineFollower(told.ledger)
        self._train = EventFolder(folder / "train")
        self._points = StepPoints()
        self._validations = LineFollower(told.validations)
        self._validation: EventFolder | None = None
        self._job = EventFolder(folder / "job")
        self._job_told: int | None = None
        """Incidents that are in the folder of the job; None before it was begun."""
        self._looked_at = 0.0

    def turn(self) -> bool:
        """See `logger.Sink`."""
        self._take_lock()
        more = self._tell_steps()
        if not more:
            more = self._tell_validations()
        if not more:
            self._tell_job(closing=False)
        return more

    def begin_again(self) -> None:
        """See `logger.Sink`."""
        self._steps.forget()
        self._validations.forget()
        self._job_told = None
        self._looked_at = 0.0

    def close(self) -> None:
        """See `logger.Sink`."""
        try:
            if self._lock is not None:
                self._tell_job(closing=True)
        finally:
            self._steps.forget()
            self._validations.forget()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _take_lock(self) -> None:
        """One process writes: another controller of this job may not have ended yet."""
        if self._lock is not None:
            return
        self._path.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self._path / LOCK_FILE)
        if self._lock is None:
            raise Unavailable(f"{self._path} is being written by another process")

    def _tell_steps(self) -> bool:
        found = self._steps.look(TURN_LINES)
        if found.anew:
            self._points = StepPoints()
            self._train.begin()
            self._job_told = None  # the steps of incidents may have moved
        for line in found.lines:
            self._train.put(self._points.point(decode_line(line)))
        self._settle(self._train, more=found.more)
        return found.more

    def _tell_validations(self) -> bool:
        found = self._validations.look(TURN_LINES)
        begins = found.anew
        if self._validation is None:
            if not found.lines and not (self._path / "validation").exists():
                return False  # a job without validation has no folder for it
            self._validation, begins = EventFolder(self._path / "validation"), True
        if begins:
            self._validation.begin()
        for line in found.lines:
            self._validation.put(validation_point(json.loads(line)))
        self._settle(self._validation, more=found.more)
        return found.more

    def _settle(self, folder: EventFolder, *, more: bool) -> None:
        if more:
            folder.written()
        else:
            folder.settled(self._told.clock())

    def _tell_job(self, *, closing: bool) -> None:
        now = self._told.clock()
        if self._job_told is not None and not closing and now - self._looked_at < INCIDENT_SECONDS:
            return
        self._looked_at = now
        incidents = self._told.closed_incidents()
        if self._job_told is None or self._job_told > len(incidents):
            self._job.begin()
            self._job.put(self._job_file())
            self._job_told = 0
        for incident in incidents[self._job_told :]:
            self._job.put(incident_point(incident, self._points.first_step_of(incident.generation)))
        self._job_told = len(incidents)
        self._job.settled(now)

    def _job_file(self) -> Point:
        text = yaml.safe_dump(to_mapping(self._told.spec), sort_keys=False)
        return Point(step=0, at=0.0, texts={"job": f"```yaml\n{text}```"})
