"""The controller as a process of this launcher: its command line, its start, its deaths, its end.

It gets a session of its own, so that a Ctrl-C at the terminal reaches the launcher only. A controller that dies by a
signal, or whose database failed (exit code 3), is started again on the same port, a bounded number of times; training
goes on meanwhile. What a controller says about its own end is in its log, and is what the user gets to read. Next:
`session.py`, which decides when.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli import processes
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.errors import CliError, ExitCode

PROGRAM = (sys.executable, "-m", "orchestrator")
RESTARTS = 8
RESTARTS_SECONDS = 600.0
"""At most so many restarts in so much time."""
LONGEST_PAUSE_SECONDS = 30.0
"""Before a restart after a database that keeps failing; all pauses together stay below `timeouts.orphan_seconds`."""
START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_DATABASE_FAILED = 3
_LEASE_HELD = 4
_LOG_LINES = 12
_LOG_BYTES = 16_384
_OURS_ALONE = (
    "UNDERSTUDY_TOKEN",
    "UNDERSTUDY_TOKEN_FILE",
    "UNDERSTUDY_TLS_CA",
    "UNDERSTUDY_TLS_CERT",
    "UNDERSTUDY_TLS_KEY",
)
"""What tells a controller who we are must not become what the controller is: it gets its own on its command line."""
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a controller ended: exit code, or the signal that ended it, or neither when it was not our child."""

    code: int | None

    @property
    def of_its_database(self) -> bool:
        """The disk is full, the server is away: things that pass, but not at once."""
        return self.code == _DATABASE_FAILED

    @property
    def restartable(self) -> bool:
        """Nothing about the job caused it."""
        return self.code is None or self.code < 0 or self.of_its_database

    def __str__(self) -> str:
        if self.code is None:
            return "died"
        if self.of_its_database:
            return "ended with exit code 3 (its database or its ledger failed)"
        if self.code == _LEASE_HELD:
            return "ended with exit code 4 (another controller holds the lease of its database)"
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        try:
            return f"was ended by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"was ended by signal {-self.code}"


class RestartBudget:
    """At most `limit` restarts in any `window_seconds`."""

    def __init__(self, limit: int = RESTARTS, window_seconds: float = RESTARTS_SECONDS) -> None:
        self.limit = limit
        self._window_seconds = window_seconds
        self._taken: deque[float] = deque(maxlen=limit)

    def take(self, at: float) -> int | None:
        """The number of this restart in the window, from 1; None when the budget is spent."""
        while self._taken and at - self._taken[0] >= self._window_seconds:
            self._taken.popleft()
        if len(self._taken) >= self.limit:
            return None
        self._taken.append(at)
        return len(self._taken)


def pause_seconds(failures: int, longest_seconds: float = LONGEST_PAUSE_SECONDS) -> float:
    """To wait before a restart, after so many failures of the database in a row: none at first, then twice as long."""
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), longest_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """Why a controller ended, as it said itself."""

    message: str
    remedy: str
    """Empty where the message has it."""


class Controller:
    """A controller process in a work directory: our child, or one that we found alive there."""

    def __init__(
        self,
        directory: Path,
        token_file: Path | None,
        program: tuple[str, ...] = PROGRAM,
        *,
        tls_folder: Path | None = None,
        labels: tuple[str, ...] = (),
    ) -> None:
        self._directory = directory
        self._program = program
        self._token_file = token_file
        self._tls_folder = tls_folder
        self._labels = labels
        self._child: subprocess.Popen[bytes] | None = None
        self._found: int | None = None
        self._log_begins = 0
        """Where in the log the newest process began to write."""

    @property
    def pid(self) -> int | None:
        """Of the newest process, alive or not."""
        return self._child.pid if self._child else self._found

    def adopt(self) -> workdirs.ControllerRecord | None:
        """Take over a controller that lives in the work directory already; None when there is none."""
        record = workdirs.read_controller(self._directory)
        if record is None or not processes.is_controller(record.pid, self._directory):
            return None
        self._child, self._found = None, record.pid
        return record

    def start(self, *, listen: str, resume: bool) -> None:
        """Start a process. Raises CliError when not even that works."""
        command = [*self._program, "--workdir", str(self._directory)]
        command += ["--job", str(self._directory / workdirs.JOB_FILE), "--listen", listen]
        command += ["--resume"] if resume else []
        command += ["--token-file", str(self._token_file.absolute())] if self._token_file else []
        command += [word for label in self._labels for word in ("--label", label)]
        command += _tls_options(self._tls_folder) if self._tls_folder else []
        log = self._directory / workdirs.CONTROLLER_LOG
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._log_begins = output.tell()
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=_environment(),
                )
        except OSError as error:
            raise CliError(
                f"the controller could not be started: {error}", exit_code=ExitCode.FAILED
            ) from error
        self._found = None

    def death(self) -> Death | None:
        """None while it lives."""
        if self._child is not None:
            code = self._child.poll()
            return None if code is None else Death(code=code)
        assert self._found is not None, "no controller was started or adopted"
        return None if processes.is_controller(self._found, self._directory) else Death(code=None)

    def wait_for_address(self, tick: Callable[[float], None], timeout_seconds: float = START_SECONDS) -> str:
        """Where the process listens, once it says so. `tick` is called with the seconds waited, and may raise.

        Raises CliError when it ends or does not say so in time.
        """
        began = time.monotonic()
        while True:
            record = workdirs.read_controller(self._directory)
            if record is not None and record.pid == self.pid:
                return record.address
            death = self.death()
            if death is not None:
                code = ExitCode.BAD_INPUT if death.code == ExitCode.BAD_INPUT else ExitCode.FAILED
                raise self._failure(f"the controller {death} before it could listen", code)
            waited = time.monotonic() - began
            if waited > timeout_seconds:
                raise self._failure(f"the controller does not listen after {timeout_seconds:.0f} s")
            tick(waited)
            time.sleep(_POLL_SECONDS)

    def _failure(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> CliError:
        said = self.last_words()
        if said is not None:
            return CliError(said.message, remedy=said.remedy, exit_code=exit_code)
        return CliError(f"{message}\n{self.quoted()}", remedy=f"read {self._log}", exit_code=exit_code)

    @property
    def _log(self) -> Path:
        return self._directory / workdirs.CONTROLLER_LOG

    def quoted(self) -> str:
        """The end of what the newest process logged, indented."""
        return last_lines(self._log, begins=self._log_begins)

    def last_words(self) -> LastWords | None:
        """What the newest process said about its end; None when it could not say anything."""
        return last_words(self._log, begins=self._log_begins)

    def wait_for_death(self, timeout_seconds: float, pressed: Callable[[], bool] = lambda: False) -> bool:
        """True when it has ended; False after the time-out, or when `pressed` says that nobody wants to wait."""
        deadline = time.monotonic() + timeout_seconds
        while self.death() is None:
            if time.monotonic() > deadline or pressed():
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def kill(self) -> None:
        """End the process for good; its nodes are not touched."""
        if self.death() is None and self.pid is not None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.wait_for_death(timeout_seconds=5.0)


def last_lines(path: Path, count: int = _LOG_LINES, *, begins: int = 0) -> str:
    """The end of a log, from a position in it on, indented, for an error message."""
    try:
        lines = _tail(path, begins)[-count:]
    except OSError:
        return f"  ({path} cannot be read)"
    return "\n".join(f"  | {each}" for each in lines) or "  (its log is empty)"


def last_words(path: Path, *, begins: int = 0) -> LastWords | None:
    """The error that ended a controller: its last line of `error:` with what follows, or its last critical one."""
    try:
        lines = _tail(path, begins)
    except OSError:
        return None
    for number in range(len(lines) - 1, -1, -1):
        _, critical, logged = lines[number].partition(" CRITICAL ")
        if lines[number].startswith("error: "):
            said = "\n".join(lines[number:]).removeprefix("error: ")
        elif critical:
            said = logged.partition(": ")[2]
        else:
            continue
        message, _, remedy = said.partition(" Remedy: ")
        return LastWords(message=message, remedy=remedy)
    return None


def _tail(path: Path, begins: int) -> list[str]:
    with path.open("rb") as stream:
        stream.seek(max(begins, path.stat().st_size - _LOG_BYTES))
        return stream.read().decode("utf-8", errors="replace").splitlines()


def _tls_options(folder: Path) -> list[str]:
    """The files of `certificates.of_a_run`."""
    files = {"--tls-ca": "ca.crt", "--tls-cert": "server.crt", "--tls-key": "server.key"}
    files |= {"--agent-tls-cert": "agent.crt", "--agent-tls-key": "agent.key"}
    return [word for option, name in files.items() for word in (option, str(folder / name))]


def _environment() -> dict[str, str]:
    """Ours, with the source tree of this very CLI first: launcher and controller are one version."""
    environment = dict(os.environ)
    paths = [str(_SOURCE_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["PYTHONUNBUFFERED"] = "1"
    for name in _OURS_ALONE:
        environment.pop(name, None)
    return environment
