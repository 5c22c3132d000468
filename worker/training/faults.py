"""Injected failures: real signals, sent by the victim to itself at an exact step and phase.

The job's `faults` list names node, step, phase, target and kind. Each strikes once in the life of a work
directory, at the first such phase at or after its step: a marker file is created first, so that a step that is redone
or a process that comes back is spared.
Phases are those of `parallel/pulse.py` plus `dispatch` (in the middle of a forward pass, at its first all-to-all),
`vote` (own vote cast, result unknown) and `optimizer` (some parts written, others not).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIGNALS = {"sigkill": signal.SIGKILL, "sigstop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure of this trainer, or of its whole node."""

    number: int
    """Position in the job's list: names the marker file."""
    signal: signal.Signals
    step: int
    phase: str
    whole_node: bool


class Faults:
    """The failures that concern one trainer. `strike` costs one tuple look-up when there are none."""

    def __init__(self, faults: Sequence[Mapping[str, Any]], trainer: str, markers: Path) -> None:
        self._markers = markers
        self._mine = tuple(
            Fault(
                number=number,
                signal=_SIGNALS[fault["kind"]],
                step=int(fault["step"]),
                phase=str(fault["phase"]),
                whole_node=fault["target"] == "node",
            )
            for number, fault in enumerate(faults)
            if f"{fault['node']}/{fault['device']}" == trainer
        )

    def strike(self, step: int, phase: str) -> None:
        """Fail here if the job says so: the agent first (its parent process), then this process."""
        for fault in self._mine:
            if step >= fault.step and fault.phase == phase and self._claim(fault.number):
                if fault.whole_node:
                    os.kill(os.getppid(), fault.signal)
                os.kill(os.getpid(), fault.signal)

    def _claim(self, number: int) -> bool:
        self._markers.mkdir(parents=True, exist_ok=True)
        try:
            (self._markers / f"fault-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
