"""The job of a command line: a job file, its overrides and its failures to inject, checked as a whole.

Next: `run.py` and `validate.py`, which use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.cli.errors import JobRefused
from orchestrator.cli.faults import parse_faults
from orchestrator.core import spec_rules
from orchestrator.core.spec import JobSpec
from orchestrator.jobfile import JobFileError, load_job_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the command line changes about a job."""

    overrides: Sequence[str] = ()
    faults: Sequence[str] = ()
    nodes: int | None = None
    spares: int | None = None
    steps: int | None = None

    @property
    def none(self) -> bool:
        return not (self.overrides or self.faults or self._short())

    def all_overrides(self) -> list[str]:
        """`--set` in its order, then the short forms, which therefore win."""
        return [*self.overrides, *self._short()]

    def words(self) -> list[str]:
        """The same overrides as they would be typed; failures to inject are left to the next run."""
        short = {"--nodes": self.nodes, "--spares": self.spares, "--steps": self.steps}
        words = [word for each in self.overrides for word in ("--set", each)]
        return words + [
            word for name, value in short.items() if value is not None for word in (name, str(value))
        ]

    def _short(self) -> list[str]:
        short = {"cluster.nodes": self.nodes, "cluster.spares": self.spares, "steps": self.steps}
        return [f"{name}={value}" for name, value in short.items() if value is not None]


def load(config: str, changes: Changes, *, runs_here: bool = True) -> JobSpec:
    """The job with everything filled in; `runs_here`: on this machine, so that what it reads must be there. Raises
    JobRefused with every problem that there is."""
    faults, problems = parse_faults(changes.faults)
    try:
        spec = load_job_file(config, changes.all_overrides(), runs_here=runs_here)
    except JobFileError as error:
        raise JobRefused(config, (*error.problems, *problems)) from error
    whole = replace(spec, faults=(*spec.faults, *faults))
    found = (*spec_rules.problems(whole), *problems)
    if found:
        raise JobRefused(config, found)
    return whole
