"""torchft's nightly: four replica groups of one process, a lighthouse, and a launcher that replaces the dead.

It is not a dependency of the project. `Torchft` installs it into a folder of its own, without its requirement of torch,
so that it runs on the very torch of the others; where that fails, it is `Unavailable` and the reason is printed.
A killed replica is started again after the first commit of the survivors. Next: `baseline_torchft.py`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import process_family
from benchmarks.baseline_torchft import COMMITS_FILE
from benchmarks.commit_log import Commit, CommitLog, NoProgress
from benchmarks.recovery_system import (
    RECOVER_SECONDS,
    START_SECONDS,
    Bout,
    Moments,
    Result,
    Unavailable,
    victims,
)

ROOT = Path(__file__).resolve().parents[1]
WORLD = 4
PACKAGE = "torchft-nightly"
REQUIREMENTS = ("opentelemetry-exporter-otlp-proto-http>=1.39", "opentelemetry-sdk>=1.39")
INSTALL_SECONDS = 180.0
IMPORT_SECONDS = 60.0
LIGHTHOUSE_SECONDS = 30.0
HEARTBEAT_MS = 1000
JOIN_MS = 1000
COLLECTIVE_SECONDS = 1.0
"""Below these, replicas were thrown out that were only slow."""
_REPLICAS = tuple(str(number) for number in range(WORLD))


class Torchft:
    """See the module's docstring."""

    setting = (
        f"SIGKILL of one of {WORLD} replica groups; time-outs as short as stayed stable: heartbeat "
        f"{HEARTBEAT_MS / 1000:g} s, collectives {COLLECTIVE_SECONDS:g} s (the README's 5 s each cost about 5 s more)"
    )

    def __init__(self, folder: Path) -> None:
        """`folder` is where it is installed to, at the first run."""
        self._folder = folder
        self._version = ""
        self._unavailable = ""

    @property
    def name(self) -> str:
        return "torchft nightly"

    def run(self, bout: Bout) -> Result:
        """See `System`."""
        self._install()
        (bout.folder / "job.json").write_text(json.dumps(bout.job))
        crew = _Crew(bout, self._folder)
        try:
            crew.start()
            return self._fail(bout, crew)
        finally:
            crew.end()

    def _fail(self, bout: Bout, crew: _Crew) -> Result:
        moments, result = Moments(bout), Result()
        log = CommitLog(bout.folder / COMMITS_FILE, crew.check)
        for number in victims(_REPLICAS, bout):
            step_seconds = moments.wait(log, members=WORLD)
            fail = partial(crew.kill, number)
            result.recoveries.append(log.strike(fail, step_seconds, RECOVER_SECONDS))
            crew.replace(number)
            replaced_at = time.time()
            whole = log.wait(partial(_is_whole, replaced_at), RECOVER_SECONDS, "step of all four")
            result.note("replaced_seconds", whole.time - replaced_at)
        return result

    def _install(self) -> None:
        """Raises Unavailable."""
        if self._unavailable:
            raise Unavailable(self._unavailable)
        if self._version:
            return
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--target", str(self._folder)]
        check = "import importlib.metadata as m, torchft; print(m.version('torchft-nightly'))"
        try:
            for words in ([*pip, *REQUIREMENTS], [*pip, "--no-deps", PACKAGE]):
                _call(words, INSTALL_SECONDS, {})
            self._version = _call(
                [sys.executable, "-c", check], IMPORT_SECONDS, {"PYTHONPATH": str(self._folder)}
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or "").strip().splitlines()
            self._unavailable = f"{PACKAGE} cannot be used here: {said[-1] if said else error}"
            raise Unavailable(self._unavailable) from error


def _is_whole(since: float, commit: Commit) -> bool:
    return commit.time > since and commit.members == WORLD


def _call(words: list[str], limit_seconds: float, environment: dict[str, str]) -> str:
    done = subprocess.run(
        words,
        check=True,
        capture_output=True,
        text=True,
        timeout=limit_seconds,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip()


class _Crew:
    """A lighthouse and its replicas as processes."""

    def __init__(self, bout: Bout, packages: Path) -> None:
        self._bout = bout
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self._lighthouse: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._replicas: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        words = ["lighthouse", "--heartbeat-ms", str(HEARTBEAT_MS), "--join-ms", str(JOIN_MS)]
        self._lighthouse = self._popen(words, "lighthouse.log", wants_output=True)
        assert self._lighthouse.stdout is not None
        if not select.select([self._lighthouse.stdout], [], [], LIGHTHOUSE_SECONDS)[0]:
            raise NoProgress(f"the lighthouse does not answer after {LIGHTHOUSE_SECONDS:.0f} s")
        # It names itself by host name; on this machine the loopback leads there too.
        said = self._lighthouse.stdout.readline().decode().strip()
        self._address = f"http://127.0.0.1:{said.rpartition(':')[2]}"
        for number in _REPLICAS:
            self.replace(number)

    def replace(self, number: str) -> None:
        """Start a replica in the place of a dead one."""
        words = ["replica", "--number", number, "--replicas", str(WORLD), "--lighthouse", self._address]
        words += ["--job", str(self._bout.folder / "job.json"), "--workdir", str(self._bout.folder)]
        words += ["--collective-seconds", str(COLLECTIVE_SECONDS)]
        self._replicas[number] = self._popen(words, f"replica-{number}.log")

    def kill(self, number: str) -> None:
        """The replica and nobody else."""
        process = self._replicas.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(process_family.END_SECONDS)

    def check(self) -> None:
        """Raises NoProgress when a replica that should live does not."""
        for number, process in self._replicas.items():
            if process.poll() is not None:
                log = (self._bout.folder / f"replica-{number}.log").read_text()[-2000:]
                raise NoProgress(f"replica {number} ended with {process.returncode}:\n{log}")

    def end(self) -> None:
        for process in (*self._replicas.values(), self._lighthouse):
            if process is not None:
                process.kill()  # there is nothing to save
        for process in (*self._replicas.values(), self._lighthouse):
            if process is not None:
                process.wait(START_SECONDS)
        if self._lighthouse is not None:
            for stream in (self._lighthouse.stdin, self._lighthouse.stdout):
                if stream is not None:
                    stream.close()

    def _popen(self, words: list[str], log: str, *, wants_output: bool = False) -> subprocess.Popen[bytes]:
        with (self._bout.folder / log).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.baseline_torchft", *words],
                stdin=subprocess.PIPE if wants_output else subprocess.DEVNULL,
                stdout=subprocess.PIPE if wants_output else output,
                stderr=output,
                env=self._environment,
            )
