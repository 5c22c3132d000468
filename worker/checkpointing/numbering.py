"""Parts as integers, for those who keep things by part: dense parts first, stage by stage, then every expert. Pure.

With one stage 0 is dense and e + 1 is expert e. With several, 0 to `stages` - 1 are their dense parts, and the experts
follow: the id of an expert counts through the stages, so that experts [s * E, (s + 1) * E) are those of stage s. An
expert in this sense is the weights of one expert in every layer of its stage. Next: `names.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.checkpointing.names import dense_part, dense_stage, expert_index, expert_part


@dataclass(frozen=True, slots=True, kw_only=True)
class PartNumbers:
    """The parts of a job."""

    stages: int
    experts: int
    """Of each stage: as many as a layer has."""

    @property
    def count(self) -> int:
        return self.stages * (1 + self.experts)

    @property
    def all_experts(self) -> int:
        """Of all stages together."""
        return self.stages * self.experts

    def dense(self, stage: int) -> int:
        """The dense part of a stage."""
        return stage

    def expert(self, expert: int) -> int:
        """The part of an expert, by its id among those of all stages."""
        return self.stages + expert

    def is_dense(self, part: int) -> bool:
        return part < self.stages

    def expert_of(self, part: int) -> int:
        """The inverse of `expert`."""
        return part - self.stages

    def stage_of(self, part: int) -> int:
        """Whose layers the part has."""
        return part if self.is_dense(part) else self.expert_of(part) // self.experts

    def experts_of(self, stage: int) -> range:
        """Ids of a stage's experts."""
        return range(stage * self.experts, (stage + 1) * self.experts)

    def name(self, part: int) -> str:
        """As checkpoints and trainers among each other call it."""
        return dense_part(part) if self.is_dense(part) else expert_part(self.expert_of(part))

    def number(self, name: str) -> int:
        """The inverse of `name`. Raises ValueError for a name of no part of this job."""
        stage, expert = dense_stage(name), expert_index(name)
        if stage is not None and stage < self.stages:
            return self.dense(stage)
        if expert is not None and expert < self.all_experts:
            return self.expert(expert)
        raise ValueError(f"{name!r} names no part of {self.stages} stages with {self.experts} experts each")
