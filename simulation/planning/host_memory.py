"""Snapshots in host memory, as the core orders them: taken at a boundary, held by an agent and its buddy a while later.

The core decides when, who is whose buddy, what is dropped and what is restored; here is what it takes, and what is gone
with a node. A snapshot that a change of generation overtakes is held by nobody. Next: `orders.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from orchestrator.core import actions, events
from orchestrator.core.events import Event
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import NodeId, node_of
from orchestrator.core.state import Generation
from simulation.planning import sizes
from simulation.planning.costs import Costs
from simulation.planning.fleet import Fleet
from simulation.planning.meter import Cause
from simulation.planning.scenario import Scenario
from simulation.planning.training import Training

BYTES = 1e9
"""Of a gigabyte."""


class Table(Protocol):
    """What is played with."""

    scenario: Scenario
    costs: Costs
    fleet: Fleet
    training: Training

    def later(self, seconds: float, what: Callable[[], None]) -> None: ...

    def tell(self, kind: Callable[..., Event], **fields: object) -> None: ...


class HostMemory:
    """The memory of all agents."""

    def __init__(self, table: Table) -> None:
        self.taken = 0
        """Snapshots that were held in the end."""
        self.most_gigabytes = 0.0
        """That a node has held at once."""
        self._table = table
        self._orders: list[actions.TakeSnapshot] = []
        self._copying = 0
        """Snapshots on their way to the buddies."""

    @property
    def busy(self) -> bool:
        """A snapshot waits for a boundary, or is on its way to the buddies."""
        return bool(self._orders or self._copying)

    def take(self, order: actions.TakeSnapshot) -> None:
        """A node is told to take its part at the next boundary."""
        self._orders.append(order)

    def forget(self) -> None:
        """The generation is over: what waits for a boundary of it will not be taken."""
        self._orders.clear()

    def drop(self, order: actions.DropSnapshots) -> None:
        """An agent gives up what it holds of some snapshots."""
        node = self._table.fleet.node(order.node)
        node.held = tuple(each for each in node.held if each.name not in order.names)

    def stall_seconds(self) -> float:
        """For which a snapshot stops training now."""
        generation = self._table.training.generation
        if generation is None:
            return 0.0
        training = self._table.scenario.training
        return self._table.costs.stage(sizes.fullest_gpu(training, generation, shared=True))

    def work_seconds(self) -> float:
        """From the boundary until the buddies hold it, at most."""
        generation = self._table.training.generation
        if generation is None:
            return 0.0
        training = self._table.scenario.training
        holding = self._table.costs.hold(sizes.fullest_gpu(training, generation, shared=True))
        return self.stall_seconds() + holding

    def recall_seconds(self, generation: Generation) -> float:
        """Reading all that members need of a snapshot."""
        training = self._table.scenario.training
        return self._table.costs.recall(sizes.fullest_gpu(training, generation, shared=False))

    def at_boundary(self) -> None:
        """All members copy their shares, and go on training while agents hash them and send them to their buddies."""
        orders, self._orders = self._orders, []
        training = self._table.training
        generation = training.generation
        if not orders or generation is None or orders[0].generation != generation.number:
            return
        stall, working = self.stall_seconds(), self.work_seconds()
        training.pause(Cause.SNAPSHOT_STALL, stall)
        shards = self._shards(generation, stall)
        self._copying += 1

        def held() -> None:
            self._copying -= 1
            if training.generation is generation:
                self._hold(orders, shards)

        self._table.later(working, held)

    def _shards(self, generation: Generation, stall: float) -> Mapping[NodeId, list[HeldShard]]:
        training = self._table.scenario.training
        shards: dict[NodeId, list[HeldShard]] = {}
        shares = sizes.shares(training, generation, shared=True)
        for member, share in zip(generation.members, shares, strict=True):
            shard = HeldShard(
                step=self._table.training.committed,
                generation=generation.number,
                rank=member.rank,
                shards=len(generation.members),
                bytes=round(share * BYTES),
                entry="",
                stall_seconds=stall,
            )
            shards.setdefault(node_of(member.trainer), []).append(shard)
        return shards

    def _hold(self, orders: list[actions.TakeSnapshot], shards: Mapping[NodeId, list[HeldShard]]) -> None:
        """Each agent holds its own shards and those of whose buddy it is, beside the last sealed snapshot."""
        arrived: dict[NodeId, list[HeldShard]] = {}
        for order in orders:
            arrived.setdefault(order.node, []).extend(shards[order.node])
            if order.buddy:
                arrived.setdefault(order.buddy, []).extend(shards[order.node])
        keep = orders[0].keep
        self.taken += 1
        for name, new in arrived.items():
            node = self._table.fleet.node(name)
            if not (node.up and node.registered):
                continue
            node.held = (*(each for each in node.held if each.name == keep), *new)
            self.most_gigabytes = max(self.most_gigabytes, sum(each.bytes for each in node.held) / BYTES)
            self._table.tell(events.SnapshotsHeld, node=name, incarnation=node.incarnation, held=node.held)
