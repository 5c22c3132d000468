"""The Cluster port: machines that agents run on. They break, are repaired or stay broken, and can refuse to start.

A node that is wanted and cannot be had is simply not there, as a pod that stays pending. Next: `agent.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.core.ids import NodeId
from orchestrator.core.spec_rules import node_ids
from simulation.agent import AgentProcess
from simulation.ground import Ground
from simulation.groups import Groups
from simulation.streams import End
from simulation.trainer import Trainer

START_SECONDS = (0.1, 1.0)
STOP_SECONDS = (0.05, 0.5)


class Nodes:
    """All machines of a world, by node."""

    def __init__(self, ground: Ground, dial: Callable[[str], End | None]) -> None:
        self.agents: dict[str, AgentProcess] = {}
        self.broken: set[str] = set()
        """Machines without power."""
        self.lost: set[str] = set()
        """Broken machines that nobody will repair."""
        self._wanted: set[str] = set()
        self._slowness: dict[str, float] = {}
        self._ground = ground
        self._dial = dial
        self._groups = Groups(ground)
        self._serial = 0
        self.all = [str(node) for node in node_ids(ground.spec.cluster)]

    # ---- the Cluster port ----

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        """Bring an agent up unless one lives. Raises OSError when the platform does not take the request."""
        if self._ground.chance(self._ground.faults.start_node_fails_chance):
            raise OSError(f"the platform did not take the request to start {node}")
        self._wanted.add(node)
        agent = self.agents.get(node)
        if agent is not None and agent.alive and agent.pid == in_place_of:
            agent.kill()
        self._ground.scheduler.after(self._ground.between(*START_SECONDS), lambda: self._bring_up(node))

    def stop_node(self, node: NodeId, reason: str) -> None:
        """End a node's agent: asked first, killed if it does not run."""
        self._wanted.discard(node)
        agent = self.agents.get(node)
        if agent is not None and agent.alive:
            agent.ask_to_end(reason)
            self._ground.scheduler.after(self._ground.between(*STOP_SECONDS), agent.kill)

    # ---- what happens to machines ----

    def living(self) -> list[AgentProcess]:
        return [self.agents[node] for node in self.all if node in self.agents and self.agents[node].alive]

    def trainers(self) -> Iterator[Trainer]:
        """Living processes, in order."""
        for agent in self.living():
            for name in sorted(agent.trainers):
                if agent.trainers[name].alive:
                    yield agent.trainers[name]

    def return_agent(self, node: str) -> None:
        """Somebody (an operator, the platform) starts an agent on a machine that has none."""
        self._wanted.add(node)
        self._bring_up(node)

    def break_machine(self, node: str, *, silently: bool, repair_seconds: float | None) -> None:
        """The machine goes down; None means that it never comes back."""
        self.broken.add(node)
        agent = self.agents.get(node)
        if agent is not None and agent.alive:
            self._wanted.add(node)
            agent.kill(silently=silently)
        if repair_seconds is None:
            self.lost.add(node)
        else:
            self._ground.scheduler.after(repair_seconds, lambda: self.repair(node))

    def repair(self, node: str) -> None:
        """Power is back, and what was wanted there is started."""
        if node in self.lost:
            return
        self.broken.discard(node)
        if node in self._wanted:
            self._bring_up(node)

    def slow_down(self, node: str, factor: float) -> None:
        """Everything on a machine takes `factor` times as long; 1 makes it well again."""
        self._slowness[node] = factor
        agent = self.agents.get(node)
        if agent is not None:
            agent.slowness = factor
            for trainer in agent.trainers.values():
                trainer.slowness = factor

    def _bring_up(self, node: str) -> None:
        agent = self.agents.get(node)
        if node not in self._wanted or node in self.broken or (agent is not None and agent.alive):
            return
        self._serial += 1
        self._ground.timeline.say(node, "an agent starts")
        fresh = self.agents[node] = AgentProcess(
            self._ground,
            node=node,
            serial=self._serial,
            groups=self._groups,
            find=self._find,
            find_host=self._find_host,
            dial=self._dial,
        )
        fresh.slowness = self._slowness.get(node, 1.0)

    def _find_host(self, memory_address: str) -> AgentProcess | None:
        """The living agent whose memory server listens at an address."""
        return next((each for each in self.living() if each.memory_address == memory_address), None)

    def _find(self, peer_address: str) -> Trainer | None:
        """The living process that listens at an address."""
        return next((each for each in self.trainers() if each.peer_address == peer_address), None)
