"""The learning rate as a function of the step: linear warm-up, then a half cosine down to a share of the peak.

Pure: no state to save or to lose. Next: `optimizer.py`.
"""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, final_ratio: float, total_steps: int
) -> float:
    """The rate of a step (from 1): `peak` at the end of the warm-up, `peak * final_ratio` from `total_steps` on."""
    assert step >= 1, f"steps count from 1, not {step}"
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
