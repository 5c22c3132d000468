"""Version 0 of every part: what the weights are before the first step.

A tensor's values depend on the job's seed, its name and, for experts, the expert's global id: not on where it is
placed, on the number of ranks, or on what was drawn before. So any trainer can make version 0 of any part, and all
make the same bits: the numbers are drawn as float32 from an integer generator and scaled by one multiplication, which
rounds alike on every processor. What must not live here: layouts (`parts.py`).

Shapes: P elements of the dense part; N elements of one expert's part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.model.config import ModelConfig
from worker.model.parts import Entry, PartLayout, dense_layout, expert_layout
from worker.model.randomness import stream
from worker.model.stages import Share


def initialise_dense(config: ModelConfig, seed: int, out_P: Tensor, share: Share | None = None) -> None:
    """Writes version 0 of the dense part of a stage, or of everything: the same numbers for each tensor."""
    _initialise(dense_layout(config, share), seed, "dense", out_P)


def initialise_expert(
    config: ModelConfig, seed: int, expert: int, out_N: Tensor, share: Share | None = None
) -> None:
    """Writes version 0 of the part of one expert, given by its id within a layer; the same numbers in any stage."""
    _initialise(expert_layout(config, share), seed, f"expert {expert}", out_N)


def _initialise(layout: PartLayout, seed: int, part: str, out: Tensor) -> None:
    assert out.shape == (layout.length,), f"{part}: {tuple(out.shape)} given, {layout.length} elements needed"
    out.zero_()
    for entry in layout.entries:
        out[entry.offset : entry.offset + entry.elements].copy_(_values(entry, seed, part))


def _values(entry: Entry, seed: int, part: str) -> Tensor:
    if entry.std is None:
        return torch.ones(entry.elements)
    # Uniform: a normal would go through logarithms, which processors round differently.
    drawn = torch.rand(entry.elements, generator=stream(seed, "weights", part, entry.name))
    return drawn.sub_(0.5).mul_(entry.std * math.sqrt(12.0))
