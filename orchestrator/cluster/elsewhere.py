"""The Cluster port where somebody else starts the agents: a batch system, `ssh`, a test, a benchmark.

The controller asks for nothing; agents come by themselves (`python -m worker agent --controller HOST:PORT ...`). One
that is not wanted any more is told so on its stream. Next: `processes.py`, the adapter that does start agents.
"""

from __future__ import annotations

import logging

from orchestrator.core.ids import NodeId

log = logging.getLogger(__name__)


class AgentsElsewhere:
    """Starts and ends nothing. All methods may be called from any thread."""

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        """Nothing to do but to wait for its agent."""
        del in_place_of
        log.debug("node %s is expected: its agent is started by somebody else", node)

    def stop_node(self, node: NodeId, reason: str) -> None:
        """Its agent is told on its stream, and ends its trainers and itself."""
        log.debug("node %s is not wanted any more: %s", node, reason)

    def living(self) -> tuple[NodeId, ...]:
        """Unknown from here."""
        return ()

    def stop_all(self, reason: str, timeout_seconds: float) -> bool:
        """Nothing that could be waited for."""
        del reason, timeout_seconds
        return True

    def close(self, timeout_seconds: float) -> None:
        """Nothing runs."""
        del timeout_seconds
