"""Host memory of agents: shards of snapshots, each at its own agent and at a buddy's. A small model of `worker/agent`.

A share is in the memory of its own agent some time after the boundary, in that of the buddy a little later, and each
agent tells all that it holds whenever that changes. It is gone with the agent. Next: `training.py`, which takes shares
at a boundary and reads them back.
"""

from __future__ import annotations

from orchestrator.core import actions
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import Rank, Step
from orchestrator.core.state import Generation
from tests.scenarios.agents import Agents, Controller
from tests.scenarios.models import HASH_SECONDS, SEND_SECONDS, Agent, Seat, memory_address


class Memories:
    """What agents hold, and what is on its way into their memory."""

    def __init__(self, controller: Controller, agents: Agents) -> None:
        self._controller = controller
        self._agents = agents
        self._arriving: list[tuple[float, Agent, HeldShard, str]] = []
        """When a shard is there, whose memory it is, and which snapshot must stay beside it."""

    def tick(self) -> None:
        """Shards arrive, where the agent still lives."""
        at = self._controller.at
        due = [each for each in self._arriving if each[0] <= at]
        self._arriving = [each for each in self._arriving if each[0] > at]
        for _, agent, shard, keep in due:
            if self._agents.alive.get(agent.node) is agent and not agent.stopped:
                fresh = (shard.name, keep)
                held = [each for each in agent.held if each.name in fresh and each != shard]
                agent.held = (*held, shard)
                self._agents.tell_held(agent)

    def boundary(self, generation: Generation, seats: list[Seat]) -> None:
        """An order that all members' agents have is carried out by all."""
        orders = [
            {order.request: order for order in seat.agent.snapshots if order.generation == generation.number}
            for seat in seats
        ]
        for request in sorted(set.intersection(*map(set, orders))):
            for rank, (seat, ordered) in enumerate(zip(seats, orders, strict=True)):
                self._take(seat, ordered[request], Rank(rank), len(seats))
        for seat in seats:
            seat.agent.snapshots.clear()

    def _take(self, seat: Seat, order: actions.TakeSnapshot, rank: Rank, shards: int) -> None:
        shard = HeldShard(
            step=Step(seat.trainer.step),
            generation=order.generation,
            rank=rank,
            shards=shards,
            bytes=1000,
            entry=f'{{"rank": {rank}}}',
            stall_seconds=self._agents.stall_seconds,
        )
        at = self._controller.at
        self._arriving.append((at + HASH_SECONDS, seat.agent, shard, order.keep))
        buddy = self._agents.alive.get(order.buddy)
        if buddy is not None:
            self._arriving.append((at + HASH_SECONDS + SEND_SECONDS, buddy, shard, order.keep))

    def missing(self, generation: Generation) -> int | None:
        """The first shard of what a generation goes back to that no living agent can give; None if there is none."""
        living = {
            (memory_address(agent.node), shard.rank)
            for agent in self._agents.alive.values()
            if not agent.stopped
            for shard in agent.held
            if shard.name == generation.restore_name
        }
        for source in generation.restore_shards:
            if not any((address, source.rank) in living for address in source.addresses):
                return source.rank
        return None
