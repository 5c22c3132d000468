"""One run of `understudy run` under our hands: started, watched, signalled, told to fail, and ended.

The observer is the admin API, as a person would use it; what must work while no controller answers (pids, the ledger)
is read from the work directory. Which fault comes when is not known here. Next: `strikes.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from chaos import ledger, processes
from chaos.databases import Database
from chaos.network import Network
from chaos.waiting import NeverCame, wait_for
from orchestrator.cli import rows
from orchestrator.cli.connection import Admin, find_controller
from orchestrator.cli.errors import CliError
from orchestrator.cli.watch import Watch
from orchestrator.core.spec import FaultSpec
from protos import admin_pb2

PROGRAM = (sys.executable, "-m", "orchestrator.cli.main")
START_SECONDS = 120.0
END_SECONDS = 90.0
HASTY_END_SECONDS = 20.0
VIEW_SECONDS = 0.1
BY = "chaos"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how a run is played."""

    workdir: Path
    job: dict[str, Any]
    database: Database
    network: Network | None
    mark: str
    racks: tuple[tuple[str, ...], ...] = ()
    """The nodes of each, where nodes stand in racks."""


class Stage:
    """A run. Use as a context: what still lives at the end is ended, whatever happens."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.workdir = setting.workdir
        self.output = setting.workdir.with_suffix(".out")
        self.summary_file = setting.workdir.with_suffix(".summary.json")
        self._orders = setting.workdir / "faults" / "orders"
        self._orders.mkdir(parents=True)
        # Nodes in namespaces reach the controller as other machines would: it asks who they are.
        self._token, self._token_file = secrets.token_hex(32), setting.workdir.with_suffix(".token")
        self._token_file.write_text(self._token)
        self._token_file.chmod(0o600)
        if setting.network is not None:
            setting.network.begin(setting.workdir)
        self.process = self._start()
        self._kept = ExitStack()
        self._admin: Admin | None = None
        self._watch: Watch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        for _ in range(2):  # once asks for an orderly end, twice ends everything
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(HASTY_END_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        if self.process.poll() is None:
            self.process.kill()
        self._let_go()

    # ---- what is seen ----

    def view(self) -> admin_pb2.JobView | None:
        """The newest view; None before the first, and while no controller answers."""
        if self._watch is None:
            self._connect()
            return None
        sighting = self._watch.look()
        return sighting.view if sighting.away_since is None else None

    def seen(self) -> admin_pb2.JobView:
        """A view, waited for. Raises NeverCame."""
        view = self.expect(self.view, what="an answer of the controller")
        assert view is not None
        return view

    def step(self) -> int:
        """The newest committed step."""
        return ledger.last_step(self.workdir)

    def expect(self, condition: Callable[[], Answer], *, what: str, seconds: float = START_SECONDS) -> Answer:
        """Wait for something that a living run does. Raises NeverCame, also when the run ends first."""

        def look() -> Answer:
            if self.process.poll() is not None:
                raise NeverCame(
                    f"{what}: the run ended with exit code {self.process.returncode}:\n{self.last_words()}"
                )
            return condition()

        return wait_for(look, seconds=seconds, what=what)

    def reach(self, step: int, *, seconds: float = START_SECONDS) -> None:
        self.expect(lambda: self.step() >= step, what=f"step {step}", seconds=seconds)

    def incidents(self) -> list[rows.Row]:
        """All incidents so far, oldest first."""
        return [rows.incident(each) for each in self.seen().incidents]

    def nodes(self, *states: str) -> list[str]:
        """Nodes in one of the states, in their order."""
        return [each.id for each in self.seen().nodes if each.state in states]

    def holders(self) -> list[frozenset[str]]:
        """The nodes that hold each expert."""
        return [
            frozenset(each.rpartition("/")[0] for each in (expert.primary, *expert.backups) if each)
            for expert in self.seen().experts
        ]

    def last_words(self, length: int = 3000) -> str:
        return self.output.read_text(errors="replace")[-length:]

    # ---- what is done ----

    def ask(self, question: Callable[[Admin], Answer]) -> Answer:
        """Ask the controller, again while it is away. Raises NeverCame."""

        def attempt() -> list[Answer]:
            self.view()
            if self._admin is None:
                return []
            try:
                return [question(self._admin)]
            except CliError:
                return []

        return self.expect(attempt, what="an answer of the controller")[0]

    def signal_node(self, node: str, number: signal.Signals) -> None:
        """The agent first, then its trainers."""
        processes.send(processes.of_node(self.workdir, node), number)

    def controller(self) -> int:
        """The pid of the newest controller."""
        return int(json.loads((self.workdir / "controller.json").read_text())["pid"])

    def order(self, name: str, fault: FaultSpec) -> None:
        """Have a trainer fail by itself in the next such phase."""
        scratch = self._orders / f"{name}.new"
        scratch.write_text(json.dumps(asdict(fault)))
        scratch.replace(self._orders / f"{name}.json")

    def struck(self, name: str) -> bool:
        """Whether the order has been carried out."""
        return (self._orders.parent / f"fault-{name}").exists()

    def retract(self, name: str) -> None:
        """An order that was not carried out will not be."""
        (self._orders.parent / f"fault-{name}").touch()

    def stop(self) -> int:
        """Ctrl-C, once; gives the exit code. Raises NeverCame."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise NeverCame(f"an orderly end: not within {END_SECONDS:g} s:\n{self.last_words()}") from None

    # ---- inside ----

    def _start(self) -> subprocess.Popen[bytes]:
        setting = self.setting
        job_file = setting.workdir.with_suffix(".yaml")
        job_file.write_text(yaml.safe_dump(setting.job, sort_keys=False))
        command = [*PROGRAM, "run", str(job_file), "--workdir", str(setting.workdir)]
        command += ["--plain", "--summary", str(self.summary_file), "--token-file", str(self._token_file)]
        for number, nodes in enumerate(setting.racks, start=1):
            command += ["--label", f"{','.join(nodes)}:rack=r{number}"]
        environment = {**os.environ, processes.MARK: setting.mark, "GRPC_VERBOSITY": "NONE"}
        if setting.database.url:
            environment["UNDERSTUDY_DATABASE"] = setting.database.url
        if setting.network is not None:
            command += ["--listen", setting.network.listen]
            environment["UNDERSTUDY_AGENT_PREFIX"] = setting.network.prefix
        with self.output.open("wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            return subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def _connect(self) -> None:
        """Follow the controller as soon as there is one."""
        try:
            target = find_controller(None, self.workdir, None)
        except CliError:
            return
        self._admin = self._kept.enter_context(Admin(target, self._token))
        self._watch = Watch(self._admin, VIEW_SECONDS)
        self._kept.callback(self._watch.close)

    def _let_go(self) -> None:
        self._kept.close()


def pause(seconds: float) -> None:
    """Let a run go on: a drawn time, not a wait for anything."""
    time.sleep(seconds)


def shared(holders: Sequence[frozenset[str]], victims: frozenset[str]) -> bool:
    """Whether the victims hold some expert all among themselves."""
    return any(each and each <= victims for each in holders)
