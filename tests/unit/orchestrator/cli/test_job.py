"""The job of a command line: overrides, short forms and failures to inject become one checked job, or every problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.errors import ExitCode, JobRefused
from orchestrator.cli.faults import parse_faults
from orchestrator.cli.job import Changes, load
from orchestrator.core.spec import FaultSpec

EXAMPLE = "step=60,kind=sigkill,node=node-2"


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: small\nsteps: 100\ndata:\n  path: stdlib\nfaults:\n  - {step: 5, kind: sigstop, node: node-1}\n"
    )
    return str(path)


def test_a_fault_becomes_an_entry_of_the_job() -> None:
    faults, problems = parse_faults(
        [EXAMPLE, " step = 7 , kind=sigstop, node=node-1, phase=vote, target=trainer, device=1"]
    )
    assert problems == ()
    assert faults == (
        FaultSpec(kind="sigkill", node="node-2", step=60),
        FaultSpec(kind="sigstop", node="node-1", step=7, phase="vote", target="trainer", device=1),
    )


@pytest.mark.parametrize(
    "text, remedy",
    [
        ("", "lacks kind, node, step"),
        ("step=6", "lacks kind, node: for example"),
        ("step=x,kind=sigkill,node=node-2", "step is a whole number"),
        ("stepp=6", "did you mean 'step'?"),
        ("what=6", "known names are kind, node, step"),
        ("step=6,step=7,kind=sigkill,node=node-2", "'step' is given twice: use --fail again"),
        ("step", "write NAME=VALUE pairs"),
        ("step=", "write NAME=VALUE pairs"),
    ],
)
def test_a_fault_that_makes_no_sense_says_what_would(text: str, remedy: str) -> None:
    faults, problems = parse_faults([text])
    assert faults == ()
    assert any(remedy in each.remedy for each in problems), problems


def test_short_forms_win_over_set_and_faults_are_added(job_file: str) -> None:
    spec = load(
        job_file, Changes(overrides=("steps=70", "cluster.nodes=3"), nodes=5, spares=2, faults=(EXAMPLE,))
    )
    assert (spec.steps, spec.cluster.nodes, spec.cluster.spares) == (70, 5, 2)
    assert [fault.step for fault in spec.faults] == [5, 60]


def test_every_problem_is_told_at_once(job_file: str) -> None:
    changes = Changes(overrides=("cluster.replicas=9", "model.top_k=99"), faults=("step=x",))
    with pytest.raises(JobRefused) as refused:
        load(job_file, changes)
    fields = {each.field for each in refused.value.problems}
    assert {"cluster.replicas", "model.top_k", "--fail"} <= fields
    text = refused.value.text()
    assert "nothing was started" in text
    assert all(each.field in text and each.remedy in text for each in refused.value.problems)
    assert refused.value.exit_code is ExitCode.BAD_INPUT


def test_a_fault_that_hits_nobody_is_a_problem(job_file: str) -> None:
    with pytest.raises(JobRefused) as refused:
        load(job_file, Changes(faults=("step=999,kind=sigkill,node=node-9",)))
    assert {each.field for each in refused.value.problems} == {"faults.1.node", "faults.1.step"}
