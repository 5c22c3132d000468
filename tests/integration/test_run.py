"""`understudy run` with real processes around it: watched, interrupted, restarted, reported; last of all a real job."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples" / "stdlib-moe.yaml")
WAIT_SECONDS = 30.0


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
    ask = [sys.executable, "-m", "orchestrator.cli.main", "explain", told["incidents"][0]["id"], "--workdir"]
    story = subprocess.run(
        [*ask, str(workdir)], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )
    assert "no committed step was lost" in story.stdout, "told after the end as well"
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
