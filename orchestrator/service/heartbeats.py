"""The heartbeats of all streams on their way to the inbox: gathered for a moment, then handed over together.

Ten thousand agents send ten thousand heartbeats a second, and none of them is urgent. Handed over one by one each would
wake the thread that decides, and take the interpreter away from the loop that reads the next one. So they are handed
over a few dozen times a second, with one waking each time. A heartbeat keeps the time at which it arrived, and is never
overtaken by what its node says later. Lives on the event loop. Next: `worker_api.py`, which feeds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from orchestrator.core.events import HeartbeatReceived
from orchestrator.core.ids import NodeId

GATHER_SECONDS = 0.02
"""Longest stay of a heartbeat: of no weight beside a lease, and 50 wakings a second whatever the number of agents."""


class Heartbeats:
    """At most one heartbeat of each node waits: a newer one says all that an older one said."""

    def __init__(self, hand_over: Callable[[Collection[HeartbeatReceived]], None]) -> None:
        self._hand_over = hand_over
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[NodeId, HeartbeatReceived] = {}

    def add(self, event: HeartbeatReceived) -> None:
        """Hand it over in a moment."""
        if not self._waiting:
            self._loop.call_later(GATHER_SECONDS, self._hand_over_all)
        self._waiting[event.node] = event

    def release(self, node: NodeId) -> None:
        """The node has more to say: what waits of it goes first."""
        event = self._waiting.pop(node, None)
        if event is not None:
            self._hand_over((event,))

    def _hand_over_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._hand_over(waiting.values())
