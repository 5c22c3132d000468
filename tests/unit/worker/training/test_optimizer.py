"""AdamW against torch's own, and bit for bit against itself in other company.

Shapes: E rows; N elements of a row; P elements of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from orchestrator.core import spec
from worker.model.fields import FieldError
from worker.training.learning_rate import Decay
from worker.training.optimizer import AdamW, OptimizerConfig, PartState, clip_coefficient

CONFIG = OptimizerConfig(
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


def randoms(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fresh(weight_P: Tensor, decay_length: int) -> PartState:
    weight_P = weight_P.clone()
    return PartState(
        weight_P=weight_P,
        m_P=torch.zeros_like(weight_P),
        v_P=torch.zeros_like(weight_P),
        decay_length=decay_length,
    )


@pytest.mark.parametrize("decay_length", [0, 64, 192])
def test_equal_to_the_optimizer_of_torch(decay_length: int) -> None:
    part = fresh(randoms((192,)), decay_length)
    leaves = [
        piece.clone().requires_grad_() for piece in part.weight_P.split([decay_length, 192 - decay_length])
    ]
    oracle = torch.optim.AdamW(
        [{"params": [leaves[0]], "weight_decay": 0.1}, {"params": [leaves[1]], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    ours = AdamW(CONFIG, total_steps=20)
    for step in range(1, 21):
        grad_P = randoms((192,), seed=step)
        clip = clip_coefficient(float(grad_P.norm()), CONFIG.clip_norm)
        for leaf, grad in zip(leaves, (grad_P * clip).split([decay_length, 192 - decay_length]), strict=True):
            leaf.grad = grad.clone()
        for group in oracle.param_groups:
            group["lr"] = ours.learning_rate(step)
        oracle.step()
        ours.update(part, grad_P, step=step, clip=clip)
        torch.testing.assert_close(part.weight_P, torch.cat(leaves).detach(), rtol=1e-12, atol=1e-14)


def test_gradients_are_left_for_a_replay() -> None:
    part, grad_P = fresh(randoms((128,)), 128), randoms((128,), seed=1)
    before = grad_P.clone()
    AdamW(CONFIG, total_steps=9).update(part, grad_P, step=1, clip=0.5)
    assert torch.equal(grad_P, before)


def test_padding_stays_zero() -> None:
    part = fresh(torch.zeros(64), 64)
    optimizer = AdamW(CONFIG, total_steps=9)
    for step in (1, 2, 3):
        optimizer.update(part, torch.zeros(64), step=step, clip=1.0)
    assert not bool(part.weight_P.any()) and not bool(part.m_P.any()) and not bool(part.v_P.any())


def displaced(like: Tensor, offset: int) -> Tensor:
    """The same numbers at an address that is a multiple of nothing."""
    room = torch.empty(like.numel() + offset, dtype=like.dtype)
    room[offset:] = like.reshape(-1)
    return room[offset:].view(like.shape)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(former)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [64, 64 * 57, 64 * 1001, 37, 100_003])
def test_a_row_is_updated_to_the_same_bits_wherever_it_lies(
    dtype: torch.dtype, width: int, threads: int
) -> None:
    """The same expert on three ranks: alone, third of five, and at odd addresses after a copy. Six steps each."""
    grads_EN = [randoms((5, width), dtype, seed=step) for step in range(1, 7)]
    start_EN = randoms((5, width), dtype, seed=99)

    def played(held: list[int], offset: int) -> list[Tensor]:
        weight_EN = displaced(start_EN[held], offset)
        m_EN = displaced(torch.zeros_like(weight_EN), 2 * offset)
        v_EN = displaced(torch.zeros_like(weight_EN), 3 * offset)
        optimizer = AdamW(CONFIG, total_steps=50)
        for step, grad_EN in enumerate(grads_EN, start=1):
            local_EN = displaced(grad_EN[held], 5 * offset)
            for row in range(len(held)):
                part = PartState(weight_P=weight_EN[row], m_P=m_EN[row], v_P=v_EN[row], decay_length=width)
                optimizer.update(part, local_EN[row], step=step, clip=0.37)
        mine = held.index(3)
        return [weight_EN[mine], m_EN[mine], v_EN[mine]]

    alone = played([3], 0)
    for other in (played([0, 1, 3, 4], 0), played([3, 4], 1), played([2, 3], 7)):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, played([3], 0), strict=True))


def test_one_row_can_be_replayed_alone_from_logged_gradients() -> None:
    """A newcomer copies a row at version 2 and applies the gradients of steps 3 to 5 later."""
    live = [fresh(randoms((256,), torch.float32, seed=e), 256) for e in range(3)]
    optimizer = AdamW(CONFIG, total_steps=50)
    log: list[tuple[int, float, Tensor]] = []
    staged = live[1]
    for step in range(1, 6):
        clip = 1.0 / step
        for expert, part in enumerate(live):
            grad_P = randoms((256,), torch.float32, seed=10 * step + expert)
            if expert == 1 and step > 2:
                log.append((step, clip, grad_P))
            optimizer.update(part, grad_P, step=step, clip=clip)
        if step == 2:
            copies = {name: getattr(live[1], name).clone() for name in ("weight_P", "m_P", "v_P")}
            staged = replace(live[1], **copies)
    for step, clip, grad_P in log:
        AdamW(CONFIG, total_steps=50).update(staged, grad_P, step=step, clip=clip)
    for name in ("weight_P", "m_P", "v_P"):
        assert torch.equal(getattr(staged, name), getattr(live[1], name))


def test_clipping_takes_the_norm_down_to_the_limit_and_never_up() -> None:
    assert clip_coefficient(0.5, 1.0) == 1.0
    assert clip_coefficient(0.0, 1.0) == 1.0
    assert clip_coefficient(4.0, 1.0) == pytest.approx(0.25, rel=1e-5)


def test_the_optimizer_section_is_read_strictly() -> None:
    values = {field.name: getattr(spec.OptimizerSpec(), field.name) for field in fields(spec.OptimizerSpec)}
    values["schedule"] = "wsd"
    config = OptimizerConfig.from_mapping(values)
    assert config.schedule is Decay.WSD
    assert config.learning_rate == spec.OptimizerSpec().learning_rate
    for field, value in (("beta2", 1.0), ("learning_rate", 0), ("warmup_steps", -1), ("clip_norm", "1")):
        with pytest.raises(FieldError, match=rf"optimizer\.{field} is {value!r}"):
            OptimizerConfig.from_mapping({**values, field: value})
    with pytest.raises(FieldError, match=r"optimizer\.final_learning_rate_ratio"):
        replace(config, final_learning_rate_ratio=1.5)
