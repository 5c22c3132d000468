"""The undisturbed run that disturbed ones are compared with: one node, nothing failing, as long as it is needed.

One for each job of an invocation: in float64 the trajectory does not depend on the number of nodes. It is made longer
by resuming it, which follows the same trajectory (that is law L2 as well).
"""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from chaos import ledger
from chaos.ledger import Committed
from chaos.waiting import NeverCame, wait_for

AHEAD_STEPS = 60
"""Made in one go beyond what is asked for, since every start costs seconds."""
STEP_SECONDS = 5.0
"""Far more than a step takes."""
START_SECONDS = 120.0
END_SECONDS = 60.0


class Reference:
    """The trajectory of a job."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self._workdir = folder / "reference"
        self._output = folder / "reference.out"
        self._job = copy.deepcopy(job)
        self._job["cluster"] = {**job["cluster"], "nodes": 1, "spares": 0, "replicas": 1}
        self._job.pop("pipeline", None)

    def upto(self, step: int) -> list[Committed]:
        """The committed steps, at least so many. Raises NeverCame."""
        if ledger.last_step(self._workdir) < step:
            self._go_on_to(min(step + AHEAD_STEPS, int(self._job["steps"])))
        return ledger.read(self._workdir / ledger.LEDGER)

    def _go_on_to(self, step: int) -> None:
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", "--plain"]
        if self._workdir.exists():
            command += ["--resume", str(self._workdir)]
        else:
            self._workdir.parent.mkdir(parents=True, exist_ok=True)
            job_file = self._workdir.with_suffix(".yaml")
            job_file.write_text(yaml.safe_dump(self._job, sort_keys=False))
            command += [str(job_file), "--workdir", str(self._workdir)]
        limit = START_SECONDS + STEP_SECONDS * (step - ledger.last_step(self._workdir))
        with self._output.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                wait_for(
                    lambda: process.poll() is not None or ledger.last_step(self._workdir) >= step,
                    seconds=limit,
                    what=f"step {step} of the undisturbed run",
                )
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                process.wait(END_SECONDS)
            except (NeverCame, subprocess.TimeoutExpired) as error:
                raise NeverCame(
                    f"the undisturbed run does not get to step {step} ({error}); its words: {self._output}"
                ) from error
            finally:
                _end(process)
        if ledger.last_step(self._workdir) < step:
            raise NeverCame(f"the undisturbed run ended early; its words: {self._output}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """At once, if it still lives: the second Ctrl-C ends its nodes too."""
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        process.kill()
