"""The parts of all stages put together: what a checkpoint of a pipeline is as one model.

Tensors have the same names in a stage's part and in the whole model's, so each is copied to where the whole model has
it. What must not live here: reading (`opened.py`).

Shapes: P dense parameters, N parameters of one expert, E experts of a layer, of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.checkpointing.numbering import PartNumbers
from worker.model.config import ModelConfig
from worker.model.parts import PartLayout, dense_layout, expert_layout
from worker.model.stages import Stages


def stages_of(job: Mapping[str, object], config: ModelConfig) -> Stages:
    """How the job of a checkpoint divided its layers; older ones say nothing of it and did not."""
    section = job.get("pipeline", {})
    assert isinstance(section, Mapping), "the manifest's config has a section pipeline"
    count, chunks = (int(str(section.get(name, 1))) for name in ("stages", "chunks"))
    return Stages(layers=config.layers, count=count, chunks=chunks)


def empty_parts(config: ModelConfig, stages: Stages, dtype: torch.dtype) -> dict[str, Tensor]:
    """Room for the weights of every part, by name."""
    numbers = PartNumbers(stages=stages.count, experts=config.experts)
    rows: dict[str, Tensor] = {}
    for part in range(numbers.count):
        share = stages.share(numbers.stage_of(part))
        layout = dense_layout(config, share) if numbers.is_dense(part) else expert_layout(config, share)
        rows[numbers.name(part)] = torch.empty(layout.length, dtype=dtype)
    return rows


def gather(config: ModelConfig, stages: Stages, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The dense part, [P], and the experts, [E, N], of the whole model."""
    numbers = PartNumbers(stages=stages.count, experts=config.experts)
    dense, expert = dense_layout(config), expert_layout(config)
    like = parts[numbers.name(0)]
    dense_P, experts_EN = like.new_zeros(dense.length), like.new_zeros(config.experts, expert.length)
    for stage in range(stages.count):
        share = stages.share(stage)
        own = dense_layout(config, share), expert_layout(config, share)
        _place(own[0], parts[numbers.name(numbers.dense(stage))], dense, dense_P)
        for row, part in zip(experts_EN, map(numbers.expert, numbers.experts_of(stage)), strict=True):
            _place(own[1], parts[numbers.name(part)], expert, row)
    return dense_P, experts_EN


def _place(own: PartLayout, source: Tensor, whole: PartLayout, target: Tensor) -> None:
    where = {entry.name: entry.span for entry in whole.entries}
    for entry in own.entries:
        target[where[entry.name]] = source[entry.span]
