"""`understudy run` with a played controller: everything but the controller's program is real.

Arguments: a work directory that has a file `play`, then flags (`--plain`, `--resume`, `--summary FILE`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.cli import run, session
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.errors import CliError
from orchestrator.core.spec import DataSpec, JobSpec

PROGRAM = (sys.executable, "-m", "tests.integration.played_controller")


def main() -> int:
    """Returns what `understudy run` would end with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--summary", type=Path)
    said = parser.parse_args()
    spec = JobSpec(name="played", data=DataSpec(path="stdlib"), steps=100)
    workdirs.prepare(said.workdir, spec)
    plan = session.Plan(workdir=said.workdir, resume=said.resume, program=PROGRAM, longest_pause_seconds=0.1)
    try:
        return run.perform(plan, spec, job_words=("job.yaml",), summary=said.summary, plain=said.plain)
    except CliError as error:
        print(error.text(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
