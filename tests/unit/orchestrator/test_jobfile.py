"""Job files: YAML, overrides, and one error with everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.spec import Precision
from orchestrator.jobfile import JobFileError, load_job_file
from tests.permissions import somebody_else
from tests.unit.worker.data.corpora import write_tokens

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
        if "\nkind:" in path.read_text(encoding="utf-8"):
            continue  # an object of Kubernetes, which holds a job
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


def remedy_of(path: Path, *overrides: str) -> str:
    with pytest.raises(JobFileError) as caught:
        load_job_file(str(path), overrides)
    (problem,) = caught.value.problems
    assert problem.field == "data.path"
    return problem.remedy


@pytest.mark.parametrize("what", ["empty.txt", "folder", "*.txt"])
def test_text_that_is_shorter_than_a_sample_is_refused(job_file: Path, tmp_path: Path, what: str) -> None:
    """An empty file, a folder of short ones, matches of a glob: the trainers would all say so, much later."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "short.txt").write_text("x" * 5, encoding="utf-8")
    said = remedy_of(job_file, f"data.path={tmp_path / what}", "model.sequence_length=64")
    assert f"{5 if what == 'folder' else 0} bytes are there, and one sample needs 65" in said
    assert "lower model.sequence_length" in said
    (tmp_path / "folder" / "deeper").mkdir()
    (tmp_path / "folder" / "deeper" / "b").write_text("x" * 60, encoding="utf-8")
    whole = load_job_file(str(job_file), [f"data.path={tmp_path / 'folder'}", "model.sequence_length=64"])
    assert whole.data.path == str(tmp_path / "folder")


def test_a_folder_without_a_file_holds_nothing(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "nothing is there" in remedy_of(job_file, f"data.path={tmp_path / 'folder'}")


@pytest.mark.parametrize("what", ["text.txt", "closed", "closed/text.txt", "closed/*.txt"])
def test_text_that_may_not_be_read_is_refused(job_file: Path, nobodys: Path, what: str) -> None:
    """For a user without the right to, in words: a file, a folder, and what lies below it."""
    (nobodys / "text.txt").write_text("x" * 1000, encoding="utf-8")
    (nobodys / "closed").mkdir()
    (nobodys / "closed" / "text.txt").write_text("x" * 1000, encoding="utf-8")
    mine = nobodys / "job.yaml"
    mine.write_text(job_file.read_text(encoding="utf-8"), encoding="utf-8")
    (nobodys / "text.txt").chmod(0)
    (nobodys / "closed").chmod(0)
    with somebody_else():
        said = remedy_of(mine, f"data.path={nobodys / what}")
    assert "permission" in said.lower() and "readable" in said
    assert str(nobodys / what.partition("/")[0]) in said


def test_a_job_that_has_begun_is_not_asked_for_its_text_again(job_file: Path, tmp_path: Path) -> None:
    """A controller that is started again in mid-training does not give up because a disk is away."""
    gone = f"data.path={tmp_path / 'nothing'}"
    assert load_job_file(str(job_file), [gone], looks_at_data=False).data.path == str(tmp_path / "nothing")


def test_data_path_may_be_a_glob(job_file: Path, tmp_path: Path) -> None:
    """`**` goes down into folders."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("x" * 1000, encoding="utf-8")
    spec = load_job_file(str(job_file), [f"data.path={tmp_path}/**/*.txt"])
    assert spec.data.path == f"{tmp_path}/**/*.txt"


def test_relative_data_path_is_found_beside_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current directory comes first; trainers get an absolute path, since they run elsewhere."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "text.txt").write_text("x" * 1000, encoding="utf-8")
    (folder / "job.yaml").write_text("name: a\ndata: {path: text.txt}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_job_file("jobs/job.yaml").data.path == str(tmp_path / "jobs" / "text.txt")
    (tmp_path / "text.txt").write_text("y" * 1000, encoding="utf-8")
    assert load_job_file("jobs/job.yaml").data.path == str(tmp_path / "text.txt")


def test_every_path_of_data_is_settled_and_must_exist(tmp_path: Path) -> None:
    """Sources and validation as well as `data.path`."""
    (tmp_path / "text.txt").write_text("x" * 200, encoding="utf-8")
    job = tmp_path / "job.yaml"
    sources = "[{name: a, path: text.txt}, {name: b, path: stdlib}]"
    job.write_text(
        f"name: a\ndata: {{sources: {sources}}}\nvalidation: {{path: text.txt}}\n", encoding="utf-8"
    )
    spec = load_job_file(str(job))
    assert [each.path for each in spec.data.sources] == [str(tmp_path / "text.txt"), "stdlib"]
    assert spec.validation.path == str(tmp_path / "text.txt")
    nothing = str(tmp_path / "nothing")
    changes = (f"data.sources.1.path={nothing}", f"validation.path={nothing}")
    assert fields_of(job, *changes) == ["validation.path", "data.sources.1.path"]


def test_the_vocabulary_is_that_of_the_token_file(job_file: Path, tmp_path: Path) -> None:
    """Left out it is taken from the file; too small a one is refused with what is needed."""
    write_tokens(tmp_path / "train.tokens", [[1, 2, 3]], vocabulary=50257)
    assert load_job_file(str(job_file)).model.vocabulary == 256
    spec = load_job_file(str(job_file), [f"data.path={tmp_path}"])
    assert spec.model.vocabulary == 50257
    changes = (f"data.path={tmp_path}", "model.vocabulary=50000")
    assert fields_of(job_file, *changes) == ["model.vocabulary"]
    with pytest.raises(JobFileError, match="tokenizer made up has 50257 tokens: set it to 50257 or more"):
        load_job_file(str(job_file), changes)
    assert load_job_file(str(job_file), [changes[0], "model.vocabulary=50304"]).model.vocabulary == 50304


def test_an_object_of_kubernetes_is_one_problem_with_the_way_to_use_it() -> None:
    with pytest.raises(JobFileError) as caught:
        load_job_file(str(REPOSITORY / "examples" / "moe-job.yaml"))
    (problem,) = caught.value.problems
    assert problem.field == "kind" and "kubectl apply -f" in problem.remedy


def test_file_that_is_no_job_says_what_is_wrong(tmp_path: Path) -> None:
    """A missing file, a folder, broken YAML, bytes, and YAML that is no mapping."""
    path = tmp_path / "job.yaml"
    assert fields_of(path) == ["job file"]
    assert fields_of(tmp_path) == ["job file"]
    for content in (b"name: [", b"\xff\xfe\x00", b"- a\n- b\n", b""):
        path.write_bytes(content)
        assert fields_of(path) == ["job file"]
