"""`python -m orchestrator` as people and the CLI meet it: a process with files, signals and exit codes.

The agents are real too; what they train matters only in the last test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.cluster.identity import is_alive, read_record
from orchestrator.cluster.processes import living_nodes
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from tests.waiting import wait_until

WAIT_SECONDS = 30.0
ASK_SECONDS = 10.0
JOB = """
name: tiny
steps: 3
data: {path: stdlib}
cluster: {nodes: 1, spares: 0, replicas: 1}
batch: {microbatches: 1, microbatch_size: 1}
model: {width: 16, layers: 1, heads: 2, kv_heads: 1, experts: 2, expert_width: 16, sequence_length: 16}
"""


class Run:
    """A work directory and the controllers that are started on it."""

    def __init__(self, workdir: Path, job: Path) -> None:
        self.workdir = workdir
        self.job = job
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a controller; it may refuse."""
        command = [sys.executable, "-m", "orchestrator", "--workdir", str(self.workdir), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def serve(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a controller and wait until it serves."""
        process = self.start(*arguments)
        wait_until(
            lambda: self.record().get("pid") == process.pid or process.poll() is not None,
            within_seconds=WAIT_SECONDS,
            what="the controller serves",
        )
        assert process.poll() is None, process.communicate()[1]
        return process

    def refused(self, *arguments: str) -> tuple[int, str]:
        """Exit code and last words of a controller that does not start."""
        process = self.start(*arguments)
        _, said = process.communicate(timeout=WAIT_SECONDS)
        return process.returncode, said

    def record(self) -> dict[str, Any]:
        """What controller.json says."""
        try:
            content = json.loads((self.workdir / "controller.json").read_text())
        except FileNotFoundError:
            return {}
        assert isinstance(content, dict)
        return content

    def nodes(self) -> list[pb.Node]:
        """What the controller says of its nodes."""
        with grpc.insecure_channel(self.record()["address"]) as channel:
            reply = admin_pb2_grpc.AdminStub(channel).ListNodes(
                pb.ListNodesRequest(), timeout=ASK_SECONDS, wait_for_ready=True
            )
        return list(reply.nodes)

    def registered(self) -> int:
        """Pid of the agent, once it has registered."""
        return wait_until(
            lambda: next((node.agent_pid for node in self.nodes() if node.connected), 0),
            within_seconds=WAIT_SECONDS,
            what="the agent registers",
        )

    def shut_down(self) -> None:
        with grpc.insecure_channel(self.record()["address"]) as channel:
            admin_pb2_grpc.AdminStub(channel).Shutdown(
                pb.ShutdownRequest(force=True, by="test"), timeout=ASK_SECONDS
            )

    def clean_up(self) -> None:
        """Whatever the test did, nothing of it is left."""
        for process in self._processes:
            process.kill()
            process.communicate()
        for record in (self.workdir / "nodes").glob("*.json"):
            identity = read_record(record)
            if identity is not None and is_alive(identity):
                os.killpg(identity.pid, signal.SIGKILL)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    made = Run(tmp_path / "run", job)
    yield made
    made.clean_up()


def test_a_controller_says_where_it_is_and_ends_all_on_shutdown(run: Run) -> None:
    began = time.time()
    process = run.serve("--job", str(run.job))
    record = run.record()
    assert (record["job"], record["pid"]) == ("tiny", process.pid)
    assert record["started_at"] >= began
    assert record["address"].startswith("127.0.0.1:")
    run.registered()
    run.shut_down()
    assert process.wait(WAIT_SECONDS) == 0
    assert living_nodes(run.workdir) == ()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nodes_outlive_their_controller_and_meet_the_next_one(run: Run, how: signal.Signals) -> None:
    """Same port, same agent, no second one: a restarted controller takes over where the last one left off."""
    first = run.serve("--job", str(run.job), "--set", "steps=1000000")
    address, agent = run.record()["address"], run.registered()
    first.send_signal(how)
    assert first.wait(WAIT_SECONDS) == (-signal.SIGKILL if how is signal.SIGKILL else 0)
    assert living_nodes(run.workdir) == ("node-1",)
    second = run.serve()
    assert run.record()["address"] == address
    assert run.registered() == agent
    run.shut_down()
    assert second.wait(WAIT_SECONDS) == 0
    assert living_nodes(run.workdir) == ()


def test_a_node_that_died_without_a_controller_is_known_at_once(run: Run) -> None:
    """Its lease need not run out first: the next controller of this machine sees that its process is gone."""
    two_nodes = ("--set", "cluster.nodes=2", "--set", "steps=1000000", "--set", "timeouts.lease_seconds=60")
    first = run.serve("--job", str(run.job), *two_nodes)
    wait_until(
        lambda: all(node.connected for node in run.nodes()), within_seconds=WAIT_SECONDS, what="both register"
    )
    first.kill()
    first.wait(WAIT_SECONDS)
    gone = read_record(run.workdir / "nodes" / "node-2.json")
    assert gone is not None
    os.killpg(gone.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(gone), within_seconds=WAIT_SECONDS, what="node-2 is dead")
    second = run.serve()
    shown = {node.id: (node.state, node.reason) for node in run.nodes()}
    assert shown["node-2"][0] == "suspect"
    assert "its process ended while there was no controller" in shown["node-2"][1]
    assert shown["node-1"][0] == "spare"
    run.shut_down()
    assert second.wait(WAIT_SECONDS) == 0


def test_a_second_controller_is_refused_while_the_first_lives(run: Run) -> None:
    first = run.serve("--job", str(run.job))
    code, said = run.refused()
    assert code == 4
    assert "another controller is in charge" in said
    assert str(first.pid) in said
    run.shut_down()
    assert first.wait(WAIT_SECONDS) == 0


def test_another_job_in_the_same_folder_is_refused(run: Run) -> None:
    first = run.serve("--job", str(run.job))
    run.registered()
    run.shut_down()
    assert first.wait(WAIT_SECONDS) == 0
    code, said = run.refused("--job", str(run.job), "--set", "name=other")
    assert code == 2
    assert "holds another job (tiny" in said
    assert "--resume" in said
    assert "Traceback" not in said


def test_a_taken_port_is_refused_by_name(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = run.refused("--job", str(run.job), "--listen", address)
    assert code == 2
    assert f"cannot listen on {address}: Address already in use" in said
    assert living_nodes(run.workdir) == ()


@pytest.mark.parametrize(
    "arguments,words",
    [
        ([], "holds no job yet"),
        (["--job", "/nowhere/job.yaml"], "/nowhere/job.yaml"),
        (["--set", "steps=3"], "--set"),
    ],
)
def test_bad_input_starts_nothing(run: Run, arguments: list[str], words: str) -> None:
    code, said = run.refused(*arguments)
    assert code == 2
    assert words in said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert not run.workdir.exists()


def test_a_job_that_cannot_run_is_refused_with_every_problem(run: Run) -> None:
    code, said = run.refused("--job", str(run.job), "--set", "steps=-1", "--set", "cluster.nodes=0")
    assert code == 2
    assert "steps" in said
    assert "cluster.nodes" in said
    assert not run.workdir.exists()


def test_a_file_that_is_no_database_is_a_store_error(run: Run) -> None:
    run.workdir.mkdir()
    (run.workdir / "controller.db").write_text(
        "this is not a database, but it is long enough to look at" * 20
    )
    code, said = run.refused("--job", str(run.job))
    assert code == 3
    assert "not a database" in said
    assert "Traceback" not in said


def test_a_database_of_a_newer_version_is_bad_input(run: Run) -> None:
    """Starting it again would not help: it is refused once, by name, with what to do."""
    run.workdir.mkdir()
    with closing(sqlite3.connect(run.workdir / "controller.db")) as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('9999')")
        database.commit()
    code, said = run.refused("--job", str(run.job))
    assert code == 2
    assert "has schema version 9999, which this version of understudy does not know" in said
    assert "Remedy: start it with the version of understudy that wrote it" in said
    assert living_nodes(run.workdir) == ()


def test_a_job_is_trained_and_everything_ends_by_itself(run: Run) -> None:
    process = run.start("--job", str(run.job), "--exit-when-done")
    _, said = process.communicate(timeout=3 * WAIT_SECONDS)
    assert process.returncode == 0, said
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert living_nodes(run.workdir) == ()
    assert "Traceback" not in said


def test_a_job_that_fails_shows_in_the_exit_code(run: Run) -> None:
    """The agent cannot be there within a tenth of a second."""
    process = run.start("--job", str(run.job), "--exit-when-done", "--set", "timeouts.start_seconds=0.1")
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1, said
    assert "0 of 1 node were ready after 0.1 s" in said
    assert living_nodes(run.workdir) == ()
