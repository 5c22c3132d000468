"""What goes wrong for the person at the keyboard: one message, one remedy, one exit code, no traceback.

Raised anywhere in the CLI, printed once in `main`. A bug is not a `CliError` and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from orchestrator.core.problems import Problem


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    """The job failed, or the controller refused or could not be reached."""
    BAD_INPUT = 2
    """Nothing was started: the command line, the job file or the work directory has to change."""
    INTERRUPTED = 130
    """Ended at once on request."""


class CliError(Exception):
    """`message` says what is wrong, `remedy` what to do about it."""

    def __init__(self, message: str, *, remedy: str = "", exit_code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code

    def text(self) -> str:
        """Both lines, as they are printed."""
        return f"error: {self.message}" + (f"\nremedy: {self.remedy}" if self.remedy else "")


class JobRefused(CliError):
    """A job that cannot run: every problem at once."""

    def __init__(self, config: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        many = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{config}: {many}; nothing was started")

    def text(self) -> str:
        lines = [super().text()]
        for problem in self.problems:
            shown = "" if problem.value is None else f" = {problem.value}"
            lines.append(f"  {problem.field}{shown}")
            lines.append(f"    remedy: {problem.remedy}")
        return "\n".join(lines)
