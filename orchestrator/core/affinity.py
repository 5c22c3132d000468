"""Which experts a task uses most, from scores of all experts: what is trained where the job names a sample instead.

After ESFT (Wang and others, "Let the Expert Stick to His Last", arXiv 2407.01906): the fewest experts whose scores
reach a threshold together. ESFT chooses in each layer; here an expert is one unit over the layers of its stage, so
its score is the mean over them, and each stage of a pipeline chooses its own. Pure. The scores come from a process
with torch: `orchestrator/expert_choice.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.core.spec import JobSpec


def at_most(spec: JobSpec) -> int:
    """So many experts of a stage reach the threshold whatever their scores are: all of them are alike at worst."""
    experts = spec.model.experts
    return min(experts, math.ceil(spec.trainable.affinity.threshold * experts))


def chosen(spec: JobSpec, scores_by_layer: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Experts of all stages, ascending; `scores_by_layer` has a row for each layer of the model that sums to one."""
    assert len(scores_by_layer) == spec.model.layers, "a row for each layer"
    found: list[int] = []
    for stage in range(spec.pipeline.stages):
        rows = [scores_by_layer[layer] for layer in layers_of(spec, stage)]
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        found += [
            stage * spec.model.experts + each for each in _fewest(means, spec.trainable.affinity.threshold)
        ]
    return tuple(found)


def layers_of(spec: JobSpec, stage: int) -> list[int]:
    """The layers of a stage, as trainers divide them (`worker/model/stages.py`)."""
    count = spec.pipeline.stages
    each, more = divmod(spec.model.layers, count * spec.pipeline.chunks)
    places = [chunk * count + stage for chunk in range(spec.pipeline.chunks)]
    begins = [place * each + min(place, more) for place in places]
    return [
        layer
        for place, begin in zip(places, begins, strict=True)
        for layer in range(begin, begin + each + (place < more))
    ]


def _fewest(scores: Sequence[float], threshold: float) -> list[int]:
    """The best ones first, until they reach the threshold; ascending."""
    total, taken = 0.0, []
    for expert in sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert)):
        if total >= threshold:
            break
        taken.append(expert)
        total += scores[expert]
    return sorted(taken)
