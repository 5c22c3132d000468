"""Nodes as processes of this machine: started once, recognised, ended, also when they are stopped or will not hear."""

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

from orchestrator.cluster.identity import is_alive, is_stopped, read_record, record_of, write_record
from orchestrator.cluster.processes import AgentCommand, ProcessCluster, ProcessLimits, living_nodes
from orchestrator.core.ids import NodeId
from tests.waiting import wait_until

NODE = NodeId("node-1")
WAIT_SECONDS = 10.0
QUIET = "import sys, threading; print('up', *sys.argv[1:], flush=True); threading.Event().wait()"
"""An agent that says what it was told and then only lives."""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + QUIET
PARENT = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); "
    + QUIET
)


def _command(workdir: Path, code: str = QUIET) -> AgentCommand:
    return AgentCommand(controller="127.0.0.1:1", workdir=workdir, program=(sys.executable, "-c", code))


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """A folder whose nodes are gone when the test is over, whatever it did."""
    yield tmp_path
    for record in (tmp_path / "nodes").glob("*.json"):
        identity = read_record(record)
        if identity is not None and is_alive(identity):
            os.killpg(identity.pid, signal.SIGKILL)


def _pid(workdir: Path, node: NodeId = NODE) -> int:
    identity = read_record(workdir / "nodes" / f"{node}.json")
    assert identity is not None
    return identity.pid


def _up(workdir: Path, node: NodeId = NODE) -> None:
    log = workdir / "logs" / f"{node}.log"
    wait_until(
        lambda: log.exists() and "up" in log.read_text(), within_seconds=WAIT_SECONDS, what=f"{node} is up"
    )


def _started(workdir: Path, code: str = QUIET, limits: ProcessLimits | None = None) -> ProcessCluster:
    cluster = ProcessCluster(_command(workdir, code), limits)
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    _up(workdir)
    return cluster


def test_a_node_is_a_process_in_a_session_of_its_own(workdir: Path) -> None:
    cluster = _started(workdir)
    pid = _pid(workdir)
    assert os.getsid(pid) == pid != os.getsid(0)
    said = (workdir / "logs" / "node-1.log").read_text()
    assert said == f"up --node node-1 --controller 127.0.0.1:1 --workdir {workdir}\n"
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert any(each.startswith(b"OMP_NUM_THREADS=") for each in environment)
    assert cluster.living() == (NODE,)
    cluster.stop_node(NODE, "the test ends")
    assert cluster.settle(WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_starting_a_node_that_lives_starts_nothing(workdir: Path) -> None:
    cluster = _started(workdir)
    before = _pid(workdir)
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    assert _pid(workdir) == before
    assert cluster.stop_all("the test ends", WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_a_restarted_controller_recognises_its_living_nodes(workdir: Path) -> None:
    first = _started(workdir)
    before = _pid(workdir)
    first.close(WAIT_SECONDS)
    assert living_nodes(workdir) == (NODE,)
    second = ProcessCluster(_command(workdir))
    second.start_node(NODE)
    assert second.settle(WAIT_SECONDS)
    assert _pid(workdir) == before
    assert second.stop_all("the test ends", WAIT_SECONDS)
    assert second.living() == ()
    second.close(WAIT_SECONDS)


def test_a_frozen_agent_that_was_given_up_makes_room(workdir: Path) -> None:
    """Not another one of that name: the order may come twice, the second time when the new agent lives."""
    cluster = _started(workdir)
    before = _pid(workdir)
    os.kill(before, signal.SIGSTOP)
    wait_until(
        lambda: is_stopped(record_of(before)), within_seconds=WAIT_SECONDS, what="the agent is stopped"
    )
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    assert _pid(workdir) == before
    cluster.start_node(NODE, before)
    assert cluster.settle(WAIT_SECONDS)
    after = _pid(workdir)
    assert after != before and not Path(f"/proc/{before}").exists()
    cluster.start_node(NODE, before)
    assert cluster.settle(WAIT_SECONDS)
    assert _pid(workdir) == after
    assert cluster.stop_all("the test ends", WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_a_node_that_was_started_but_not_written_down_is_found(workdir: Path) -> None:
    """The controller died between the two: its successor must not start a second agent of the same name."""
    first = _started(workdir)
    before = _pid(workdir)
    (workdir / "nodes" / "node-1.json").unlink()
    other = AgentCommand(controller="127.0.0.1:2", workdir=workdir, program=(sys.executable, "-c", QUIET))
    second = ProcessCluster(other)
    second.start_node(NODE)
    assert second.settle(WAIT_SECONDS)
    assert _pid(workdir) == before
    assert second.stop_all("the test ends", WAIT_SECONDS)
    first.close(WAIT_SECONDS)
    second.close(WAIT_SECONDS)


def test_a_recycled_pid_is_neither_taken_for_the_node_nor_killed(workdir: Path) -> None:
    """The record names the pid of a stranger, started at another time: a new agent is started, the stranger lives."""
    stranger = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        record = workdir / "nodes" / "node-1.json"
        write_record(record, record_of(stranger.pid))
        fields = json.loads(record.read_text())
        record.write_text(json.dumps({**fields, "start_ticks": fields["start_ticks"] - 1}))
        cluster = ProcessCluster(_command(workdir))
        cluster.stop_node(NODE, "not there")
        cluster.start_node(NODE)
        assert cluster.settle(WAIT_SECONDS)
        assert _pid(workdir) != stranger.pid
        assert stranger.poll() is None
        assert cluster.stop_all("the test ends", WAIT_SECONDS)
        cluster.close(WAIT_SECONDS)
    finally:
        stranger.communicate(b"\n", timeout=WAIT_SECONDS)


def test_a_node_that_dies_by_itself_is_reaped_and_can_be_started_again(workdir: Path) -> None:
    cluster = _started(workdir)
    before = _pid(workdir)
    os.kill(before, signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{before}").exists(), within_seconds=WAIT_SECONDS, what="the corpse is reaped"
    )
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    assert _pid(workdir) != before
    assert cluster.stop_all("the test ends", WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_stopping_ends_what_the_agent_started_too(workdir: Path) -> None:
    cluster = _started(workdir, PARENT)
    pid = _pid(workdir)
    assert len(_session(pid)) == 2
    cluster.stop_node(NODE, "the test ends")
    assert cluster.settle(WAIT_SECONDS)
    wait_until(lambda: not _session(pid), within_seconds=WAIT_SECONDS, what="the whole session is gone")
    assert cluster.living() == ()
    cluster.close(WAIT_SECONDS)


def test_a_deaf_node_is_killed_when_its_grace_is_over(workdir: Path) -> None:
    cluster = _started(workdir, DEAF, ProcessLimits(grace_seconds=0.2))
    identity = record_of(_pid(workdir))
    cluster.stop_node(NODE, "the test ends")
    assert cluster.settle(WAIT_SECONDS)
    assert not is_alive(identity)
    cluster.close(WAIT_SECONDS)


def test_a_stopped_node_is_killed_without_waking_up(workdir: Path) -> None:
    """SIGSTOP: it would not hear SIGTERM, and if it woke it could still do harm."""
    cluster = _started(workdir, QUIET, ProcessLimits(grace_seconds=60.0))
    identity = record_of(_pid(workdir))
    os.kill(identity.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(identity), within_seconds=WAIT_SECONDS, what="the node is stopped")
    cluster.stop_node(NODE, "it hangs")
    assert cluster.settle(WAIT_SECONDS)
    assert not is_alive(identity)
    cluster.close(WAIT_SECONDS)


def test_a_node_that_is_ending_is_started_again_when_it_has_ended(workdir: Path) -> None:
    cluster = _started(workdir, DEAF, ProcessLimits(grace_seconds=0.2))
    before = _pid(workdir)
    cluster.stop_node(NODE, "to be started again")
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    assert _pid(workdir) != before
    assert cluster.stop_all("the test ends", WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_no_call_waits_for_a_process(workdir: Path) -> None:
    """The controller's thread makes them: one deaf node must not hold up all others."""
    cluster = _started(workdir, DEAF, ProcessLimits(grace_seconds=0.5))
    began = time.monotonic()
    cluster.stop_node(NODE, "the test ends")
    cluster.start_node(NodeId("node-2"))
    assert time.monotonic() - began < 0.25
    wait_until(
        lambda: NodeId("node-2") in cluster.living(), within_seconds=WAIT_SECONDS, what="node-2 is started"
    )
    assert cluster.stop_all("the test ends", WAIT_SECONDS)
    cluster.close(WAIT_SECONDS)


def test_a_program_that_cannot_be_started_is_logged_and_harms_nobody(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = ProcessCluster(
        AgentCommand(controller="127.0.0.1:1", workdir=workdir, program=("/nowhere/python",))
    )
    cluster.start_node(NODE)
    assert cluster.settle(WAIT_SECONDS)
    assert cluster.living() == ()
    assert "/nowhere/python" in caplog.text
    cluster.close(WAIT_SECONDS)


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == leader and is_alive(record_of(int(entry.name))):
                found.append(int(entry.name))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found
