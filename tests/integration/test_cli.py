"""The CLI against a real Admin service: questions, commands, errors. Runs are in `test_run.py`."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli.main import main
from tests.integration.played_controller import EVENTS, PlayedAdmin, serving
from tests.permissions import somebody_else
from tests.unit.orchestrator.cli import views

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples" / "stdlib-moe.yaml")
WAIT_SECONDS = 30.0
LISTS = ("nodes", "experts", "jobs", "incidents", "events", "checkpoints", "snapshots")


@pytest.fixture(scope="module")
def admin() -> PlayedAdmin:
    return PlayedAdmin(views.finished())


@pytest.fixture(scope="module")
def address(admin: PlayedAdmin) -> Iterator[str]:
    with serving(admin) as listening:
        yield listening


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that has ended."""

    code: object
    stdout: str
    stderr: str


def understudy(*arguments: str) -> Done:
    """The program as its console script runs it, in this process: that is a second less than in one of its own."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(arguments)
    code = 0 if ended.value.code is None else ended.value.code
    return Done(code=code, stdout=out.getvalue(), stderr=errors.getvalue())


@pytest.fixture(autouse=True)
def no_controller_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERSTUDY_CONTROLLER", raising=False)


def _json(done: Done) -> Any:
    assert (done.code, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


# ---- questions and commands ----


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_arrays_of_objects(name: str, address: str) -> None:
    rows = _json(understudy(name, "--controller", address, "-o", "json"))
    assert rows and all(isinstance(each, dict) for each in rows)
    table = understudy(name, "--controller", address)
    assert table.code == 0 and len(table.stdout.splitlines()) == len(rows) + 1
    assert "\x1b" not in table.stdout, "no colours in a pipe"


def test_nodes_have_the_fields_that_scripts_need(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CONTROLLER", address)
    rows = _json(understudy("nodes", "-o", "json"))
    assert [each["id"] for each in rows] == [f"node-{number}" for number in range(1, 6)]
    wanted = {"id", "state", "labels", "agent_pid", "trainer_pids", "heartbeat_age_seconds", "step"}
    assert wanted <= rows[0].keys()
    assert (rows[1]["agent_pid"], rows[1]["trainer_pids"]) == (1002, [2002])


def test_yaml_says_the_same_as_json(address: str) -> None:
    shown = understudy("experts", "--controller", address, "-o", "yaml")
    assert yaml.safe_load(shown.stdout) == _json(understudy("experts", "--controller", address, "-o", "json"))


def test_events_are_the_newest_unless_told_otherwise(address: str) -> None:
    def numbers(*options: str) -> list[int]:
        found = _json(understudy("events", "--controller", address, "-o", "json", *options))
        return [each["sequence"] for each in found]

    assert numbers("--limit", "3") == [EVENTS - 2, EVENTS - 1, EVENTS]
    assert numbers("--after", "6", "--limit", "2") == [7, 8]
    assert numbers("--after", str(EVENTS)) == []
    assert numbers("--kind", "Other") == []
    assert "the stream of node-2 broke" in understudy("events", "--controller", address).stdout


def test_the_generation_is_an_object(address: str) -> None:
    found = _json(understudy("generation", "--controller", address, "-o", "json"))
    assert (found["number"], found["members"][0]["experts"], found["planned"]) == (2, [0, 4], None)
    assert (
        "generation 2 (immediate): node-2 is lost" in understudy("generation", "--controller", address).stdout
    )


def test_an_incident_is_explained(address: str) -> None:
    told = understudy("explain", "incident-1", "--controller", address).stdout
    assert "What was decided, and why" in told and views.REASONS[1] in told
    found = _json(understudy("explain", "incident-1", "--controller", address, "-o", "json"))
    assert found["incident"]["phases"]["redundancy_restored_seconds"] == 3.24


@pytest.mark.parametrize(
    "arguments, heard",
    [
        (("drain", "node-2"), "drain node-2"),
        (("cordon", "node-5"), "cordon node-5"),
        (("uncordon", "node-5"), "uncordon node-5"),
        (("checkpoint", "now"), "checkpoint"),
        (("stop",), "stop"),
        (("shutdown",), "shutdown"),
    ],
)
def test_commands_are_passed_on(
    arguments: tuple[str, ...], heard: str, admin: PlayedAdmin, address: str
) -> None:
    done = understudy(*arguments, "--controller", address)
    assert (done.code, done.stdout) == (0, f"heard: {heard}\n")
    assert admin.heard[-1] == heard


# ---- errors ----


def _error(done: Done, code: int) -> str:
    assert done.code == code, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_the_controller_refuses_is_said_in_its_words(address: str) -> None:
    error = _error(understudy("explain", "incident-9", "--controller", address), 1)
    assert f"the controller at {address} refused: no incident 'incident-9'" in error


def test_nobody_there_is_said_with_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        error = _error(understudy("nodes", "--controller", nobody), 1)
    assert f"no controller answers at {nobody} (from --controller)" in error and "remedy:" in error


def test_a_work_directory_whose_controller_has_ended_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "controller.json").write_text('{"address": "127.0.0.1:9", "pid": 1}')
    error = _error(understudy("nodes", "--workdir", str(tmp_path)), 1)
    assert f"the controller of {tmp_path} is not running any more" in error
    assert f"understudy run --resume {tmp_path}" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nodes",), "which controller?"),
        (("nodes", "--controller", "here"), "is not an address"),
        (("nodes", "-o", "xml"), "'xml' is not one of"),
        (("run",), "name a job file"),
        (("run", "no-such-file.yaml"), "no-such-file.yaml"),
        (("run", EXAMPLE, "--nodes", "x"), "'x' is not a valid integer"),
        (("run", EXAMPLE, "--fail", "step=1"), "lacks kind, node"),
        (("run", "--resume", "/nowhere"), "is not the work directory of a run"),
        (("run", "x.yaml", "--resume", "/nowhere"), "takes neither CONFIG nor --workdir"),
        (("run", EXAMPLE, "--summary", "/nowhere/s.json"), "cannot be written"),
        (("run", EXAMPLE, "--listen", "here"), "--listen: 'here' is not an address"),
        (("run", EXAMPLE, "--listen", "192.0.2.1:0"), "cannot be listened on"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_mistakes_end_with_2_and_a_remedy(arguments: tuple[str, ...], words: str) -> None:
    assert words in _error(understudy(*arguments), 2)


def test_a_job_that_cannot_run_starts_nothing(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = understudy(
        "run",
        EXAMPLE,
        "--workdir",
        str(workdir),
        "--set",
        "model.top_k=99",
        "--nodes",
        "1",
    )
    error = _error(done, 2)
    assert "model.top_k = 99" in error and "cluster.replicas = 2" in error and error.count("remedy:") >= 2
    assert not workdir.exists()


def test_a_port_that_somebody_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = _error(understudy("run", EXAMPLE, "--workdir", str(tmp_path / "run"), "--listen", address), 2)
    assert f"--listen: '{address}' cannot be listened on: Address already in use" in error
    assert "remedy: name another address" in error
    assert not (tmp_path / "run").exists()


def test_what_the_controller_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    """Only the controller knows who may listen where; its own words are the error, and the folder is free again."""
    workdir = tmp_path / "run"
    error = _error(understudy("run", EXAMPLE, "--workdir", str(workdir), "--listen", "0.0.0.0:0"), 2)
    assert error.startswith("error: --listen: '0.0.0.0:0': other machines can reach this address")
    assert not workdir.exists()


@pytest.mark.parametrize(
    "place, words",
    [
        ("closed/s.json", "no permission to write to"),
        ("closed", "it is a folder"),
        ("no/s.json", "no such folder"),
    ],
)
def test_a_summary_that_cannot_be_written_is_found_out_at_once(nobodys: Path, place: str, words: str) -> None:
    """Not after hours of training."""
    (nobodys / "closed").mkdir(mode=0o555)
    nobodys.chmod(0o777)
    (nobodys / "job.yaml").write_text(Path(EXAMPLE).read_text())
    with somebody_else():
        done = understudy(
            "run",
            str(nobodys / "job.yaml"),
            "--workdir",
            str(nobodys / "run"),
            "--summary",
            str(nobodys / place),
        )
    assert f"{nobodys / place} cannot be written: {words}" in _error(done, 2)
    assert not (nobodys / "run").exists()


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    error = _error(understudy("run", EXAMPLE, "--workdir", str(tmp_path)), 2)
    assert f"--resume {tmp_path}" in error
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_validate_tells_all_or_what_would_run() -> None:
    done = understudy("validate", EXAMPLE, "--nodes", "3")
    assert done.code == 0 and "on 3 nodes and 1 spare" in done.stdout
    assert _json(understudy("validate", EXAMPLE, "-o", "json"))["job"]["cluster"]["nodes"] == 4
    refused = understudy("validate", EXAMPLE, "--set", "modell=1", "-o", "json")
    assert refused.code == 2
    assert json.loads(refused.stdout)["problems"][0]["field"] == "modell"


@pytest.mark.parametrize(
    "command",
    ["", "run", "validate", *LISTS, "generation", "explain", "drain", "stop", "checkpoint now", "shutdown"],
)
def test_help_teaches_by_example(command: str) -> None:
    done = understudy(*command.split(), "--help")
    assert done.code == 0
    assert done.stdout.count("  understudy ") >= 1, "at least one example"


def test_the_version_is_told() -> None:
    """As the console script itself, in a process of its own."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert done.stdout.startswith("understudy, version ")
