"""How the model is computed, where that changes memory and speed and not a single bit of what is computed.

What lives here: the settings, and `recomputed`, which runs a block without keeping what its backward pass needs. What
must not: the blocks. Those that meet other ranks are never recomputed: a second dispatch in the backward pass would be
an exchange that the others do not take part in. So attention and experts may be recomputed, routing and dispatch keep
what they need (indices, and the rows that arrived). Next: `transformer.py`, `moe.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, TypeVarTuple, cast

from torch.utils.checkpoint import checkpoint

from worker.model.fields import read_fields

Inputs = TypeVarTuple("Inputs")
Result = TypeVar("Result")


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it (activation checkpointing, arXiv 1604.06174)."""

    NOTHING = "nothing"
    ATTENTION = "attention"
    """Norm and attention of each layer: its input is kept."""
    EXPERTS = "experts"
    """Of each layer's experts only the rows that arrived are kept, not the wider ones in between."""
    ALL = "all"
    """Both."""

    @property
    def attention(self) -> bool:
        return self in (Recompute.ATTENTION, Recompute.ALL)

    @property
    def experts(self) -> bool:
        return self in (Recompute.EXPERTS, Recompute.ALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    """The job's `compute` section."""

    recompute: Recompute = Recompute.NOTHING

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> ComputeConfig:
        """Reads the section, strictly. Raises FieldError."""
        return read_fields(cls, values, "compute")


def recomputed(block: Callable[[*Inputs], Result], *inputs: *Inputs) -> Result:
    """The block's result; its inputs are kept, and it runs again in the backward pass. No block here is random."""
    return cast(Result, checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False))
