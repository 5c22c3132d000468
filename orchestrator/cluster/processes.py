"""The Cluster port on this machine: each node is an agent process in a session of its own, beside the controller.

Agents outlive a controller that dies: what was started is written down (`DIR/nodes/NODE.json`), and a later controller
recognises it by pid, start time and boot. Calls return at once; one thread starts, stops and reaps. What came of it
arrives over the agents' streams, or does not. Next: `identity.py`, who a pid is; `worker/settings.py`.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from orchestrator.cluster import labels
from orchestrator.cluster.devices import ALL_DEVICES, DeviceShares
from orchestrator.cluster.identity import (
    ProcessIdentity,
    find_process,
    is_alive,
    is_stopped,
    read_record,
    record_of,
    write_record,
)
from orchestrator.cluster.labels import NodeLabel
from orchestrator.core.ids import NodeId
from orchestrator.settings import SECRETS_VARIABLES

log = logging.getLogger(__name__)

AGENT_MODULE = "worker"
_TLS_OPTIONS = ("--tls-ca", "--tls-cert", "--tls-key")
_SOURCE_ROOT = Path(__file__).resolve().parents[2]
"""Where both programs are found when they are run from a checkout that is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """Every limit of this adapter, by name."""

    grace_seconds: float = 10.0
    """From SIGTERM to SIGKILL."""
    poll_seconds: float = 0.02
    """How often a process that was asked to end is looked at."""
    idle_poll_seconds: float = 0.5
    """How often ended agents are reaped while nothing else is to do."""
    kill_seconds: float = 5.0
    """From SIGKILL until a process that is still there is reported (stuck in the kernel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCommand:
    """How an agent is started: everything but its name."""

    controller: str
    """HOST:PORT that the agent connects to."""
    workdir: Path
    labels: tuple[NodeLabel, ...] = ()
    token_file: str = ""
    tls: tuple[str, str, str] | None = None
    """Files of CA, certificate and key; the last two may be empty."""
    program: tuple[str, ...] = (sys.executable, "-m", AGENT_MODULE, "agent")
    prefix: tuple[str, ...] = ()
    """Words before the command, with {node} for the node's name: a program that becomes the agent by `exec`, so that
    its pid is the agent's, such as `ip netns exec {node}`."""

    def line(self, node: NodeId) -> list[str]:
        """The full command line of a node's agent, without the prefix."""
        words = [
            *self.program,
            "--node",
            node,
            "--controller",
            self.controller,
            "--workdir",
            str(self.workdir),
        ]
        for key, value in labels.of(self.labels, node):
            words += ["--label", f"{key}={value}"]
        if self.token_file:
            words += ["--token-file", self.token_file]
        for option, file in zip(_TLS_OPTIONS, self.tls or (), strict=False):
            words += [option, file] if file else []
        return words

    def started_by(self, node: NodeId) -> list[str]:
        """What is started for a node: the prefix, then its agent."""
        return [*(word.replace("{node}", node) for word in self.prefix), *self.line(node)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    node: NodeId
    in_place_of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Close:
    pass


_Request: TypeAlias = _Start | _Stop | _Close


@dataclass(slots=True, kw_only=True)
class _Ending:
    """A process that was asked to end, and what comes next for its node."""

    identity: ProcessIdentity
    kill_at: float
    killed_at: float | None = None
    start_again: bool = False


class _Agent(subprocess.Popen[bytes]):
    """The handle of a child that is meant to outlive it, where Popen would complain when it is let go."""

    def __del__(self) -> None:
        """Nothing: whoever comes next finds the process by its record."""


class ProcessCluster:
    """Agents as local processes. All methods may be called from any thread; none waits for a process."""

    def __init__(
        self,
        command: AgentCommand,
        limits: ProcessLimits | None = None,
        devices: DeviceShares = ALL_DEVICES,
    ) -> None:
        self._command = command
        self._devices = devices
        self._limits = limits or ProcessLimits()
        self._records = command.workdir / "nodes"
        self._logs = command.workdir / "logs"
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._children: dict[NodeId, _Agent] = {}
        self._endings: dict[NodeId, _Ending] = {}
        self._settled = threading.Condition()
        self._outstanding = 0
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self._thread.start()

    # ---- the Cluster port ----

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        """Bring a node up unless its agent lives already; one with the pid `in_place_of` is ended first."""
        self._ask(_Start(node=node, in_place_of=in_place_of))

    def stop_node(self, node: NodeId, reason: str) -> None:
        """End a node's agent and its trainers: SIGTERM, a bounded wait, SIGKILL; at once when it is stopped."""
        self._ask(_Stop(node=node, reason=reason))

    # ---- for the composition root ----

    def living(self) -> tuple[NodeId, ...]:
        """Nodes whose recorded agent is alive, whoever started it, in order."""
        return living_nodes(self._command.workdir)

    def stop_all(self, reason: str, timeout_seconds: float) -> bool:
        """End every living node; False when one is still there after `timeout_seconds`. Waits: not for the loop."""
        for node in self.living():
            self.stop_node(node, reason)
        return self.settle(timeout_seconds)

    def settle(self, timeout_seconds: float) -> bool:
        """Wait until every request so far has been carried out."""
        with self._settled:
            return self._settled.wait_for(lambda: not (self._outstanding or self._busy), timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """End the thread, not the nodes."""
        self._ask(_Close())
        self._thread.join(timeout_seconds)

    # ---- the thread ----

    def _ask(self, request: _Request) -> None:
        with self._settled:
            self._outstanding += 1
        self._requests.put(request)

    def _run(self) -> None:
        closing = False
        while not closing:
            wait = self._limits.poll_seconds if self._endings else self._limits.idle_poll_seconds
            try:
                request = self._requests.get(timeout=wait)
            except queue.Empty:
                request = None
            self._reap()
            if request is not None:
                closing = isinstance(request, _Close)
                self._carry_out(request)
            self._press_on()
            with self._settled:
                self._outstanding -= request is not None
                self._busy = bool(self._endings)
                self._settled.notify_all()

    def _carry_out(self, request: _Request) -> None:
        try:
            match request:
                case _Start():
                    self._start(request.node, request.in_place_of)
                case _Stop():
                    self._stop(request.node, request.reason)
                case _Close():
                    pass
        except OSError as error:
            # The core learns of it by the registration that does not come, or by the node that stays.
            log.error("%s: %s", request, error)

    def _start(self, node: NodeId, in_place_of: int) -> None:
        identity = self._known(node)
        if identity is not None and identity.pid == in_place_of and node not in self._endings:
            self._stop(node, "it was given up, and another agent takes its place")
        ending = self._endings.get(node)
        if ending is not None:
            ending.start_again = True
        elif identity is not None:
            log.info("node %s runs already (pid %d)", node, identity.pid)
        else:
            self._spawn(node)

    def _known(self, node: NodeId) -> ProcessIdentity | None:
        """The living agent of a node: as written down, or found by its command line when a controller died between
        starting it and writing that down."""
        identity = read_record(self._record(node))
        if identity is not None and is_alive(identity):
            return identity
        found = find_process(self._command.line(node)[len(self._command.program) :], ignoring="--controller")
        if found is not None:
            write_record(self._record(node), found)
        return found

    def _spawn(self, node: NodeId) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{node}.log").open("ab") as output:
            child = _Agent(
                self._command.started_by(node),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment() | self._devices.environment(node),
            )
        self._children[node] = child
        write_record(self._record(node), record_of(child.pid))
        log.info("node %s started (pid %d)", node, child.pid)

    def _stop(self, node: NodeId, reason: str) -> None:
        ending = self._endings.get(node)
        if ending is not None:
            ending.start_again = False
            return
        identity = self._known(node)
        if identity is None:
            self._forget(node)
            return
        log.info("node %s is stopped (pid %d): %s", node, identity.pid, reason)
        self._endings[node] = _Ending(
            identity=identity, kill_at=time.monotonic() + self._limits.grace_seconds
        )
        _signal_group(identity, signal.SIGTERM)

    def _press_on(self) -> None:
        """Look at every process that was asked to end: gone, out of grace, or beyond help."""
        now = time.monotonic()
        for node, ending in sorted(self._endings.items()):
            if not is_alive(ending.identity):
                self._ended(node, ending)
            elif ending.killed_at is None and (now >= ending.kill_at or is_stopped(ending.identity)):
                _signal_group(ending.identity, signal.SIGKILL)
                ending.killed_at = now
            elif ending.killed_at is not None and now >= ending.killed_at + self._limits.kill_seconds:
                log.error("node %s: pid %d does not even die of SIGKILL", node, ending.identity.pid)
                self._ended(node, ending)

    def _ended(self, node: NodeId, ending: _Ending) -> None:
        del self._endings[node]
        # The agent led a session: what it left behind in its group goes with it.
        _signal_group(ending.identity, signal.SIGKILL)
        self._forget(node)
        if ending.start_again:
            self._carry_out(_Start(node=node))

    def _reap(self) -> None:
        for node, child in sorted(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[node]
            if node in self._endings:
                log.info("the agent of node %s ended: %s", node, _ending_of(code))
            else:
                words = self._logs / f"{node}.log"
                log.warning(
                    "the agent of node %s ended by itself: %s; its words: %s", node, _ending_of(code), words
                )

    def _record(self, node: NodeId) -> Path:
        return self._records / f"{node}.json"

    def _forget(self, node: NodeId) -> None:
        self._record(node).unlink(missing_ok=True)


def living_nodes(workdir: Path) -> tuple[NodeId, ...]:
    """Nodes of a work directory whose recorded agent is alive, in order; none when the folder is not there."""
    return tuple(node for node, alive in _recorded(workdir) if alive)


def dead_nodes(workdir: Path) -> tuple[NodeId, ...]:
    """Nodes of a work directory whose recorded agent has ended without being asked to, in order."""
    return tuple(node for node, alive in _recorded(workdir) if not alive)


def _recorded(workdir: Path) -> Iterator[tuple[NodeId, bool]]:
    for record in sorted((workdir / "nodes").glob("*.json")):
        identity = read_record(record)
        if identity is not None:
            yield NodeId(record.stem), is_alive(identity)


def _signal_group(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signal the agent's whole group; its leader was checked to be ours, or was ours and is not reused yet."""
    try:
        os.killpg(identity.pid, number)
    except ProcessLookupError:
        pass  # nobody is left in the group: that is what was wanted
    except PermissionError as error:
        log.error("pid %d cannot be signalled: %s", identity.pid, error)


def _environment() -> dict[str, str]:
    """The agent's environment: ours, with one thread per process and our source tree."""
    environment = dict(os.environ)
    paths = [str(_SOURCE_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["PYTHONUNBUFFERED"] = "1"
    for name in SECRETS_VARIABLES:  # ours; what is the agent's it gets on its command line
        environment.pop(name, None)
    # Thread pools of many trainers on few cores fight; who wants more says so in the environment.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, "1")
    return environment


def _ending_of(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
