"""Failures to inject: those that could never strike are refused, each with its field and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.fault_rules import KINDS
from orchestrator.core.spec import DataSpec, FaultSpec, JobSpec, Precision
from orchestrator.core.spec_rules import problems

SOUND = JobSpec(name="job", data=DataSpec(path="stdlib"))


def of(kind: str, **fields: object) -> FaultSpec:
    return replace(FaultSpec(kind=kind, node="node-1", step=1), **fields)  # type: ignore[arg-type]


def fields_of(fault: FaultSpec, precision: Precision = Precision.FLOAT32) -> list[str]:
    return [problem.field for problem in problems(replace(SOUND, faults=(fault,), precision=precision))]


@pytest.mark.parametrize(
    "fault, field",
    [
        (of("sigterm"), "faults.0.kind"),
        (of("sigkill", node="node-9"), "faults.0.node"),
        (of("sigkill", phase="lunch"), "faults.0.phase"),
        (of("sigkill", target="rack"), "faults.0.target"),
        (of("sigkill", step=201), "faults.0.step"),
        (of("sigkill", step=0), "faults.0.step"),
        (of("sigkill", device=1), "faults.0.device"),
        (of("exit", target="node"), "faults.0.target"),
        (of("nan", phase="forward"), "faults.0.phase"),
        (of("nan", part="expert-00016"), "faults.0.part"),
        (of("nan", part="expert-3"), "faults.0.part"),
        (of("bitflip", tensor="gradient"), "faults.0.tensor"),
        (of("bitflip", bit=32), "faults.0.bit"),
        (of("bitflip", bit=-2), "faults.0.bit"),
        (of("bitflip", phase="acquire"), "faults.0.phase"),
        (of("disk-full", phase="forward"), "faults.0.phase"),
        (of("torn-shard", phase="regroup"), "faults.0.phase"),
        (of("slow", factor=1.0), "faults.0.factor"),
        (of("slow", factor=float("nan")), "faults.0.factor"),
        (of("slow", duration_steps=0), "faults.0.duration_steps"),
        (of("sigkill", bit=3), "faults.0.bit"),
        (of("sigstop", part="dense"), "faults.0.part"),
        (of("bitflip", factor=2.0), "faults.0.factor"),
        (of("nan", tensor="m"), "faults.0.tensor"),
    ],
)
def test_fault_that_would_never_strike_is_refused(fault: FaultSpec, field: str) -> None:
    """A misspelt failure would make a chaos test pass for the wrong reason."""
    assert fields_of(fault) == [field]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sound_with_nothing_but_a_place(kind: str) -> None:
    assert fields_of(of(kind)) == []


def test_fault_on_a_spare_is_sound() -> None:
    """Spares are nodes too; by the time the fault strikes they may have a seat."""
    assert fields_of(of("sigstop", node="node-5", step=200, phase="acquire")) == []


def test_numbers_of_a_float64_job_have_64_bits() -> None:
    assert fields_of(of("bitflip", bit=63), Precision.FLOAT64) == []


def test_the_remedy_names_what_is_possible() -> None:
    (problem,) = problems(replace(SOUND, faults=(of("exit", target="node"),)))
    assert str(problem) == "faults.0.target: node: choose one of trainer for exit"
    (problem,) = problems(replace(SOUND, faults=(of("sigkill", bit=3),)))
    assert str(problem).endswith("sigkill does not have it (its fields: none of its own): leave it out")
