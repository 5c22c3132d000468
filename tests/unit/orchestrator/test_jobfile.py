"""Job files: YAML, overrides, and one error with everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.spec import Precision
from orchestrator.jobfile import JobFileError, load_job_file

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("name: small\nsteps: 10\ndata:\n  path: stdlib\n", encoding="utf-8")
    return path


def fields_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load_job_file(str(path), overrides)
    assert all(problem.remedy for problem in caught.value.problems)
    return [problem.field for problem in caught.value.problems]


def test_every_example_is_a_sound_job() -> None:
    """What we ship runs."""
    for path in sorted((REPOSITORY / "examples").glob("*.yaml")):
        assert load_job_file(str(path)).name


def test_overrides_reach_every_depth(job_file: Path) -> None:
    """Dotted names, values as YAML would type them; a section that the file lacks is made."""
    spec = load_job_file(
        str(job_file),
        [
            "steps=7",
            "model.width=256",
            "optimizer.epsilon=1e-6",
            "precision=float64",
            "faults=[{kind: sigkill, node: node-2, step: 3}]",
            "faults.0.step=5",
        ],
    )
    assert (spec.steps, spec.model.width, spec.optimizer.epsilon) == (7, 256, 1e-6)
    assert spec.precision is Precision.FLOAT64
    assert spec.faults[0].step == 5


def test_exponent_without_a_dot_is_a_number(job_file: Path) -> None:
    """YAML 1.1 reads `1e-5` as text, which nobody means in a job file."""
    job_file.write_text("name: a\ndata: {path: stdlib}\nmodel: {norm_eps: 1e-6}\n", encoding="utf-8")
    assert load_job_file(str(job_file)).model.norm_eps == 1e-6


def test_name_given_twice_is_refused(job_file: Path) -> None:
    """The second one would silently win."""
    job_file.write_text("name: a\nsteps: 1\nsteps: 2\ndata: {path: stdlib}\n", encoding="utf-8")
    with pytest.raises(JobFileError, match="'steps' is given twice"):
        load_job_file(str(job_file))


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_override_without_key_or_value_is_refused(job_file: Path, override: str) -> None:
    """`--set` says how it is written."""
    assert fields_of(job_file, override) == ["--set"]


@pytest.mark.parametrize("override", ["steps.deep=1", "name=[", "data.path.x=1"])
def test_override_that_leads_nowhere_is_refused(job_file: Path, override: str) -> None:
    """Overrides do not turn plain values into sections."""
    assert fields_of(job_file, override) == [override.partition("=")[0]]


def test_problems_of_all_overrides_come_together(job_file: Path) -> None:
    """Types and names first, all of them."""
    assert fields_of(job_file, "model.widht=1", "steps=x") == ["steps", "model.widht"]


def test_data_path_must_exist(job_file: Path, tmp_path: Path) -> None:
    """Found out before any node is started."""
    assert fields_of(job_file, f"data.path={tmp_path / 'nothing'}") == ["data.path"]


def test_data_path_may_be_a_glob(job_file: Path, tmp_path: Path) -> None:
    """`**` goes down into folders."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("x", encoding="utf-8")
    spec = load_job_file(str(job_file), [f"data.path={tmp_path}/**/*.txt"])
    assert spec.data.path == f"{tmp_path}/**/*.txt"


def test_relative_data_path_is_found_beside_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current directory comes first; trainers get an absolute path, since they run elsewhere."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "text.txt").write_text("x", encoding="utf-8")
    (folder / "job.yaml").write_text("name: a\ndata: {path: text.txt}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_job_file("jobs/job.yaml").data.path == str(tmp_path / "jobs" / "text.txt")
    (tmp_path / "text.txt").write_text("y", encoding="utf-8")
    assert load_job_file("jobs/job.yaml").data.path == str(tmp_path / "text.txt")


def test_file_that_is_no_job_says_what_is_wrong(tmp_path: Path) -> None:
    """A missing file, a folder, broken YAML, bytes, and YAML that is no mapping."""
    path = tmp_path / "job.yaml"
    assert fields_of(path) == ["job file"]
    assert fields_of(tmp_path) == ["job file"]
    for content in (b"name: [", b"\xff\xfe\x00", b"- a\n- b\n", b""):
        path.write_bytes(content)
        assert fields_of(path) == ["job file"]
