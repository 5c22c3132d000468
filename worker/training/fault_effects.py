"""What an injected failure does: signals, an exit, a number that is none, a flipped bit, a full disk, a torn file.

Every effect is real and the same each time: no random number, no simulated error. When they strike is decided in
`faults.py`. Next: `training/state.py`, whose tensors are hurt.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.checkpointing.names import MANIFEST_FILE, parse_sealed
from worker.checkpointing.parts import PartTensors
from worker.training.state import TrainingState

EXIT_CODE = 3
"""Of a trainer that ends itself."""
_FULL = Path("/dev/full")
"""Every write to it fails with ENOSPC, the kernel's own (see full(4))."""
_PATTERNS = {4: torch.int32, 8: torch.int64}
_FRACTION_BITS = {torch.float32: 23, torch.float64: 52}


class Impossible(Exception):
    """A fault that cannot happen to this trainer, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """What can be hurt."""

    state: TrainingState
    checkpoints: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be hurt. An empty part is the first expert that the victim holds."""

    whole_node: bool
    part: str
    tensor: str
    bit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """`possible` says whether it can happen now; it raises Impossible when it never can. `strike` does it."""

    strike: Callable[[Victim, Target], None]
    possible: Callable[[Victim, Target], bool]


def _now(victim: Victim, target: Target) -> bool:
    return True


def _signal(number: signal.Signals) -> Effect:
    def strike(victim: Victim, target: Target) -> None:
        """The agent first (the parent process), then this process."""
        if target.whole_node:
            os.kill(os.getppid(), number)
        os.kill(os.getpid(), number)

    return Effect(strike=strike, possible=_now)


def _exit(victim: Victim, target: Target) -> None:
    """End as after a fatal error: at once, with a status and no signal."""
    os._exit(EXIT_CODE)


def _part(victim: Victim, target: Target) -> int:
    """The number of the part that is meant. Raises Impossible."""
    state = victim.state
    if not target.part:
        if not state.held:
            raise Impossible("this trainer holds no expert; name another part, for example part=dense")
        return state.numbers.expert(state.held[0])
    part = state.numbers.number(target.part)
    if not state.holds(part):
        held = ", ".join(state.numbers.name(each) for each in range(state.parts) if state.holds(each))
        raise Impossible(f"this trainer does not hold {target.part}; it holds {held}")
    return part


def _holds(victim: Victim, target: Target) -> bool:
    _part(victim, target)
    return True


def _make_nan(victim: Victim, target: Target) -> None:
    """One element in the middle of the gradient of a part."""
    gradient_P = victim.state.gradient(_part(victim, target))
    gradient_P[gradient_P.numel() // 2] = float("nan")


def _flip(victim: Victim, target: Target) -> None:
    """One bit of the element in the middle of a tensor."""
    flip_bit(_tensor(victim.state.part(_part(victim, target)), target.tensor), target.bit)


def _tensor(part: PartTensors, name: str) -> Tensor:
    found = {"weights": part.weights, "m": part.m, "v": part.v}
    return found[name]


def flip_bit(tensor_P: Tensor, bit: int, index: int | None = None) -> None:
    """Flip `bit` (-1: the highest of the fraction) of one element, in the middle unless told where."""
    at = tensor_P.numel() // 2 if index is None else index
    bit = _FRACTION_BITS[tensor_P.dtype] - 1 if bit < 0 else bit
    width = 8 * tensor_P.element_size()
    mask = 1 << bit if bit < width - 1 else -(1 << bit)  # the highest bit is the sign of the integer
    tensor_P.detach().view(_PATTERNS[tensor_P.element_size()])[at : at + 1].bitwise_xor_(mask)


def fill_disk(file: Path) -> None:
    """What is written to `file` next fails for want of space, as the kernel says it, and to no other file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(_FULL)


def _sealed_shards(victim: Victim) -> list[Path]:
    """Shard files of the newest sealed checkpoint, in order of their ranks; empty while there is none."""
    root = victim.checkpoints
    names = [path.name for path in root.iterdir()] if root.exists() else []
    sealed = [checkpoint for name in names if (checkpoint := parse_sealed(name)) is not None]
    if not sealed:
        return []
    folder = root / max(sealed).folder
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST_FILE)


def _can_tear(victim: Victim, target: Target) -> bool:
    return bool(_sealed_shards(victim))


def _tear(victim: Victim, target: Target) -> None:
    """Half of a shard is gone, as after a file system that lost the end of a file."""
    shard = _sealed_shards(victim)[0]
    os.truncate(shard, shard.stat().st_size // 2)


EFFECTS = {
    "sigkill": _signal(signal.SIGKILL),
    "sigstop": _signal(signal.SIGSTOP),
    "exit": Effect(strike=_exit, possible=_now),
    "nan": Effect(strike=_make_nan, possible=_holds),
    "bitflip": Effect(strike=_flip, possible=_holds),
    "torn-shard": Effect(strike=_tear, possible=_can_tear),
}
