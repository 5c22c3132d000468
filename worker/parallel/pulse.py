"""A trainer's pulse: where it is right now, readable from other threads.

The training thread writes, the beat thread and the wait loops read; single attribute stores, no locks. `enter` is
also the one place where injected faults can strike (`on_enter`). No torch, no IO. Next: `groups.py`.
"""

from __future__ import annotations

from collections.abc import Callable


def _no_fault(step: int, phase: str) -> None:
    """Nothing is injected."""


class Pulse:
    """Generation, step, phase, number of the newest collective, and whether it waits for peers."""

    __slots__ = (
        "generation",
        "on_enter",
        "operation",
        "phase",
        "step",
        "waited_seconds",
        "waiting",
        "work_seconds",
    )

    def __init__(self) -> None:
        self.generation = 0
        self.step = 0
        """The last committed step."""
        self.phase = "starting"
        self.operation = 0
        self.waiting = False
        self.waited_seconds = 0.0
        """In all waits for peers so far."""
        self.work_seconds = 0.0
        """Of the last committed step: what this trainer worked itself, waiting for peers not counted."""
        self.on_enter: Callable[[int, str], None] = _no_fault

    def enter(self, phase: str) -> None:
        """Enter a phase of the step after `step`; an injected fault strikes here."""
        self.phase = phase
        self.on_enter(self.step + 1, phase)
