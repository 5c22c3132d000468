"""What must also hold on a CUDA device: the grouped product with empty experts, empty batches, equal bits.

Shapes: E experts held; R rows; D width; F expert width.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tests.unit.worker.model.models import Bound, bound_model, random_windows, small_config
from worker.model.config import Precision
from worker.model.experts import Experts, grouped_is_faster
from worker.model.parts import bind
from worker.model.router import ForwardContext
from worker.model.transformer import Transformer
from worker.parallel.dispatch import LocalDispatcher
from worker.training.learning_rate import Decay
from worker.training.optimizer import AdamW, OptimizerConfig, PartState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

GPU = torch.device("cuda")
CONFIG = small_config(
    Precision.BFLOAT16, width=64, heads=4, expert_width=48, experts=6, sequence_length=32, router_noise=0.02
)


def moved(bound: Bound) -> Bound:
    """The same model on the GPU."""
    config = bound.model.config
    buffers = {f.name: getattr(bound, f.name).to(GPU) for f in fields(bound) if f.name != "model"}
    model = Transformer(config, seed=7, dispatcher=LocalDispatcher(config.experts), device=GPU)
    bind(model, config, **buffers)
    return Bound(model=model, **buffers)


@pytest.mark.parametrize("counts", [[16, 0, 24, 1], [0, 0, 0, 0], [0, 40, 0, 0], [0, 0, 0, 7]])
def test_grouped_experts_equal_the_loop(counts: list[int]) -> None:
    """Also where an expert has no rows, which once hung the backward pass, and where none has."""
    generator = torch.Generator().manual_seed(0)
    D, F, E = CONFIG.width, CONFIG.expert_width, len(counts)
    results: list[list[Tensor]] = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (GPU, torch.bfloat16)):
        generator.manual_seed(0)
        rows_EN = torch.randn(E, 3 * D * F, generator=generator).to(device) / 8
        grad_EN = torch.zeros_like(rows_EN)
        experts = Experts(replace(CONFIG, experts=E))
        experts.hold(range(E))
        for index, (name, shape) in enumerate(
            [("w1_EFD", (E, F, D)), ("w3_EFD", (E, F, D)), ("w2_EDF", (E, D, F))]
        ):
            span = slice(index * D * F, (index + 1) * D * F)
            weight = torch.nn.Parameter(rows_EN[:, span].view(shape))
            weight.grad = grad_EN[:, span].view(shape)
            setattr(experts, name, weight)
        x_RD = torch.randn(sum(counts), D, generator=generator).to(device, dtype).requires_grad_()
        assert grouped_is_faster(x_RD, experts.w1_EFD) is (device == GPU)
        y_RD = experts(x_RD, torch.tensor(counts, device=device))
        y_RD.square().sum().backward()
        assert x_RD.grad is not None
        results.append([value.detach().float().cpu() for value in (y_RD, x_RD.grad, grad_EN)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).norm()) <= 0.03 * float(theirs.norm()) + 1e-3


@pytest.mark.parametrize("sequences", [4, 0])
def test_the_model_is_that_of_the_cpu(sequences: int) -> None:
    there, here = bound_model(replace(CONFIG, precision=Precision.FLOAT32)), moved(bound_model(CONFIG))
    window_BC = random_windows(CONFIG, sequences)
    theirs, ours = there.loss(window_BC), here.loss(window_BC.to(GPU))
    theirs.objective.backward()
    ours.objective.backward()
    assert ours.objective.item() == pytest.approx(theirs.objective.item(), rel=0.01)
    for name in ("dense_grad_P", "experts_grad_EN"):
        mine, other = getattr(here, name).cpu(), getattr(there, name)
        assert float((mine - other).norm()) <= 0.1 * float(other.norm()), name


def test_noise_and_float64_choices_do_not_depend_on_the_device() -> None:
    config = replace(CONFIG, precision=Precision.FLOAT64)
    there = bound_model(config)
    here = moved(there)
    tokens_BS = random_windows(config, 4)[:, :-1]
    context = ForwardContext(step=3, microbatch=2)
    ours, theirs = here.model(tokens_BS.to(GPU), context), there.model(tokens_BS, context)
    assert torch.equal(ours.count_LE.cpu(), theirs.count_LE)
    torch.testing.assert_close(ours.logits_BSV.cpu(), theirs.logits_BSV, rtol=1e-9, atol=1e-9)


def test_two_backward_passes_give_the_same_bits() -> None:
    window_BC = random_windows(CONFIG, 8).to(GPU)
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            bound = moved(bound_model(CONFIG))
            bound.loss(window_BC).objective.backward()
            gradients.append((bound.dense_grad_P, bound.experts_grad_EN))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_row_is_updated_to_the_same_bits_wherever_it_lies() -> None:
    generator = torch.Generator().manual_seed(1)
    start_EN: Tensor = torch.randn(4, 64 * 1001, generator=generator).to(GPU)
    grad_EN: Tensor = torch.randn(4, 64 * 1001, generator=generator).to(GPU)
    config = OptimizerConfig(
        learning_rate=0.02,
        warmup_steps=3,
        schedule=Decay.COSINE,
        final_learning_rate_ratio=0.1,
        decay_steps=0,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
    )

    def played(held: list[int]) -> Tensor:
        weight_EN, m_EN, v_EN = (
            start_EN[held],
            torch.zeros_like(start_EN[held]),
            torch.zeros_like(start_EN[held]),
        )
        for step in range(1, 5):
            for row, expert in enumerate(held):
                part = PartState(
                    weight_P=weight_EN[row], m_P=m_EN[row], v_P=v_EN[row], decay_length=64 * 1001
                )
                AdamW(config, total_steps=9).update(part, grad_EN[expert], step=step, clip=0.4)
        return weight_EN[held.index(2)]

    assert torch.equal(played([2]), played([0, 1, 2, 3]))
