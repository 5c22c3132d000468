"""Injected failures: which strike whom and when. Each is the real thing, done by the victim to itself.

The job's `faults` list names node, step, phase, target and kind; `orchestrator/core/fault_rules.py` says which kinds
there are. Each strikes once in the life of a work directory, at the first such phase at or after its step at which it
can: a marker file is created first, so that a step that is redone or a process that comes back is spared. A slow
trainer is the exception: it stays slow for its steps, whatever happens.
Phases are those of `parallel/pulse.py` plus `dispatch` (in the middle of a forward pass, at its first all-to-all),
`vote` (own vote cast, result unknown) and `optimizer` (some parts written, others not).

A running job can be told of further ones (`FaultOrders`): a file `DIR/faults/orders/NAME.json` with all fields of an
entry of `faults`. Only processes that find the folder when they start look into it.
Next: `fault_effects.py`, what each kind does; `chaos/`, which gives orders.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.training.fault_effects import EFFECTS, Impossible, Target, Victim, fill_disk

_USUAL_PHASE = {"nan": "reduce", "disk-full": "checkpoint", "torn-shard": "boundary"}
"""Of the kinds for which it is not `forward`."""
_USUALLY_A_NODE = ("sigkill", "sigstop")
_KINDS = (*EFFECTS, "slow", "disk-full")
ORDERS_FOLDER = "orders"
"""Below the markers. Who wants to break a running job makes it before the job starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure of this trainer, or of its whole node."""

    name: str
    """Position in the job's list, or the name of the order: names the marker file."""
    kind: str
    step: int
    phase: str
    target: Target
    factor: float
    duration_steps: int


def _read(name: str, values: Mapping[str, Any]) -> Fault:
    kind = str(values["kind"])
    if kind not in _KINDS:
        raise KeyError(kind)
    target = str(values["target"]) or ("node" if kind in _USUALLY_A_NODE else "trainer")
    return Fault(
        name=name,
        kind=kind,
        step=int(values["step"]),
        phase=str(values["phase"]) or _USUAL_PHASE.get(kind, "forward"),
        target=Target(
            whole_node=target == "node",
            part=str(values["part"]),
            tensor=str(values["tensor"]),
            bit=int(values["bit"]),
        ),
        factor=float(values["factor"]),
        duration_steps=int(values["duration_steps"]),
    )


class Clock:
    """What a slow trainer needs of time."""

    def worked(self) -> float:
        """Processor seconds of this thread."""
        return time.thread_time()

    def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)


class FaultOrders:
    """Failures that are ordered while the job runs. Costs one `stat` per look; nothing where there is no folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder if folder.is_dir() else None
        self._changed_at = 0
        self._seen: set[str] = set()

    def news(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Orders that were not there before: name and entry. A file is put there whole, by a rename."""
        if self._folder is None:
            return
        changed_at = self._folder.stat().st_mtime_ns
        if changed_at == self._changed_at:
            return
        self._changed_at = changed_at
        for path in sorted(self._folder.glob("*.json")):
            if path.stem not in self._seen:
                self._seen.add(path.stem)
                yield path.stem, json.loads(path.read_text(encoding="utf-8"))


class Faults:
    """The failures that concern one trainer. `strike` costs two look-ups of empty tuples when there are none."""

    def __init__(
        self,
        faults: Sequence[Mapping[str, Any]],
        trainer: str,
        markers: Path,
        victim: Victim,
        clock: Clock | None = None,
    ) -> None:
        self._markers = markers
        self._trainer = trainer
        self._orders = FaultOrders(markers / ORDERS_FOLDER)
        self._clock = clock or Clock()
        self._victim = victim
        self._slow: tuple[Fault, ...] = ()
        self._disk: tuple[Fault, ...] = ()
        self._mine: tuple[Fault, ...] = ()
        for number, values in enumerate(faults):
            self._expect(str(number), values)
        self._worked = 0.0

    def strike(self, step: int, phase: str) -> None:
        """Fail here if the job says so. Called at every phase, by the thread that is in it."""
        for name, values in self._orders.news():
            self._expect(name, values)
        if self._slow and phase != "acquire":
            self._drag(step)
        for fault in self._mine:
            if step >= fault.step and fault.phase == phase and not self._marker(fault).exists():
                self._strike(fault)

    def shard_begins(self, step: int, file: Path) -> None:
        """A shard of the checkpoint of `step` is about to be written to `file`: there may be no room for it."""
        for fault in self._disk:
            if step >= fault.step and self._claim(fault):
                fill_disk(file)

    def _expect(self, name: str, values: Mapping[str, Any]) -> None:
        """A failure of the job, which may be ours."""
        if f"{values['node']}/{values['device']}" != self._trainer:
            return
        fault = _read(name, values)
        self._slow += (fault,) if fault.kind == "slow" else ()
        self._disk += (fault,) if fault.kind == "disk-full" else ()
        self._mine += (fault,) if fault.kind in EFFECTS else ()

    def _strike(self, fault: Fault) -> None:
        effect = EFFECTS[fault.kind]
        try:
            if effect.possible(self._victim, fault.target) and self._claim(fault):
                effect.strike(self._victim, fault.target)
        except Impossible as error:
            self._claim(fault)
            print(f"fault {fault.name} ({fault.kind}) does not strike: {error}", file=sys.stderr, flush=True)

    def _drag(self, step: int) -> None:
        """Make what this thread computed since the last phase take longer, by `factor` of its processor time."""
        computed = self._clock.worked() - self._worked
        for fault in self._slow:
            if fault.step <= step < fault.step + fault.duration_steps:
                self._clock.pause((fault.factor - 1.0) * computed)
        self._worked = self._clock.worked()

    def _marker(self, fault: Fault) -> Path:
        return self._markers / f"fault-{fault.name}"

    def _claim(self, fault: Fault) -> bool:
        self._markers.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._marker(fault), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        return True
