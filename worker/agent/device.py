"""One device of the node: the trainer process that runs on it now, and the rules for starting another.

Pure data with the questions that can be answered from it; only `machine.py` changes it. A device has one trainer
name for ever ("node-1/0"); its processes are told apart by `start`, which only grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from worker.agent import policy
from worker.agent.controller_messages import Generation, SetTimeouts, TrainerStatus
from worker.agent.messages import Beat, Ready, SealCheckpoint, TrainingEnded

PHASES = frozenset(
    (
        "starting",
        "ready",
        "acquiring",
        "regrouping",
        "restoring",
        "forward",
        "backward",
        "reduce",
        "vote",
        "optimizer",
        "boundary",
        "finished",
    )
)
"""The words for a phase that the controller knows; another word would cost the whole node its stream."""
_NEAREST_PHASE = {
    "dispatch": "forward",
    "checkpoint": "boundary",
    "regroup": "regrouping",
    "restore": "restoring",
    "acquire": "acquiring",
}


IN_A_STEP = frozenset(("forward", "dispatch", "backward", "reduce", "vote", "optimizer"))
"""Phases of every step, whose silences the controller has observed; others may hold a process up for longer."""


class Killed(Enum):
    """Why the agent is ending the process itself, which decides what its end costs."""

    NO = "no"
    FENCED = "fenced"
    """It must make way for a fresh one: free, and what it still says counts for nothing."""
    ORDERED = "ordered"
    """The controller wants a fresh one: counts like a failure."""


@dataclass(slots=True, kw_only=True)
class Device:
    """Everything that the machine remembers of one device."""

    trainer: str
    number: int
    start: int = 0
    """Processes started so far; the newest one has this number."""
    running: bool = False
    """The newest process was started and its end has not been seen."""
    pid: int = 0
    ready: Ready | None = None
    beat: Beat | None = None
    last_sign_at: float = 0.0
    last_work_at: float = 0.0
    """When the kernel last saw the process at work, although it said nothing."""
    looked_at: float = 0.0
    used_seconds: float = 0.0
    """Processor time that it had used then."""
    told_silent: bool = False
    told: int = 0
    """The newest generation that the process was told."""
    seat: int = 0
    """The newest generation that gave the process a rank it may still act in; 0 for none."""
    killed: Killed = Killed.NO
    refused: bool = False
    """The process said that it cannot run this job; another one could not either."""
    ended: TrainingEnded | None = None
    restarts: deque[float] = field(default_factory=deque)
    """When processes were started again, within the window."""
    restart_at: float | None = None
    seals: dict[str, SealCheckpoint] = field(default_factory=dict)
    """By request: checkpoints to be sealed whose outcome is not known. A fresh process can seal them as well."""

    def begin(self, at: float) -> int:
        """A new process: what was known of the last one is forgotten. Gives its start."""
        assert not self.running, f"{self.trainer} start {self.start} still runs"
        self.start += 1
        self.running = True
        self.pid = 0
        self.ready = self.beat = self.ended = self.restart_at = None
        self.last_sign_at = self.last_work_at = self.looked_at = at
        self.told_silent = self.refused = False
        self.told = self.seat = 0
        self.killed = Killed.NO
        return self.start

    @property
    def usable(self) -> bool:
        """The process can take orders and is not being ended."""
        return self.running and self.ready is not None and self.killed is Killed.NO

    def rank_in(self, generation: Generation) -> int:
        """The rank of this very process in a generation, -1 for none.

        Name, start and address must agree: after an agent has started anew, starts count from 1 again, and a
        generation made for its forerunner must not find a process that merely bears the same number.
        """
        if self.ready is None:
            return -1
        for member in generation.members:
            if member.trainer == self.trainer and member.start == self.start:
                return member.rank if member.peer_address == self.ready.peer_address else -1
        return -1

    def take_beat(self, beat: Beat) -> None:
        """Where the process is. One that a planned generation leaves out has left when it waits for a seat again."""
        self.beat = beat
        if 0 < self.seat < self.told and (beat.phase == "ready" or beat.generation >= self.told):
            self.seat = 0

    def remember_seal(self, order: SealCheckpoint) -> None:
        """Until its outcome is known; the controller asks again for what fell out."""
        self.seals[order.request] = order
        while len(self.seals) > policy.SEALS_LIMIT:
            del self.seals[next(iter(self.seals))]

    def quiet(self, at: float, limits: policy.Policy, told: SetTimeouts) -> bool:
        """Whether it has said nothing for so long that the kernel is to be asked about it."""
        long = self.silence_limit_seconds(limits, told) * policy.QUIET_SHARE
        return self.running and self.ready is not None and at - self.last_sign_at >= long

    def take_processor_seconds(self, used: float, at: float) -> None:
        """What the process has used so far. One that works is not hung, although none of its threads can say so:
        a library holds the interpreter, or the kernel its memory map."""
        passed = at - self.looked_at
        if passed < policy.LOOK_SECONDS:
            return
        if passed < policy.LOOK_LIMIT_SECONDS and used - self.used_seconds >= policy.BUSY_SHARE * passed:
            self.last_work_at = at
        self.looked_at, self.used_seconds = at, used

    def silent_seconds(self, at: float) -> float:
        """Since the process last gave a sign of life; 0 when there is none that could. Work is one for a while."""
        if not self.running:
            return 0.0
        silent = max(0.0, at - self.last_sign_at)
        return silent if silent > policy.BUSY_SECONDS else min(silent, max(0.0, at - self.last_work_at))

    def silence_limit_seconds(self, limits: policy.Policy, told: SetTimeouts) -> float:
        """How long it may be silent. While it imports and makes its device context it has no beat yet; what was told
        of a generation counts for who is in the middle of a step of it."""
        if self.ready is None:
            return limits.start_seconds
        if self.beat is None or self.beat.generation != told.generation or self.beat.phase not in IN_A_STEP:
            return limits.hang_seconds
        return min(limits.hang_seconds, told.hang_seconds)

    def next_restart(self, at: float, budget: int) -> float | None:
        """When the device may have another process, and count it; None when its budget is spent."""
        while self.restarts and at - self.restarts[0] >= policy.RESTART_WINDOW_SECONDS:
            self.restarts.popleft()
        done = len(self.restarts)
        if done >= budget:
            return None
        self.restarts.append(at)
        if done == 0:
            return at
        pause = policy.RESTART_PAUSE_SECONDS * 2.0 ** (done - 1)
        return at + min(pause, policy.RESTART_PAUSE_LIMIT_SECONDS)

    def status(self, at: float) -> TrainerStatus:
        """What the controller is told of it."""
        ready = self.ready or Ready(store_address="", peer_address="", device_name="")
        beat = self.beat or Beat(generation=0, step=0, phase="starting", operation=0, waiting=False)
        phase = _NEAREST_PHASE.get(beat.phase, beat.phase)
        if self.ready is not None and (self.beat is None or phase == "starting"):
            phase = "ready"
        return TrainerStatus(
            trainer=self.trainer,
            start=self.start,
            pid=self.pid,
            ready=self.usable,
            store_address=ready.store_address,
            peer_address=ready.peer_address,
            device_name=ready.device_name,
            generation=beat.generation,
            step=beat.step,
            phase=phase if phase in PHASES else "boundary",
            operation=beat.operation,
            waiting=beat.waiting,
            silent_seconds=self.silent_seconds(at),
            work_seconds=beat.work_seconds,
        )
