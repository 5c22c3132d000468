"""Heartbeats are handed over together, each node's in the order in which it spoke."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from orchestrator.core.events import Event
from orchestrator.core.ids import NodeId
from orchestrator.service.heartbeats import Heartbeats
from tests.unit.orchestrator.controller.fakes import heartbeat


def test_those_of_a_moment_are_handed_over_together_the_newest_of_each_node() -> None:
    async def story() -> None:
        handed: list[list[Event]] = []
        arrived = asyncio.Event()

        def hand_over(those: Collection[Event]) -> None:
            handed.append(list(those))
            arrived.set()

        heartbeats = Heartbeats(hand_over)
        for at in (1.0, 2.0):
            for node in ("node-1", "node-2"):
                heartbeats.add(heartbeat(node, at))
        assert handed == [], "not one by one"
        await asyncio.wait_for(arrived.wait(), 10.0)
        assert handed == [[heartbeat("node-1", 2.0), heartbeat("node-2", 2.0)]]
        arrived.clear()
        heartbeats.add(heartbeat("node-1", 3.0))
        await asyncio.wait_for(arrived.wait(), 10.0)
        assert handed[1:] == [[heartbeat("node-1", 3.0)]], "the next one does not wait for ever"

    asyncio.run(story())


def test_what_a_node_says_next_does_not_overtake_its_heartbeat() -> None:
    async def story() -> None:
        handed: list[Event] = []
        heartbeats = Heartbeats(handed.extend)
        heartbeats.add(heartbeat("node-1", 1.0))
        heartbeats.add(heartbeat("node-2", 1.0))
        heartbeats.release(NodeId("node-2"))
        assert handed == [heartbeat("node-2", 1.0)]
        heartbeats.release(NodeId("node-2"))
        heartbeats.release(NodeId("node-3"))
        assert handed == [heartbeat("node-2", 1.0)], "once"

    asyncio.run(story())
