"""The CLI against a real Admin service: questions, commands, errors; and `run` with real processes around it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
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
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples" / "stdlib-moe.yaml")
WAIT_SECONDS = 30.0
LISTS = ("nodes", "experts", "jobs", "incidents", "events", "checkpoints")


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


# ---- run ----


class Run:
    """`understudy run` with a played controller in a work directory."""

    def __init__(self, workdir: Path, play: str, *flags: str, **streams: Any) -> None:
        self.workdir = workdir
        workdir.mkdir(exist_ok=True)
        (workdir / "play").write_text(play)
        streams = streams or {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may itself run under nohup
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.run_played", str(workdir), *flags],
                cwd=ROOT,
                text=True,
                **streams,
            )
        finally:
            signal.signal(signal.SIGHUP, before)

    def end(self) -> str:
        """Everything it printed; it must end by itself and leave nothing."""
        out: str | None = self.process.communicate(timeout=WAIT_SECONDS)[0]
        self.nothing_is_left()
        return out or ""

    def until(self, words: str) -> str:
        """Lines up to the one with `words`."""
        assert self.process.stdout is not None
        seen = ""
        while each := str(self.process.stdout.readline()):
            seen += each
            if words in each:
                return seen
        raise AssertionError(f"never said {words!r}:\n{seen}")

    def nothing_is_left(self) -> None:
        def left() -> list[bytes]:
            own = str(self.workdir).encode()
            found = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().split(b"\0")
                except OSError:
                    continue
                if own in words and b"--workdir" in words:
                    found.append(b" ".join(words))
            return found

        wait_until(lambda: not left(), within_seconds=5.0, what=f"an end of {left()}")


def test_a_run_is_watched_to_its_end_and_reported(tmp_path: Path) -> None:
    run = Run(tmp_path, "finish", "--summary", str(tmp_path / "s.json"))
    out = run.end()
    assert run.process.returncode == 0, out
    assert "step step=100 steps=100" in out and "stdlib-moe finished" in out
    assert "2400 expected, 2400 counted, 0 duplicated, 0 missing: exactly once" in out
    assert "what to try next" in out
    for path in ("s.json", "summary.json"):
        assert json.loads((tmp_path / path).read_text())["steps_committed"] == 100


def test_a_job_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, "doomed", "--plain")
    out = run.end()
    assert run.process.returncode == 1, out
    assert "stdlib-moe failed: no node is left" in out
    assert f"tail -n 50 {tmp_path}/logs/controller.log" in out


def test_before_the_controller_listens_one_interrupt_is_enough(tmp_path: Path) -> None:
    run = Run(tmp_path, "mute", "--plain")
    wait_until((tmp_path / "started").exists, within_seconds=WAIT_SECONDS, what="the start of the controller")
    run.process.send_signal(signal.SIGINT)
    out = run.end()
    assert run.process.returncode == 130, out
    assert "there is no checkpoint yet" in out


def test_a_controller_that_dies_is_started_again_on_its_port(tmp_path: Path) -> None:
    run = Run(tmp_path, "killed", "--plain")
    out = run.end()
    assert run.process.returncode == 0, out
    assert out.count("was ended by SIGKILL: training goes on; it is started again (1 of 8)") == 2, (
        "said, and reported"
    )
    ports = (tmp_path / "listened").read_text().split()
    assert len(ports) == 2 and ports[0] == ports[1]


def test_a_controller_that_always_dies_is_given_up(tmp_path: Path) -> None:
    run = Run(tmp_path, "failing", "--plain")
    out = run.end()
    assert run.process.returncode == 1, out
    assert "(8 of 8)" in out
    assert "exit code 3 (its database or its ledger failed), 8 times in a row" in out
    assert f"understudy run --resume {tmp_path}" in out


def test_a_controller_that_refuses_to_start_is_quoted(tmp_path: Path) -> None:
    run = Run(tmp_path, "refusing", "--plain")
    out = run.end()
    assert run.process.returncode == 2, out
    assert "error: --listen: this controller does not like its address" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_interrupt_stops_in_order(tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path, "endless", "--plain")
    run.until("step step=")
    run.process.send_signal(number)
    out = run.end()
    assert run.process.returncode == 0, out
    assert "stopping: a checkpoint at the next step boundary" in out
    assert "stdlib-moe stopped" in out


def test_the_second_interrupt_ends_everything_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "careless", "--plain")
    run.until("step step=")
    # A controller that is stopped cannot take the stop: the first Ctrl-C stays without an answer.
    controller = json.loads((tmp_path / "controller.json").read_text())["pid"]
    os.kill(controller, signal.SIGSTOP)
    began = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    run.until("stopping: a checkpoint")
    run.process.send_signal(signal.SIGINT)
    out = run.end()
    assert run.process.returncode == 130, out
    assert "ended at once; there is no checkpoint yet" in out
    assert f"understudy run --resume {tmp_path}" in out
    assert time.monotonic() - began < 5.0, "it does not wait for an answer"


def test_a_node_that_the_controller_left_behind_is_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, "careless", "--plain")
    run.until("step step=")
    run.process.send_signal(signal.SIGINT)
    out = run.end()
    assert run.process.returncode == 0, out
    assert "nodes had to be ended from here: node-1" in out


def test_a_reader_that_leaves_stops_the_run_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path, "endless", "--plain")
    run.until("step step=")
    assert run.process.stdout is not None
    run.process.stdout.close()
    assert run.process.wait(WAIT_SECONDS) == 0
    run.nothing_is_left()


def test_a_run_whose_launcher_died_is_taken_over(tmp_path: Path) -> None:
    first = Run(tmp_path, "endless", "--plain")
    first.until("step step=")
    first.process.kill()
    first.process.communicate(timeout=WAIT_SECONDS)
    record = json.loads((tmp_path / "controller.json").read_text())
    second = Run(tmp_path, "endless", "--plain", "--resume")
    seen = second.until("step step=")
    assert f"the controller lives (pid {record['pid']}): watching it" in seen
    second.process.send_signal(signal.SIGINT)
    assert "stdlib-moe stopped" in second.end()
    assert second.process.returncode == 0
    assert (tmp_path / "listened").read_text().count("\n") == 1, "no second controller"


def test_a_terminal_gets_the_picture_and_is_left_as_it_was(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    before = termios.tcgetattr(theirs)
    run = Run(tmp_path, "endless", stdin=theirs, stdout=theirs, stderr=theirs)
    shown = _read_until(ours, b"Ctrl-C stops at a step boundary")
    assert b"\x1b[?1049h" in shown, "the picture has a page of its own"
    assert b"expert" in shown and b"primary" in shown
    os.write(ours, b"q")
    run.process.send_signal(signal.SIGINT)
    shown = _read_until(ours, b"what to try next")
    run.end()
    assert run.process.returncode == 0
    assert b"\x1b[?1049l" in shown and b"\x1b[?25h" in shown
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)


def test_a_terminal_that_closes_stops_the_run_in_order(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    run = Run(tmp_path, "endless", stdin=theirs, stdout=theirs, stderr=theirs)
    _read_until(ours, b"Ctrl-C stops at a step boundary")
    os.close(theirs)
    os.close(ours)
    assert run.process.wait(WAIT_SECONDS) == 0
    run.nothing_is_left()


@pytest.mark.slow
def test_a_real_job_survives_a_killed_node(tmp_path: Path) -> None:
    """Nothing is played here: the real controller, agents and trainers, a real SIGKILL, and the report about it."""
    small = (
        "model.width=32",
        "model.heads=2",
        "model.layers=1",
        "model.expert_width=32",
        "model.sequence_length=32",
    )
    workdir, summary = tmp_path / "run", tmp_path / "summary.json"
    command = [sys.executable, "-m", "orchestrator.cli.main", "run", EXAMPLE, "--workdir", str(workdir)]
    command += ["--nodes", "2", "--spares", "1", "--steps", "12", "--summary", str(summary)]
    command += [word for each in small for word in ("--set", each)]
    command += ["--fail", "step=5,kind=sigkill,node=node-2", "--record-svg", str(tmp_path / "live.svg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(summary.read_text())
    assert (told["steps_committed"], told["samples_counted"]) == (12, 12 * 24)
    assert (told["samples_duplicated"], told["samples_missing"]) == (0, 0)
    assert [(each["node"], each["steps_lost"]) for each in told["incidents"]] == [("node-2", 0)]
    story = understudy("explain", told["incidents"][0]["id"], "--workdir", str(workdir))
    assert story.code == 0 and "no committed step was lost" in story.stdout, "told after the end as well"
    assert "node-2" in (tmp_path / "live.svg").read_text() and (tmp_path / "live-end.svg").exists()


def _read_until(terminal: int, words: bytes) -> bytes:
    """What a terminal shows until `words` have come by."""
    seen = b""
    deadline = time.monotonic() + WAIT_SECONDS
    while words not in seen:
        assert time.monotonic() < deadline, seen[-2000:]
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 65536)
    return seen
