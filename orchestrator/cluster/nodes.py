"""The Cluster port as the controller has it: whoever starts and ends agents, and the stream on which one is sent home.

Starting and ending processes cannot be fenced by a number, as messages are. So the lease is looked at first: a
controller that was stopped for a while, and succeeded meanwhile, wakes up in the middle of its work and must not end a
node that its successor has started. Next: `processes.py`, `elsewhere.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cluster.elsewhere import AgentsElsewhere
from orchestrator.cluster.processes import ProcessCluster
from orchestrator.core.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes come up and go down, as long as this process is the controller."""

    cluster: ProcessCluster | AgentsElsewhere
    dismiss: Callable[[NodeId, str], None]
    """Asks an agent to end, if it is connected."""
    assure: Callable[[], None]
    """Raises LeaseLost when another controller has taken over."""

    def start_node(self, node: NodeId) -> None:
        self.assure()
        self.cluster.start_node(node)

    def stop_node(self, node: NodeId, reason: str) -> None:
        self.assure()
        self.dismiss(node, reason)
        self.cluster.stop_node(node, reason)
