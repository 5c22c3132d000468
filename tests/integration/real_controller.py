"""A real controller process on a work directory, with the nodes that it starts, and the CLI to talk to it with."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.cluster.identity import is_alive, read_record
from tests.waiting import wait_until

WAIT_SECONDS = 30.0
JOB = """
name: tiny
steps: 1000000
data: {path: stdlib}
cluster: {nodes: 1, spares: 0, replicas: 1}
batch: {microbatches: 1, microbatch_size: 1}
model: {width: 16, layers: 1, heads: 2, kv_heads: 1, experts: 2, expert_width: 16, sequence_length: 16}
timeouts: {lease_seconds: 15, hang_seconds: 15}
"""
"""Patient, so that a machine that is busy with other tests kills no node."""


def understudy(*arguments: str) -> tuple[object, str, str]:
    """Exit code, output and errors of the program, in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(arguments)
    code = 0 if ended.value.code is None else ended.value.code
    return code, out.getvalue(), errors.getvalue()


class Controller:
    """A controller process on a work directory, and what it started."""

    def __init__(self, folder: Path) -> None:
        self.workdir = folder / "run"
        self._job = folder / "job.yaml"
        self._job.write_text(JOB)
        self._process: subprocess.Popen[str] | None = None

    def command(self, *arguments: str) -> list[str]:
        begin = [sys.executable, "-m", "orchestrator", "--workdir", str(self.workdir)]
        return [*begin, "--job", str(self._job), *arguments]

    def serve(self, *arguments: str) -> str:
        """Its address, once it serves."""
        log = self.workdir.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(self.command(*arguments), stderr=output, text=True)
        self._process = process
        record = self.workdir / "controller.json"
        wait_until(
            lambda: record.exists() or process.poll() is not None,
            within_seconds=WAIT_SECONDS,
            what="the controller serves",
        )
        assert process.poll() is None, log.read_text()
        return str(json.loads(record.read_text())["address"])

    def refused(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        return done.returncode, done.stderr

    def clean_up(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)
        for record in (self.workdir / "nodes").glob("*.json"):
            identity = read_record(record)
            if identity is not None and is_alive(identity):
                os.killpg(identity.pid, signal.SIGKILL)
