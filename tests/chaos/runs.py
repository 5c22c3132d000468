"""Whole runs of a tiny job through the command line, with real processes, real signals and the ledger they leave.

`Run` starts `understudy run` in a workdir, waits for what the ledger and the CLI show, sends signals, and reads the
results. Nothing is replaced. What must not live here: the claims (the tests make them).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from click.testing import CliRunner

from chaos.job import TINY
from orchestrator.cli.main import understudy
from tests.waiting import wait_until

UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
SAMPLES_PER_STEP = TINY["batch"]["microbatches"] * TINY["batch"]["microbatch_size"]
ENDLESS = 1_000_000
"""Steps of a run that is stopped when the test has seen enough: however slow a command is, the run is still there."""
RUN_SECONDS = 240.0
"""Bound of one run; a quiet machine needs a tenth of it."""


class Run:
    """One job in one workdir. Use as a context: what still lives at the end is ended."""

    def __init__(self, workdir: Path, *arguments: str, job: dict[str, Any] | Path | None = None) -> None:
        self.workdir = workdir
        self.summary_path = workdir.with_suffix(".summary.json")
        self._output = workdir.with_suffix(".out")
        if job is None:
            command = [UNDERSTUDY, "run", "--resume", str(workdir)]
        elif isinstance(job, Path):
            command = [UNDERSTUDY, "run", str(job), "--workdir", str(workdir)]
        else:
            job_file = workdir.with_suffix(".yaml")
            job_file.write_text(yaml.safe_dump(job))
            command = [UNDERSTUDY, "run", str(job_file), "--workdir", str(workdir)]
        command += ["--plain", "--summary", str(self.summary_path), *arguments]
        self._log = self._output.open("w")
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        for _ in range(2):  # once asks for an orderly stop, twice ends everything
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    continue
        if self.process.poll() is None:
            self.process.kill()
        self._log.close()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def finish(self, exit_code: int = 0) -> dict[str, Any]:
        """Wait for the end; gives the summary."""
        try:
            code = self.process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end; its output:\n{self.output[-6000:]}") from None
        assert code == exit_code, f"exit code {code}; output:\n{self.output[-6000:]}"
        summary: dict[str, Any] = json.loads(self.summary_path.read_text())
        return summary

    def stop(self) -> dict[str, Any]:
        """Ctrl-C, once."""
        self.process.send_signal(signal.SIGINT)
        return self.finish()

    def ledger(self) -> list[dict[str, Any]]:
        """The committed steps, whole lines only."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return []
        return [
            json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]

    def reach(self, step: int) -> None:
        """Wait until `step` is in the ledger."""

        def there() -> bool:
            assert self.process.poll() is None, f"the run ended early:\n{self.output[-6000:]}"
            lines = self.ledger()
            return bool(lines) and lines[-1]["step"] >= step

        wait_until(there, within_seconds=RUN_SECONDS, what=f"step {step}", every_seconds=0.05)

    def ask(self, *command: str) -> Any:
        """Another `understudy` command about this run, as JSON; in this process, since waits ask again and again."""
        arguments = [*command, "--workdir", str(self.workdir), "-o", "json"]
        answered = CliRunner().invoke(understudy, arguments, catch_exceptions=False, standalone_mode=False)
        return json.loads(answered.stdout)

    def tell(self, *command: str) -> str:
        """Another `understudy` command about this run, as it prints; a process, as people start it."""
        done = subprocess.run(
            [UNDERSTUDY, *command, "--workdir", str(self.workdir)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(node for node in self.ask("nodes") if node["id"] == name)
        return found

    def signal_node(self, name: str, number: signal.Signals) -> tuple[int, ...]:
        """Signal the agent of a node and its trainers; gives their pids."""
        node = self.node(name)
        pids = (node["agent_pid"], *node["trainer_pids"])
        for pid in pids:
            os.kill(pid, number)
        return pids

    def controller_pid(self) -> int:
        return int(json.loads((self.workdir / "controller.json").read_text())["pid"])


def fault(step: int, node: str, phase: str = "forward", kind: str = "sigkill", target: str = "node") -> str:
    """A `--fail` argument."""
    return f"--fail=step={step},kind={kind},node={node},phase={phase},target={target}"


def assert_every_sample_once(
    ledger: Sequence[dict[str, Any]], steps: int, samples_per_step: int = SAMPLES_PER_STEP
) -> None:
    """L1: each step is there once, with each of its sample ids once."""
    assert [line["step"] for line in ledger] == list(range(1, steps + 1))
    for line in ledger:
        first = (line["step"] - 1) * samples_per_step
        assert sorted(line["sample_ids"]) == list(range(first, first + samples_per_step)), line["step"]


def largest_difference(ledger: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> float:
    """Of the losses, relative, step by step over the length of `ledger`."""
    assert len(reference) >= len(ledger) > 0
    pairs = [
        (float(mine["loss"]), float(other["loss"])) for mine, other in zip(ledger, reference, strict=False)
    ]
    return max(abs(mine - other) / other for mine, other in pairs)
