"""How many samples a step has, and which ids are whose: step s takes ids [(s-1)*B, s*B), microbatch i a slice of them.

What must not live here: what a sample is (`worker/data/windows.py`), and who computes which microbatch (the deal).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.model.fields import read_fields, require


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How many samples a step has."""

    microbatches: int
    microbatch_size: int

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> BatchConfig:
        """Reads the job's `batch` section, strictly. Raises FieldError."""
        return read_fields(cls, values, "batch")

    def __post_init__(self) -> None:
        for name in ("microbatches", "microbatch_size"):
            require(getattr(self, name) >= 1, f"batch.{name}", getattr(self, name), "1 or more is needed")

    @property
    def samples_per_step(self) -> int:
        return self.microbatches * self.microbatch_size

    def microbatch_ids(self, step: int, microbatch: int) -> range:
        """Sample ids of one microbatch (counted from 0) of a step (counted from 1)."""
        assert step >= 1, f"steps count from 1, not {step}"
        assert 0 <= microbatch < self.microbatches, f"no microbatch {microbatch} among {self.microbatches}"
        first = (step - 1) * self.samples_per_step + microbatch * self.microbatch_size
        return range(first, first + self.microbatch_size)

    def step_ids(self, step: int) -> range:
        """Sample ids of a whole step."""
        first = self.microbatch_ids(step, 0).start
        return range(first, first + self.samples_per_step)
