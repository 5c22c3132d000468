"""The experts that this trainer holds: y = w2(silu(w1 x) * w3 x), each on its own rows.

What lives here: the parameters of the experts held, and the two ways to compute them. What must not: which rank holds
what, and how rows get here (dispatch).

Gradients of expert weights are added straight into `.grad` where there is one (the trainer's flat buffers), and only
otherwise handed to autograd: that saves writing, reading and adding a whole copy of the weights per microbatch, and
`.grad` may be a strided view, which autograd's own accumulation warns about. Where only some experts are trained,
`sinks` names the place of each one's gradient, and the others have none.

Shapes: E experts held here (slots); R rows, sorted by slot; D width; F expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.config import ModelConfig

GROUPED_ROW_BYTES = 16
Sinks = Sequence[Tensor | None]
"""By slot: where the gradient of an expert's weight is added up; None for an expert that is not trained."""


class Experts(nn.Module):
    """SwiGLU experts (arXiv 2002.05202) by slot; `ids[slot]` is the global id of the expert in it."""

    w1_EFD: nn.Parameter
    w3_EFD: nn.Parameter
    w2_EDF: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.ids: tuple[int, ...] = ()
        self.sinks: dict[str, Sinks] = {}
        self.hold(())

    def hold(self, ids: Sequence[int]) -> None:
        """Makes room for these experts and forgets the former ones; `parts.bind` then gives the weights a place."""
        assert list(ids) == sorted(set(ids)), f"experts are held in ascending order, each once: {ids}"
        assert all(0 <= expert < self._config.experts for expert in ids), f"no such expert among {ids}"
        self.ids = tuple(ids)
        self.sinks = {}
        E, D, F = len(ids), self._config.width, self._config.expert_width
        dtype = self._config.precision.parameter_dtype
        self.w1_EFD = nn.Parameter(torch.empty(E, F, D, dtype=dtype, device="meta"))
        self.w3_EFD = nn.Parameter(torch.empty(E, F, D, dtype=dtype, device="meta"))
        self.w2_EDF = nn.Parameter(torch.empty(E, D, F, dtype=dtype, device="meta"))

    def forward(self, rows_RD: Tensor, count_E: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """`counts` are those of `count_E` on the host; without them a loop over the experts waits for the device."""
        grouped = grouped_is_faster(rows_RD, self.w1_EFD)
        kind = _GroupedSwiglu if grouped else _LoopSwiglu
        if counts is not None and not grouped:
            count_E = torch.tensor(counts, dtype=torch.int64)
        sinks = [self.sinks.get(name) for name in ("w1_EFD", "w3_EFD", "w2_EDF")]
        y_RD = kind.apply(rows_RD, count_E, sinks, self.w1_EFD, self.w3_EFD, self.w2_EDF)  # type: ignore[no-untyped-call]
        return cast(Tensor, y_RD)


def grouped_is_faster(rows_RD: Tensor, w1_EFD: Tensor) -> bool:
    """Whether one grouped matrix product beats a loop over the experts.

    Measured, forward and backward with casts and accumulation. One CPU thread (AVX-512; 8 experts, width 128, expert
    width 192), loop against grouped: float32 1.7 and 2.6 ms at 256 rows; bfloat16 2.8 and 3.9 ms at 512 rows; float64
    is not offered. One H200 in bfloat16 (16 experts): 3.8 and 0.8 ms at 512 x 1024 and 4,096 rows; 37 and 40 ms
    (467 and 430 TFLOP/s) at 4096 x 7168 and 32,768 rows; 64 experts, 1024 x 512, 16,384 rows: 12.7 and 1.4 ms. In
    other types grouped_mm is a loop itself. It also wants rows of whole multiples of 16 bytes.
    """
    aligned = all(size * rows_RD.element_size() % GROUPED_ROW_BYTES == 0 for size in w1_EFD.shape[1:])
    return rows_RD.is_cuda and rows_RD.dtype == torch.bfloat16 and aligned


class _LoopSwiglu(torch.autograd.Function):
    """Expert after expert. Experts without rows are skipped, and without any rows nothing is computed at all."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, count_E: Tensor, sinks: Sequence[Sinks | None], *weights: Tensor
    ) -> Tensor:
        w1_EFD, w3_EFD, w2_EDF = (weight.to(x_RD.dtype) for weight in weights)
        counts = count_E.tolist()
        busy = [slot for slot, count in enumerate(counts) if count]
        gate_RF = x_RD.new_empty(x_RD.shape[0], w1_EFD.shape[1])
        up_RF = torch.empty_like(gate_RF)
        x, gate, up = (rows.split(counts) for rows in (x_RD, gate_RF, up_RF))
        w1, w3, w2 = (weight.mT.unbind() for weight in (w1_EFD, w3_EFD, w2_EDF))
        for slot in busy:
            torch.mm(x[slot], w1[slot], out=gate[slot])
            torch.mm(x[slot], w3[slot], out=up[slot])
        active_RF = functional.silu(gate_RF)
        hidden_RF = active_RF * up_RF
        y_RD = torch.empty_like(x_RD)
        hidden, y = (rows.split(counts) for rows in (hidden_RF, y_RD))
        for slot in busy:
            torch.mm(hidden[slot], w2[slot], out=y[slot])
        ctx.save_for_backward(x_RD, gate_RF, active_RF, up_RF, hidden_RF, w1_EFD, w3_EFD, w2_EDF)
        ctx.counts, ctx.busy, ctx.sinks, ctx.weights = counts, busy, sinks, weights
        return y_RD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, gate_RF, active_RF, up_RF, hidden_RF, *weights = ctx.saved_tensors
        grad_RD = gradients[0].contiguous()
        totals = _totals(ctx.weights, ctx.sinks)
        sink1, sink3, sink2 = _by_slot(totals, ctx.sinks)
        w1, w3, w2 = (weight.unbind() for weight in weights)
        x, hidden, grad = (rows.split(ctx.counts) for rows in (x_RD, hidden_RF, grad_RD))
        grad_hidden_RF = torch.empty_like(hidden_RF)
        grad_hidden = grad_hidden_RF.split(ctx.counts)
        for slot in ctx.busy:
            torch.mm(grad[slot], w2[slot], out=grad_hidden[slot])
            _accumulate(sink2, slot, grad[slot], hidden[slot])
        grad_gate_RF, grad_up_RF = _swiglu_backward(grad_hidden_RF, gate_RF, active_RF, up_RF)
        grad_x_RD = torch.empty_like(x_RD)
        grad_x, grad_gate, grad_up = (
            rows.split(ctx.counts) for rows in (grad_x_RD, grad_gate_RF, grad_up_RF)
        )
        for slot in ctx.busy:
            torch.mm(grad_gate[slot], w1[slot], out=grad_x[slot]).addmm_(grad_up[slot], w3[slot])
            _accumulate(sink1, slot, grad_gate[slot], x[slot])
            _accumulate(sink3, slot, grad_up[slot], x[slot])
        return grad_x_RD, None, None, *_left_for_autograd(ctx.weights, totals)


class _GroupedSwiglu(torch.autograd.Function):
    """All experts in one product each way; w1 and w3 lie side by side, so that the rows are read once for both.

    Counts stay on the device. `grouped_mm` wants contiguous gradients and leaves rows past the last group unset: the
    rows here are exactly those of the groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, count_E: Tensor, sinks: Sequence[Sinks | None], *weights: Tensor
    ) -> Tensor:
        w1_EFD, w3_EFD, w2_EDF = weights
        E, F, D = w1_EFD.shape
        w13_EGD = x_RD.new_empty(E, 2 * F, D)
        w13_EGD[:, :F] = w1_EFD
        w13_EGD[:, F:] = w3_EFD
        w2_EDF = w2_EDF.to(x_RD.dtype).contiguous()
        end_E = count_E.cumsum(0).to(torch.int32)
        both_RG = _grouped(x_RD, w13_EGD.transpose(1, 2), end_E)
        gate_RF, up_RF = both_RG.chunk(2, dim=1)
        hidden_RF = functional.silu(gate_RF).mul_(up_RF)
        ctx.save_for_backward(x_RD, both_RG, hidden_RF, w13_EGD, w2_EDF, end_E)
        ctx.sinks, ctx.weights = sinks, weights
        return _grouped(hidden_RF, w2_EDF.transpose(1, 2), end_E)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, both_RG, hidden_RF, w13_EGD, w2_EDF, end_E = ctx.saved_tensors
        grad_RD = gradients[0].contiguous()
        totals = _totals(ctx.weights, ctx.sinks)
        sink1, sink3, sink2 = _by_slot(totals, ctx.sinks)
        gate_RF, up_RF = both_RG.chunk(2, dim=1)
        grad_hidden_RF = _grouped(grad_RD, w2_EDF, end_E)
        grad_both_RG = torch.empty_like(both_RG)
        grad_gate_RF, grad_up_RF = grad_both_RG.chunk(2, dim=1)
        torch.mul(grad_hidden_RF, functional.silu(gate_RF), out=grad_up_RF)
        torch.ops.aten.silu_backward.grad_input(grad_hidden_RF.mul_(up_RF), gate_RF, grad_input=grad_gate_RF)
        grad_x_RD = _grouped(grad_both_RG, w13_EGD, end_E)
        if x_RD.shape[0] > 0:
            if any(sink is not None for sink in sink2):
                _add(totals[2], sink2, functional.grouped_mm(grad_RD.t(), hidden_RF, offs=end_E))
            if any(sink is not None for sink in (*sink1, *sink3)):
                grad_EGD = functional.grouped_mm(grad_both_RG.t(), x_RD, offs=end_E)
                grad1_EFD, grad3_EFD = grad_EGD.chunk(2, dim=1)
                _add(totals[0], sink1, grad1_EFD)
                _add(totals[1], sink3, grad3_EFD)
        return grad_x_RD, None, None, *_left_for_autograd(ctx.weights, totals)


def _grouped(x_RD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:
    if x_RD.shape[0] == 0:
        return x_RD.new_empty(0, w_EDF.shape[2])
    return functional.grouped_mm(x_RD, w_EDF, offs=end_E)


def _swiglu_backward(
    grad_RF: Tensor, gate_RF: Tensor, active_RF: Tensor, up_RF: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, where active = silu(gate) and hidden = active * up."""
    grad_gate_RF = torch.ops.aten.silu_backward(grad_RF * up_RF, gate_RF)
    return grad_gate_RF, grad_RF * active_RF


def _totals(weights: Sequence[Tensor], sinks: Sequence[Sinks | None]) -> list[Tensor | None]:
    """Where the gradient of each whole weight is added up: its `.grad`, fresh zeros, or nowhere.

    Nowhere if it is frozen, or if its experts have places of their own.
    """
    return [
        None
        if own is not None or not weight.requires_grad
        else torch.zeros_like(weight)
        if weight.grad is None
        else weight.grad
        for weight, own in zip(weights, sinks, strict=True)
    ]


def _by_slot(totals: Sequence[Tensor | None], sinks: Sequence[Sinks | None]) -> list[Sinks]:
    """For each weight, the place of each expert's gradient; no places at all where nothing is trained."""
    return [
        own if own is not None else () if total is None else total.unbind()
        for total, own in zip(totals, sinks, strict=True)
    ]


def _accumulate(sinks: Sinks, slot: int, grad: Tensor, rows: Tensor) -> None:
    sink = sinks[slot] if sinks else None
    if sink is None:
        return
    if sink.dtype == rows.dtype:
        sink.addmm_(grad.t(), rows)
    else:
        sink.add_(torch.mm(grad.t(), rows))


def _add(total_EFD: Tensor | None, sinks: Sinks, grad_EFD: Tensor) -> None:
    """Gradients of all experts at once: in one addition where they lie together."""
    if total_EFD is not None:
        total_EFD += grad_EFD
        return
    for slot, sink in enumerate(sinks):
        if sink is not None:
            sink += grad_EFD[slot]


def _left_for_autograd(weights: Sequence[Tensor], totals: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Only the sums that are not the weights' own gradients already."""
    return [None if total is weight.grad else total for weight, total in zip(weights, totals, strict=True)]
