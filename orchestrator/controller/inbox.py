"""The bounded queue between the edges and the controller. Knows nothing of what events mean beyond who sent them.

Rules, all for the sake of a controller that stays responsive with thousands of agents:
- `put` never blocks. False means "busy": nothing was queued, and the caller decides. The service lets a stream wait a
  little and then closes it; its agent registers again and sends again what the ledger does not have. So a step report
  is never dropped silently.
- Heartbeats of one node are coalesced: a newer one takes the place of one that waits, unless something else of that
  node has been queued since (a registration must not be overtaken). The newest says all.
- Timers are coalesced too: of each kind at most one waits. The older one is kept, which is the cautious choice, since
  its `at` finds fewer leases over.
- Heartbeats are refused first: they may fill the queue to `heartbeat_share` of its capacity only.
- No node may fill more than `node_share` of it, so that one that floods waits while the others are heard.

Next: `runner.py`, which empties it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.core.events import (
    CheckpointDue,
    Event,
    HeartbeatReceived,
    LeasesDue,
    RedundancyScanDue,
    RetentionDue,
)
from orchestrator.core.ids import NodeId, node_of

INBOX_CAPACITY = 65_536
"""Events that wait at most."""
HEARTBEAT_SHARE = 0.5
"""Share of the capacity beyond which heartbeats are refused."""
NODE_SHARE = 0.125
"""Share of the capacity beyond which a single node is refused: 8,192 events, twice what an agent keeps of steps."""

_TIMERS = (LeasesDue, CheckpointDue, RedundancyScanDue, RetentionDue)


@dataclass(slots=True)
class _Slot:
    event: Event
    node: NodeId | None


class Inbox:
    """First in, first out; any thread puts, one thread takes."""

    def __init__(
        self,
        *,
        capacity: int = INBOX_CAPACITY,
        heartbeat_share: float = HEARTBEAT_SHARE,
        node_share: float = NODE_SHARE,
    ) -> None:
        assert capacity > 0 and 0 < heartbeat_share <= 1 and 0 < node_share <= 1, (capacity, heartbeat_share)
        self._node_limit = max(1, int(capacity * node_share))
        self._by_node: dict[NodeId, int] = {}
        self._capacity = capacity
        self._heartbeat_limit = max(1, int(capacity * heartbeat_share))
        self._slots: deque[_Slot] = deque()
        self._heartbeats: dict[NodeId, _Slot] = {}
        self._timers: set[type[Event]] = set()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False

    def put(self, event: Event) -> bool:
        """Queue an event. Never blocks; False when there is no room for its kind, or when the inbox is closed."""
        with self._changed:
            taken = self._put(event)
            if taken:
                self._changed.notify()
            return taken

    def put_heartbeats(self, heartbeats: Collection[HeartbeatReceived]) -> None:
        """Queue many, and wake the other thread once; those that find no room are dropped."""
        with self._changed:
            for event in heartbeats:
                self._put(event)
            self._changed.notify()

    def _put(self, event: Event) -> bool:
        if self._closed:
            return False
        if isinstance(event, _TIMERS) and type(event) in self._timers:
            return True
        heartbeat = isinstance(event, HeartbeatReceived)
        waiting = self._heartbeats.get(event.node) if isinstance(event, HeartbeatReceived) else None
        if waiting is not None:
            waiting.event = event
            return True
        if len(self._slots) >= (self._heartbeat_limit if heartbeat else self._capacity):
            return False
        node = _node_of(event)
        if node is not None and self._by_node.get(node, 0) >= self._node_limit:
            return False
        self._append(event, node)
        return True

    def take(self, timeout: float) -> Event | None:
        """The oldest event; None when none came within `timeout` seconds or when `wake` was called."""
        with self._changed:
            if not self._slots and not self._woken:
                self._changed.wait(timeout)
            self._woken = False
            if not self._slots:
                return None
            return self._pop()

    def take_heartbeats(self, limit: int) -> Sequence[HeartbeatReceived]:
        """The heartbeats that are next, without waiting: thousands a second need not be taken one by one."""
        taken: list[HeartbeatReceived] = []
        with self._changed:
            while len(taken) < limit and self._slots and isinstance(self._slots[0].event, HeartbeatReceived):
                event = self._pop()
                assert isinstance(event, HeartbeatReceived)
                taken.append(event)
        return taken

    def _pop(self) -> Event:
        slot = self._slots.popleft()
        event = slot.event
        self._let_go(slot.node)
        if isinstance(event, HeartbeatReceived):
            if self._heartbeats.get(event.node) is slot:
                del self._heartbeats[event.node]
        elif isinstance(event, _TIMERS):
            self._timers.discard(type(event))
        return event

    def wake(self) -> None:
        """Have `take` return, for there is something else to do."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Refuse everything from now on; what waits can still be taken."""
        with self._changed:
            self._closed = True

    def __len__(self) -> int:
        with self._changed:
            return len(self._slots)

    def _let_go(self, node: NodeId | None) -> None:
        if node is not None:
            left = self._by_node[node] - 1
            if left:
                self._by_node[node] = left
            else:
                del self._by_node[node]

    def _append(self, event: Event, node: NodeId | None) -> None:
        slot = _Slot(event, node)
        self._slots.append(slot)
        if node is not None:
            self._by_node[node] = self._by_node.get(node, 0) + 1
        if isinstance(event, HeartbeatReceived):
            self._heartbeats[event.node] = slot
        elif isinstance(event, _TIMERS):
            self._timers.add(type(event))
        elif node is not None:
            self._heartbeats.pop(node, None)


def _node_of(event: Event) -> NodeId | None:
    """The node that an event is about, None when it is about the whole job."""
    node: NodeId | None = getattr(event, "node", None)
    if node is not None:
        return node
    trainer = getattr(event, "trainer", None)
    return None if trainer is None else node_of(trainer)
