"""The stream between an agent and a controller: two pipes, two ends that learn of its end on their own.

Both ends convert every message with the real code of their side. An end that was closed is noticed by the other when
the news can travel; otherwise a keepalive gives the stream up. What was in flight then is lost. Next: `agent.py` and
`controllers.py`, the two ends.
"""

from __future__ import annotations

from typing import Protocol

from protos import worker_pb2 as pb
from simulation.ground import Ground
from simulation.network import Pipe
from worker.agent.client import KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS

KEEPALIVE_LOOK_SECONDS = 2.0
NOTICE_SECONDS = (0.001, 0.1)
"""Until the other side's close is read."""
IN_FLIGHT_LIMIT = 16_384
"""Of the agent's client: beyond it the stream is given up."""


class End(Protocol):
    """One side of a stream."""

    @property
    def place(self) -> str: ...

    @property
    def awake(self) -> bool: ...

    def take(self, stream: Stream, message: pb.AgentMessage | pb.ControllerMessage) -> bool:
        """Read a message; False when that is not possible now."""
        ...

    def lost(self, stream: Stream, reason: str) -> None:
        """The stream is over, as this side sees it."""
        ...


class Stream:
    """One registration's conversation."""

    def __init__(self, ground: Ground, *, node: str, agent: End, controller: End) -> None:
        self.node = node
        self.agent = agent
        self.controller = controller
        self.incarnation = ""
        """Of the agent, once it has registered."""
        self.welcomed = False
        self._ground = ground
        self._over: set[str] = set()
        self._unanswered_seconds = 0.0
        places = agent.place, controller.place
        self.up: Pipe[pb.AgentMessage] = Pipe(ground.network, ground.scheduler, places, self._upwards)
        self.down: Pipe[pb.ControllerMessage] = Pipe(
            ground.network, ground.scheduler, (places[1], places[0]), self._downwards
        )
        ground.scheduler.every(KEEPALIVE_LOOK_SECONDS, self._keep_alive)

    @property
    def open(self) -> bool:
        return not self._over

    def over_for(self, end: End) -> bool:
        return end.place in self._over

    def close(self, end: End, reason: str) -> None:
        """One side ends the conversation, or its process is gone; the other one reads that after what came before."""
        if end.place in self._over:
            return
        other = self.controller if end is self.agent else self.agent
        self._over.add(end.place)
        (self.down if end is self.agent else self.up).break_off()
        if self._ground.network.reaches(end.place, other.place):
            delay = self._ground.between(*NOTICE_SECONDS)
            self._ground.scheduler.after(delay, lambda: self._notice(other, reason))

    def snap(self, reason: str) -> None:
        """The connection is gone with all that was in it; both sides notice, each in its time."""
        self.up.break_off()
        self.down.break_off()
        for end in (self.agent, self.controller):
            delay = self._ground.between(*NOTICE_SECONDS)
            self._ground.scheduler.after(delay, lambda end=end: self._notice(end, reason))  # type: ignore[misc]  # a default binds the loop's value

    def _notice(self, end: End, reason: str) -> None:
        if end.place in self._over:
            return
        waits = self.up if end is self.controller else self.down
        if len(waits) or not end.awake:
            self._ground.scheduler.after(NOTICE_SECONDS[1], lambda: self._notice(end, reason))
            return
        self._over.add(end.place)
        self.up.break_off()
        self.down.break_off()
        end.lost(self, reason)

    def _keep_alive(self) -> bool:
        """Pings that are not answered for long enough end a stream; a process that is stopped answers none."""
        if len(self._over) == 2:
            return False
        cut = self._ground.network.cut_seconds(self.agent.place, self.controller.place) > 0.0
        asleep = not (self.agent.awake and self.controller.awake)
        one_left = bool(self._over)
        self._unanswered_seconds += KEEPALIVE_LOOK_SECONDS if cut or asleep or one_left else 0.0
        if not (cut or asleep or one_left):
            self._unanswered_seconds = 0.0
        if self._unanswered_seconds > KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS:
            self.snap("keepalive watchdog timeout")
            return False
        if len(self.up) > IN_FLIGHT_LIMIT:
            self.snap(f"the controller does not read: {IN_FLIGHT_LIMIT} messages wait")
            return False
        return True

    def _upwards(self, message: pb.AgentMessage) -> bool:
        if self.over_for(self.controller):
            return True
        return self.controller.awake and self.controller.take(self, message)

    def _downwards(self, message: pb.ControllerMessage) -> bool:
        if self.over_for(self.agent):
            return True
        return self.agent.awake and self.agent.take(self, message)
