"""The learning rate as a function of the step: linear warm-up, then one of three ways on.

`cosine` falls along half a cosine to a share of the peak at the last step. `wsd` (warm-up, stable, decay; MiniCPM,
arXiv 2404.06395) stays at the peak and falls in the last `decay_steps` only, by 1 - sqrt (arXiv 2405.18392), so that a
run can be prolonged from any checkpoint of its stable part. `constant` stays. Pure: no state to save or to lose. Next:
`optimizer.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Decay(Enum):
    """What follows the warm-up."""

    COSINE = "cosine"
    WSD = "wsd"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """The rate of each step of a job."""

    peak: float
    """At the end of the warm-up."""
    warmup_steps: int
    final_ratio: float
    """Share of the peak at `total_steps`, and after it; not used by `constant`."""
    total_steps: int
    decay: Decay = Decay.COSINE
    decay_steps: int = 0
    """Of `wsd`; 0 stands for a fifth of the job."""

    def at(self, step: int) -> float:
        """The rate of a step (from 1)."""
        assert step >= 1, f"steps count from 1, not {step}"
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.decay is Decay.CONSTANT:
            return self.peak
        if self.decay is Decay.COSINE:
            down = 0.5 * (1.0 - math.cos(math.pi * self._progress(step, self.warmup_steps)))
        else:
            decay_steps = self.decay_steps or -(-self.total_steps // 5)
            down = math.sqrt(self._progress(step, max(self.warmup_steps, self.total_steps - decay_steps)))
        return self.peak * (1.0 - (1.0 - self.final_ratio) * down)

    def _progress(self, step: int, first: int) -> float:
        """Share of the way from step `first` to the last step that has been gone."""
        return min(1.0, max(0, step - first) / max(1, self.total_steps - first))
