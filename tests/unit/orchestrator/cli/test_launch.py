"""Restarts are bounded, deaths have words, and only what is ours for certain is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli import processes
from orchestrator.cli.launch import (
    RESTARTS,
    Death,
    LastWords,
    RestartBudget,
    last_lines,
    last_words,
    pause_seconds,
)
from orchestrator.core.spec import TimeoutSpec
from tests.waiting import wait_until

WAIT_SECONDS = 10.0
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""


def test_five_restarts_in_ten_minutes_and_no_more() -> None:
    budget = RestartBudget(limit=5, window_seconds=600.0)
    assert [budget.take(float(at)) for at in range(6)] == [1, 2, 3, 4, 5, None]
    assert budget.take(601.0) == 4, "the first two are long ago"


@pytest.mark.parametrize(
    "code, restartable, words",
    [
        (-9, True, "was ended by SIGKILL"),
        (3, True, "its database or its ledger failed"),
        (None, True, "died"),
        (0, False, "ended with exit code 0"),
        (1, False, "ended with exit code 1"),
        (2, False, "ended with exit code 2"),
        (4, False, "another controller holds the lease"),
    ],
)
def test_what_is_started_again(code: int | None, restartable: bool, words: str) -> None:
    death = Death(code=code)
    assert death.restartable is restartable
    assert words in str(death)


def test_the_end_of_a_log_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(5000)))
    assert last_lines(log, 2) == "  | line 4998\n  | line 4999"
    assert "cannot be read" in last_lines(tmp_path / "none")

    log.write_text("an earlier life\nthis one\n")
    assert last_lines(log, begins=len("an earlier life\n")) == "  | this one"


def test_a_database_that_keeps_failing_is_given_time() -> None:
    """A full disk or a server that is away passes, but not in a second; agents wait longer than all pauses together."""
    pauses = [pause_seconds(failures) for failures in range(1, RESTARTS + 1)]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    assert sum(pauses) < TimeoutSpec().orphan_seconds


def test_a_controller_is_quoted_with_what_it_said_itself(tmp_path: Path) -> None:
    log = tmp_path / "log"
    earlier = "error: of an earlier life\n"
    log.write_text(earlier + "12:00 INFO orchestrator.app: beginning\n")
    begins = len(earlier)
    assert last_words(log, begins=begins) is None
    with log.open("a") as more:
        more.write(
            "12:01 CRITICAL orchestrator.app: the disk is full. Remedy: make room\n12:01 INFO x: ended\n"
        )
    assert last_words(log, begins=begins) == LastWords(message="the disk is full.", remedy="make room")
    with log.open("a") as more:
        more.write("error: --job: 'x': cannot run:\nsteps = 0: give more than 0\n")
    said = last_words(log, begins=begins)
    assert said == LastWords(message="--job: 'x': cannot run:\nsteps = 0: give more than 0", remedy="")
    assert last_words(tmp_path / "none") is None


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like a node's agent, leads a session and does not hear SIGTERM."""
    arguments = ["-m", "worker", "agent", "--node", "node-1", "--workdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)


def _record(workdir: Path, pid: int, *, late_ticks: int = 0, boot: str | None = None) -> None:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    here = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = {"pid": pid, "start_ticks": int(fields[19]) + late_ticks, "boot": boot or here}
    (workdir / "nodes").mkdir(exist_ok=True)
    (workdir / "nodes" / "node-1.json").write_text(json.dumps(record))


def _end(workdir: Path) -> tuple[str, ...]:
    return processes.end_nodes(workdir, grace_seconds=0.1, kill_seconds=WAIT_SECONDS)


def test_a_node_that_does_not_listen_is_killed(tmp_path: Path, node: subprocess.Popen[str]) -> None:
    _record(tmp_path, node.pid)
    assert _end(tmp_path) == ("node-1",)
    assert node.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert _end(tmp_path) == ()


def test_a_frozen_node_is_ended_too(tmp_path: Path, node: subprocess.Popen[str]) -> None:
    _record(tmp_path, node.pid)
    os.kill(node.pid, signal.SIGSTOP)
    assert _end(tmp_path) == ("node-1",)
    assert node.wait(WAIT_SECONDS) == -signal.SIGKILL


def test_a_node_that_nobody_wrote_down_yet_is_known_by_its_command(
    tmp_path: Path, node: subprocess.Popen[str]
) -> None:
    assert _end(tmp_path) == ("node-1",)
    assert node.wait(WAIT_SECONDS) == -signal.SIGKILL


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(
    tmp_path: Path, node: subprocess.Popen[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _record(elsewhere, node.pid, late_ticks=-1)
    assert _end(elsewhere) == ()
    _record(elsewhere, node.pid, boot="another boot")
    assert _end(elsewhere) == ()
    assert node.poll() is None


def test_trainers_that_outlived_their_agent_are_found(tmp_path: Path) -> None:
    trainer = [sys.executable, "-c", STUBBORN, "-m", "worker", "trainer"]
    code = f"import subprocess, sys; print(subprocess.Popen({trainer!r}).pid, flush=True); sys.stdin.read(1)"
    command = [sys.executable, "-c", code, "-m", "worker", "agent"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as agent:
        assert agent.stdout is not None and agent.stdin is not None
        lines = {agent.stdout.readline().strip(), agent.stdout.readline().strip()}
        orphan = int((lines - {"up"}).pop())
        _record(tmp_path, agent.pid)
        agent.stdin.write("x")
        agent.stdin.flush()
        wait_until(lambda: agent.poll() is not None, within_seconds=WAIT_SECONDS, what="the end of the agent")
        began = time.monotonic()
        assert _end(tmp_path) == ("node-1",)
        assert time.monotonic() - began < WAIT_SECONDS
        wait_until(lambda: not _runs(orphan), within_seconds=WAIT_SECONDS, what="the end of the trainer")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
