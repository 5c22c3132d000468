"""The experts of one layer on one device, forward and backward: ours against what torch offers, in the same run.

    python -m benchmarks.experts [--rows 32768] [--width 4096] [--expert-width 7168] [--experts 16] [--json FILE]

Contenders take turns, so that what the machine does besides falls on all alike. `dense` is one matrix product of as
many operations without experts: the ceiling. `grouped_mm` and `loop` hold their weights in the type that they compute
with, and have fresh gradients in it; ours, as in training, holds weights in float32, casts them each time, and adds
their gradients up in float32. Printed: medians with ranges, operations a second, and how many times ours each takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.noise import Spread
from worker.model.config import ModelConfig, Precision
from worker.model.experts import Experts

OURS = "understudy"
WARM_UP = 3
Pass = Callable[[], None]
"""One forward and backward."""


def main() -> None:
    """Measure, print, and write."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32768 if cuda else 512, help="tokens times top-k")
    parser.add_argument("--width", type=int, default=4096 if cuda else 128)
    parser.add_argument("--expert-width", type=int, default=7168 if cuda else 192)
    parser.add_argument("--experts", type=int, default=16 if cuda else 8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.manual_seed(7)
    device = torch.device("cuda" if cuda else "cpu")
    passes = contenders(device, given.rows, given.width, given.expert_width, given.experts)
    seconds = measured(passes, device, given.rounds)
    operations = 3 * 3 * 2.0 * given.rows * given.width * given.expert_width
    ours = seconds[OURS].median
    where = torch.cuda.get_device_name() if cuda else "one CPU process"
    print(f"{where}, {given.experts} experts of {given.width} x {given.expert_width}, {given.rows} rows")
    for name, spread in seconds.items():
        rate = operations / spread.median / 1e12
        print(
            f"{name:<12} {1000 * spread.median:8.2f} ms ({1000 * spread.low:.2f} to {1000 * spread.high:.2f})  "
            f"{rate:7.3g} TFLOP/s  {spread.median / ours:.2f} times ours"
        )
    if given.json is not None:
        found = {name: spread.mapping() for name, spread in seconds.items()}
        given.json.write_text(json.dumps({"device": where, "seconds": found}, indent=2) + "\n")


def contenders(
    device: torch.device, rows: int, width: int, expert_width: int, experts: int
) -> dict[str, Pass]:
    """Each with weights and inputs of its own; rows are dealt unevenly, as routers do."""
    precision = Precision.BFLOAT16 if device.type == "cuda" else Precision.FLOAT32
    dtype = precision.compute_dtype
    share = torch.rand(experts) + 0.5
    counts = (share / share.sum() * rows).long()
    counts[0] += rows - int(counts.sum())
    count_E = counts.to(device)
    x_RD = torch.randn(rows, width, device=device, dtype=dtype, requires_grad=True)
    grad_RD = torch.randn_like(x_RD)

    def made(*shape: int) -> Tensor:
        return (0.02 * torch.randn(shape, device=device)).to(dtype).requires_grad_()

    one, two = made(width, 2 * expert_width), made(expert_width, width)
    w13_EDG, w2_EFD = made(experts, width, 2 * expert_width), made(experts, expert_width, width)
    end_E = count_E.cumsum(0).to(torch.int32)
    leaves = [x_RD, one, two, w13_EDG, w2_EFD]

    def swiglu(both_RG: Tensor) -> Tensor:
        gate_RF, up_RF = both_RG.chunk(2, dim=1)
        return functional.silu(gate_RF) * up_RF

    def run(compute: Callable[[], Tensor]) -> Pass:
        def once() -> None:
            for leaf in leaves:
                leaf.grad = None
            compute().backward(grad_RD)

        return once

    def loop() -> Tensor:
        pieces = [
            swiglu(piece @ w13_EDG[expert]) @ w2_EFD[expert]
            for expert, piece in enumerate(x_RD.split(counts.tolist()))
        ]
        return torch.cat(pieces)

    def grouped() -> Tensor:
        hidden_RF = swiglu(functional.grouped_mm(x_RD, w13_EDG, offs=end_E))
        return functional.grouped_mm(hidden_RF, w2_EFD, offs=end_E)

    ours = _ours(device, width, expert_width, experts, precision)
    return {
        OURS: run(lambda: ours(x_RD, count_E, None if device.type == "cuda" else counts.tolist())),
        "dense": run(lambda: swiglu(x_RD @ one) @ two),
        "grouped_mm": run(grouped),
        "loop": run(loop),
    }


def _ours(device: torch.device, width: int, expert_width: int, experts: int, precision: Precision) -> Experts:
    config = ModelConfig(
        vocabulary=256,
        width=width,
        layers=1,
        heads=1,
        kv_heads=1,
        experts=experts,
        top_k=2,
        expert_width=expert_width,
        sequence_length=8,
        rope_theta=10000.0,
        norm_eps=1e-5,
        aux_loss=0.01,
        router_temperature=1.0,
        router_noise=0.0,
        precision=precision,
    )
    held = Experts(config)
    held.hold(range(experts))
    for name, weight in list(held.named_parameters()):
        filled = torch.nn.Parameter(0.02 * torch.randn(weight.shape, device=device, dtype=weight.dtype))
        filled.grad = torch.zeros_like(filled)
        setattr(held, name, filled)
    return held


def measured(passes: dict[str, Pass], device: torch.device, rounds: int) -> dict[str, Spread]:
    """Seconds of each contender, in turns."""

    def timed(once: Pass) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(WARM_UP + rounds):
        for name, once in passes.items():
            taken = timed(once)
            if turn >= WARM_UP:
                seconds[name].append(taken)
    found = {}
    for name, values in seconds.items():
        spread = Spread.of(values)
        assert spread is not None
        found[name] = spread
    return found


if __name__ == "__main__":
    main()
