"""The Cluster port as the controller has it: whoever starts and ends agents, and the stream on which one is sent home.

Starting and ending processes cannot be fenced by a number, as messages are. So the lease is looked at first: a
controller that was stopped for a while, and succeeded meanwhile, wakes up in the middle of its work and must not end a
node that its successor has started. Next: `processes.py`, `elsewhere.py`, `kube/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.ids import NodeId


class NodeSource(Protocol):
    """Whoever starts and ends agents: processes here, pods, or somebody else."""

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None: ...

    def stop_node(self, node: NodeId, reason: str) -> None: ...

    def living(self) -> tuple[NodeId, ...]:
        """Nodes that are known to live, in order."""
        ...

    def stop_all(self, reason: str, timeout_seconds: float) -> bool:
        """End every living node; False when one is still there after `timeout_seconds`. Waits."""
        ...

    def close(self, timeout_seconds: float) -> None:
        """End whatever this adapter runs, not the nodes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes come up and go down, as long as this process is the controller."""

    cluster: NodeSource
    dismiss: Callable[[NodeId, str], None]
    """Asks an agent to end, if it is connected."""
    assure: Callable[[], None]
    """Raises LeaseLost when another controller has taken over."""

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        self.assure()
        self.cluster.start_node(node, in_place_of)

    def stop_node(self, node: NodeId, reason: str) -> None:
        self.assure()
        self.dismiss(node, reason)
        self.cluster.stop_node(node, reason)
