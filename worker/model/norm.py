"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467).

Shapes: any leading ones, then D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.config import ModelConfig


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, and scales. The statistic is float32 at least."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._eps = config.norm_eps
        self.scale_D = nn.Parameter(
            torch.empty(config.width, dtype=config.precision.parameter_dtype, device="meta")
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.scale_D.shape, self.scale_D.to(x.dtype), self._eps)
