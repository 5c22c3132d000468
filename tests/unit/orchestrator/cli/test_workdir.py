"""Work directories: chosen without writing, refused with a remedy, written whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import workdir
from orchestrator.cli.connection import find_controller
from orchestrator.cli.errors import CliError
from orchestrator.core.spec import DataSpec, JobSpec
from orchestrator.jobfile import load_job_file
from tests.permissions import somebody_else

SPEC = JobSpec(name="small", data=DataSpec(path="stdlib"))
AT = 1_700_000_000.0


def test_the_default_is_a_new_folder_below_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = workdir.choose("small", None, AT)
    assert first.parent == tmp_path / workdir.DEFAULT_PARENT and first.name.startswith("small-2023")
    assert list(tmp_path.iterdir()) == [], "choosing writes nothing"
    first.mkdir(parents=True)
    assert workdir.choose("small", None, AT).name == f"{first.name}-2"


@pytest.mark.parametrize("trace", ["job.yaml", "controller.json", "metrics.jsonl", "controller.db"])
def test_another_run_is_not_written_over(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).touch()
    with pytest.raises(CliError, match="holds another run") as refused:
        workdir.choose("small", tmp_path, AT)
    assert f"run --resume {tmp_path}" in refused.value.remedy
    assert [each.name for each in tmp_path.iterdir()] == [trace]


def test_a_folder_with_other_things_in_it_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert workdir.choose("small", tmp_path, AT) == tmp_path


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match="is a file"):
        workdir.choose("small", tmp_path / "file" / "below", AT)


@pytest.mark.parametrize("below", ["run", "closed/run", "closed/deep/run"])
def test_a_folder_without_permission_is_refused(nobodys: Path, below: str) -> None:
    """One that may not be written to, and one that may not even be looked into."""
    (nobodys / "closed" / "deep").mkdir(parents=True)
    (nobodys / "closed").chmod(0)
    nobodys.chmod(0o555)
    with somebody_else(), pytest.raises(CliError, match=r"(?i)permission") as refused:
        workdir.choose("small", nobodys / below, AT)
    assert str(nobodys / below) in refused.value.message
    assert "--workdir" in refused.value.remedy


def test_what_a_run_that_never_came_about_wrote_is_taken_back(tmp_path: Path) -> None:
    """The same command can be given again; what was there before is left alone."""
    (tmp_path / "notes.txt").touch()
    for directory in (tmp_path, tmp_path / "run"):
        workdir.prepare(directory, SPEC)
        (directory / "controller.db").touch()
        (directory / workdir.CONTROLLER_LOG).touch()
        with pytest.raises(CliError, match="holds another run"):
            workdir.choose("small", directory, AT)
        workdir.withdraw(directory)
        assert workdir.choose("small", directory, AT) == directory
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_prepared_is_the_job_as_it_runs(tmp_path: Path) -> None:
    path = workdir.prepare(tmp_path / "deep" / "run", SPEC)
    assert load_job_file(str(path)) == SPEC
    assert workdir.resumable(path.parent) == path.parent


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"has no job\.yaml"):
        workdir.resumable(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "x"}', '{"address": "x", "pid": "p"}'])
def test_half_a_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / workdir.CONTROLLER_FILE).write_text(text)
    assert workdir.read_controller(tmp_path) is None


def test_a_controller_is_alive_while_its_own_process_is(tmp_path: Path) -> None:
    program = "import sys; print('runs', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, "--workdir", "."]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        # Popen returns before the kernel shows the new command line: only a running program surely has one.
        assert process.stdout.readline() == b"runs\n"
        record = {"address": "127.0.0.1:1", "pid": process.pid}
        (tmp_path / workdir.CONTROLLER_FILE).write_text(json.dumps(record))
        assert workdir.controller_alive(tmp_path)
        record["pid"] = os.getpid()
        (tmp_path / workdir.CONTROLLER_FILE).write_text(json.dumps(record))
        assert not workdir.controller_alive(tmp_path), "this process controls another folder, or none"
        assert process.stdin is not None
        process.stdin.close()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "summary.json"
    workdir.write_atomically(target, "one")
    workdir.write_atomically(target, "two")
    assert target.read_text() == "two"
    assert [each.name for each in target.parent.iterdir()] == ["summary.json"]


def test_stories_are_kept_by_incident(tmp_path: Path) -> None:
    for number in (10, 2):
        workdir.write_story(tmp_path, f"incident-{number}", {"incident": number})
    assert workdir.stories(tmp_path) == ["incident-2", "incident-10"]
    assert workdir.read_story(tmp_path, "incident-10") == {"incident": 10}
    assert workdir.read_story(tmp_path, "incident-3") is None
    assert workdir.read_story(tmp_path, "../incidents/incident-2") is None


def test_a_controller_is_named_by_flag_folder_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / workdir.CONTROLLER_FILE).write_text('{"address": "127.0.0.1:2", "pid": 1}')
    assert find_controller("h:1", None, "e:3").address == "h:1"
    assert find_controller(None, tmp_path, "e:3").address == "127.0.0.1:2"
    assert find_controller(None, None, "e:3").address == "e:3"
    with pytest.raises(CliError, match="which controller") as unknown:
        find_controller(None, None, None)
    assert "--workdir DIR" in unknown.value.remedy and "UNDERSTUDY_CONTROLLER" in unknown.value.remedy
    with pytest.raises(CliError, match="both name a controller"):
        find_controller("h:1", tmp_path, None)


def test_the_newest_run_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in ((2, "old"), (1, "new")):
        record = Path(workdir.DEFAULT_PARENT, name, workdir.CONTROLLER_FILE)
        record.parent.mkdir(parents=True)
        record.touch()
        os.utime(record, (AT - age, AT - age))
    with pytest.raises(CliError) as unknown:
        find_controller(None, None, None)
    assert f"--workdir {workdir.DEFAULT_PARENT}/new" in unknown.value.remedy


@pytest.mark.parametrize("address", ["host", ":1", "host:", "host:x", "host:0", "host:70000"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(CliError, match="is not an address"):
        find_controller(address, None, None)
