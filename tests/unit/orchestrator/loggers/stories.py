"""What loggers are told in tests: a workdir with a real ledger, incidents by hand, and TensorBoard's own reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.controller.ledger import LEDGER_FILE, FileLedger
from orchestrator.controller.validations import VALIDATIONS_FILE
from orchestrator.core.ids import GenerationNumber, IncidentId, NodeId, Step
from orchestrator.core.measurements import ValidationRecord
from orchestrator.core.spec import DataSpec, JobSpec
from orchestrator.core.state import Incident, IncidentKind
from orchestrator.loggers.told import Told
from tests.unit.orchestrator.controller.fakes import record

SPEC = JobSpec(name="curves", data=DataSpec(path="stdlib"))


def incident(number: int = 1, generation: int = 2, **changes: Any) -> Incident:
    """A closed one."""
    plain = Incident(
        id=IncidentId(f"inc-{number:04d}"),
        kind=IncidentKind.NODE_LOST,
        node=NodeId("node-2"),
        cause="its stream broke",
        action="fail over to backups",
        reasons=("every expert has a living replica",),
        generation=GenerationNumber(generation),
        first_sign_at=1000.0,
        detected_at=1000.1,
        first_commit_at=1000.5,
        restored_at=1002.0 + number,
        exposed_at=1000.0,
        covered_at=1001.5,
        experts_exposed=3,
    )
    return replace(plain, **changes)


@dataclass
class Workdir:
    """A job of which a test says what is committed."""

    path: Path
    spec: JobSpec = SPEC
    incidents: list[Incident] = field(default_factory=list)
    now: float = 5000.0

    def told(self) -> Told:
        return Told(
            spec=self.spec,
            ledger=self.path / LEDGER_FILE,
            validations=self.path / VALIDATIONS_FILE,
            incidents=lambda: tuple(self.incidents),
            clock=lambda: self.now,
        )

    def commit(self, steps: Sequence[int], generation: int = 1) -> None:
        ledger = FileLedger(self.path)
        for step in steps:
            ledger.append(replace(record(step, generation), time=1000.0 + step + 100 * generation))
        ledger.close()

    def roll_back(self, step: int, generation: int) -> None:
        ledger = FileLedger(self.path)
        ledger.roll_back(Step(step), GenerationNumber(generation))
        ledger.close()

    def measure(self, step: int, generation: int = 1) -> None:
        ledger = FileLedger(self.path)
        ledger.measured(
            ValidationRecord(
                step=Step(step),
                generation=GenerationNumber(generation),
                loss=2.0,
                bits_per_byte=3.0,
                tokens=176,
                windows=11,
                time=2000.0 + step,
                seconds=0.5,
            )
        )
        ledger.close()


def read_back(folder: Path) -> EventAccumulator:
    """A folder as TensorBoard reads it, whole. Its reader checks every checksum."""
    everything = dict.fromkeys(("scalars", "tensors", "histograms", "compressedHistograms"), 0)
    accumulator = EventAccumulator(str(folder), size_guidance=everything)
    accumulator.Reload()
    return accumulator


def steps_of(folder: Path, tag: str = "loss") -> list[tuple[int, float]]:
    """(step, time) of each value of a curve."""
    return [(event.step, event.wall_time) for event in read_back(folder).Scalars(tag)]
