"""One part's state as flat tensors, and their bytes: weights and two moments, or weights alone where it is frozen.

Nothing here copies or stores anything: `snapshot` copies parts, `reader` and `fetch` fill them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTensors:
    """Weights and AdamW's m and v of one part: one-dimensional, contiguous, of one dtype, length and device.

    A part that is not trained is frozen: its m and v have no elements. The tensors are the caller's: views into its
    buffers, not copies.
    """

    weights: Tensor
    m: Tensor
    v: Tensor

    def __post_init__(self) -> None:
        for tensor in self.in_order():
            assert tensor.dim() == 1 and tensor.is_contiguous() and tensor.numel() > 0
            assert tensor.dtype in _DTYPES.values()
            assert tensor.dtype == self.weights.dtype and tensor.numel() == self.weights.numel()
            assert tensor.device == self.weights.device
        assert self.m.numel() == self.v.numel(), "a part has both moments or none"

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> PartTensors:
        """The inverse of `in_order`: three tensors, or the weights alone of a frozen part."""
        assert len(tensors) in (1, 3), f"a part is one tensor or three, not {len(tensors)}"
        nothing = tensors[0].new_empty(0)
        weights, m, v = (*tensors, nothing, nothing)[:3]
        return cls(weights=weights, m=m, v=v)

    @property
    def frozen(self) -> bool:
        """Whether there are weights only."""
        return self.m.numel() == 0

    def in_order(self) -> tuple[Tensor, ...]:
        """The tensors in the order in which they lie in files and on the wire (`names.KINDS`)."""
        return (self.weights,) if self.frozen else (self.weights, self.m, self.v)

    @property
    def length(self) -> int:
        """Elements in each tensor."""
        return self.weights.numel()

    @property
    def precision(self) -> str:
        """float32 or float64."""
        return precision_of(self.weights.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return len(self.in_order()) * self.length * self.weights.element_size()


def precision_of(dtype: torch.dtype) -> str:
    """The name that manifests and frames use for a dtype."""
    for name, known in _DTYPES.items():
        if dtype == known:
            return name
    raise AssertionError(f"state is kept in {', '.join(_DTYPES)}, not in {dtype}")


def dtype_of(precision: str) -> torch.dtype:
    """The inverse of `precision_of`."""
    return _DTYPES[precision]


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory, without a copy; writing to it writes to the tensor."""
    assert tensor.device.type == "cpu" and tensor.is_contiguous()
    return tensor.detach().numpy().data.cast("B")


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. The sum settles it in one pass unless it overflows by itself."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
