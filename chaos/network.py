"""Networks that can be cut, one node at a time: namespaces on a bridge for root, a relay per node for anybody else.

In a namespace all of a node's traffic is cut, that of the collectives too; a queue of length zero on one end of its
wire drops what goes that way (`sch_fifo` is part of every Linux kernel, nothing else is needed). A relay stands only
between agent and controller. Next: `relays.py`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol


class Way(Enum):
    """What is cut."""

    BOTH = "all packets from and to a node"
    OUT = "all packets from a node"
    IN = "all packets to a node"
    CONTROL = "what a node and the controller tell each other"


class Network(Protocol):
    """What a run needs of a network."""

    @property
    def listen(self) -> str:
        """HOST:PORT for the controller."""
        ...

    @property
    def prefix(self) -> str:
        """Words before each agent's command, `{node}` for its name."""
        ...

    def cut(self, node: str, way: Way) -> None: ...

    def heal(self, node: str) -> None: ...

    def begin(self, workdir: Path) -> None:
        """A run begins in this folder, with nothing cut."""
        ...

    def close(self) -> None: ...


class NetworkError(Exception):
    """A command of iproute2 failed; the message holds its words."""


def can_make_namespaces() -> bool:
    """Root, with iproute2, on a kernel that lets it."""
    if os.geteuid() != 0 or not all(shutil.which(each) for each in ("ip", "tc", "unshare", "nsenter")):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


class Namespaces:
    """A bridge, and a namespace for each node, made for one invocation and used by its runs in turn."""

    def __init__(self, nodes: int) -> None:
        self._tag = f"us{os.getpid()}"
        self._nodes = nodes
        self._net = _free_network()
        self._made: list[tuple[str, ...]] = []
        self._cut: dict[str, list[tuple[str, ...]]] = {}
        try:
            self._make()
        except NetworkError:
            self.close()
            raise

    @property
    def listen(self) -> str:
        return f"{self._net}.1:0"

    @property
    def prefix(self) -> str:
        # Not `ip netns exec`: that makes a mount namespace too, which would not see what is mounted later.
        return f"nsenter --net=/run/netns/{self._tag}-{{node}}"

    def begin(self, workdir: Path) -> None:
        del workdir
        for node in tuple(self._cut):
            self.heal(node)

    def cut(self, node: str, way: Way) -> None:
        """Nothing is told to anybody: packets are lost. For CONTROL, packets to the controller have no way to go."""
        space, wire = self._space(node), self._wire(node)
        inward = ("tc", "qdisc", "add", "dev", wire, "root", "pfifo", "limit", "0")
        outward = ("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "pfifo", "limit", "0")
        lone = ("ip", "-n", space, "route", "add", "blackhole", f"{self._net}.1/32")
        steps = {Way.BOTH: (inward, outward), Way.OUT: (outward,), Way.IN: (inward,), Way.CONTROL: (lone,)}
        for step in steps[way]:
            _do(step)
            undo = tuple(("del" if word == "add" else word) for word in step)
            self._cut.setdefault(node, []).append(undo[: undo.index("pfifo")] if "pfifo" in undo else undo)

    def heal(self, node: str) -> None:
        for undo in reversed(self._cut.pop(node, [])):
            _do(undo)

    def close(self) -> None:
        """Namespaces take their wires with them."""
        for undo in reversed(self._made):
            subprocess.run(undo, capture_output=True, check=False)
        self._made.clear()

    def _make(self) -> None:
        bridge = self._tag
        self._step(("ip", "link", "add", bridge, "type", "bridge"), ("ip", "link", "del", bridge))
        _do(("ip", "addr", "add", f"{self._net}.1/24", "dev", bridge))
        _do(("ip", "link", "set", bridge, "up"))
        for number in range(1, self._nodes + 1):
            node = f"node-{number}"
            space, wire = self._space(node), self._wire(node)
            self._step(("ip", "netns", "add", space), ("ip", "netns", "del", space))
            _do(("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space))
            _do(("ip", "link", "set", wire, "master", bridge, "up"))
            _do(("ip", "-n", space, "addr", "add", f"{self._net}.{number + 10}/24", "dev", "eth0"))
            _do(("ip", "-n", space, "link", "set", "eth0", "up"))
            _do(("ip", "-n", space, "link", "set", "lo", "up"))

    def _step(self, step: tuple[str, ...], undo: tuple[str, ...]) -> None:
        _do(step)
        self._made.append(undo)

    def _space(self, node: str) -> str:
        return f"{self._tag}-{node}"

    def _wire(self, node: str) -> str:
        return f"{self._tag}v{node.rpartition('-')[2]}"


def _free_network() -> str:
    """The first three numbers of a network that nobody here uses, set aside for tests by RFC 2544."""
    used = _do(("ip", "-4", "-o", "addr", "show"))
    for number in range(os.getpid() % 256, os.getpid() % 256 + 256):
        net = f"198.18.{number % 256}"
        if f" {net}." not in used:
            return net
    raise NetworkError("all networks of 198.18.0.0/16 are in use on this machine")


def _do(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
