"""The state of a trainer: the same bits whoever holds a part beside which others, and however it got there."""

from __future__ import annotations

import pytest
import torch

from worker.checkpointing.numbering import PartNumbers
from worker.checkpointing.parts import PartTensors
from worker.model.config import ModelConfig
from worker.model.stages import Stages
from worker.training.learning_rate import Decay
from worker.training.optimizer import AdamW, OptimizerConfig
from worker.training.state import TrainingState, copy_part

DENSE = 0

CONFIG = ModelConfig.from_mapping(
    {
        "vocabulary": 256,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "experts": 4,
        "top_k": 2,
        "expert_width": 24,
        "sequence_length": 8,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "aux_loss": 0.01,
        "router_temperature": 1.0,
        "router_noise": 0.0,
    },
    "float32",
)
OPTIMIZER = OptimizerConfig(
    learning_rate=0.01,
    warmup_steps=2,
    schedule=Decay.COSINE,
    final_learning_rate_ratio=0.1,
    decay_steps=0,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
)


def make(*experts: int) -> TrainingState:
    state = TrainingState(CONFIG, seed=3, device=torch.device("cpu"))
    state.initialise(experts)
    return state


def gradient_of(state: TrainingState, part: int, step: int) -> torch.Tensor:
    """Made of part and step alone."""
    generator = torch.Generator().manual_seed(1000 * step + part)
    return torch.randn(state.length(part), generator=generator)


def advance(state: TrainingState, step: int) -> None:
    """A step with known gradients."""
    state.zero_gradients()
    for part in range(state.parts):
        if state.holds(part):
            state.gradient(part).copy_(gradient_of(state, part, step))
    state.ready = step
    state.commit(AdamW(OPTIMIZER, total_steps=10), step, 0.5, halfway=lambda: None)


def equal(one: PartTensors, other: PartTensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.in_order(), other.in_order(), strict=True))


def test_replicas_stay_bitwise_equal_beside_different_experts() -> None:
    few, many = make(2), make(0, 1, 2, 3)
    for step in (1, 2, 3):
        advance(few, step)
        advance(many, step)
    for part in (DENSE, 3):
        assert equal(few.part(part), many.part(part))


def test_a_replayed_copy_is_the_donor_bit_for_bit() -> None:
    """A newcomer gets version 1 and the reduced gradients of 2 and 3."""
    donor = make(1, 3)
    advance(donor, 1)
    staged = donor.empty_part(4)
    copy_part(staged, donor.part(4))
    optimizer = AdamW(OPTIMIZER, total_steps=10)
    for step in (2, 3):
        advance(donor, step)
        optimizer.update(donor.optimized(4, staged), gradient_of(donor, 4, step), step=step, clip=0.5)
    assert equal(staged, donor.part(4))


def test_adopting_keeps_what_is_held_and_takes_what_is_new() -> None:
    state, donor = make(0, 1), make(2)
    advance(state, 1)
    advance(donor, 1)
    before = state.empty_part(2)
    copy_part(before, state.part(2))
    state.adopt((1, 2), {3: donor.part(3)}, 1)
    assert state.held == (1, 2)
    assert equal(state.part(2), before)
    assert equal(state.part(3), donor.part(3))
    assert not state.holds(1)
    assert state.versions() == (1, -1, 1, 1, -1)


def test_adopting_the_same_parts_keeps_the_gradients_that_are_held() -> None:
    """Between the vote and the commit of a step a generation may end more than once."""
    state = make(0, 1)
    state.gradient(1).fill_(2.0)
    state.ready = 1
    state.adopt((0, 1), {}, 0)
    assert state.ready == 1
    assert state.gradient(1)[0] == 2.0


def test_a_commit_out_of_order_is_refused() -> None:
    state = make(0)
    state.ready = 2
    with pytest.raises(AssertionError, match="follows the vote"):
        state.commit(AdamW(OPTIMIZER, total_steps=10), 2, 1.0, halfway=lambda: None)


def test_part_names_and_numbers_are_inverse() -> None:
    numbers = PartNumbers(stages=1, experts=9)
    assert [numbers.number(numbers.name(part)) for part in range(10)] == list(range(10))
    assert numbers.name(DENSE) == "dense"
    assert numbers.name(8) == "expert-00007"


def test_renewed_gradients_share_nothing_with_those_that_were_handed_out() -> None:
    """An abandoned reduction may go on writing to the buffers that it was given."""
    state = make(0, 1)
    state.ready = 1
    handed_out = state.gradient(DENSE), state.gradient(2)
    state.renew_gradients()
    for late in handed_out:
        late.fill_(7.0)
    assert state.ready == -1
    assert all(not state.gradient(part).any() for part in (DENSE, 1, 2))


def alone(*experts: int) -> TrainingState:
    """A state in which experts 1 and 2 are trained and nothing else is."""
    state = TrainingState(CONFIG, seed=3, device=torch.device("cpu"), trainable=(1, 2))
    state.initialise(experts)
    return state


def test_only_the_trained_experts_change_and_have_moments() -> None:
    """As they change in a whole model that gets the same gradients."""
    state, whole = alone(0, 1, 2, 3), make(0, 1, 2, 3)
    before = [state.part(part).weights.clone() for part in range(state.parts)]
    for step in (1, 2):
        state.zero_gradients()
        for expert in state.trained:
            state.gradient(expert + 1).copy_(gradient_of(state, expert + 1, step))
        state.ready = step
        state.commit(AdamW(OPTIMIZER, total_steps=10), step, 0.5, halfway=lambda: None)
        advance(whole, step)
    for part in range(state.parts):
        if part in (2, 3):
            assert equal(state.part(part), whole.part(part))
        else:
            assert torch.equal(state.part(part).weights, before[part])
            assert state.frozen(part) and state.part(part).frozen and state.gradient(part).numel() == 0
    rows = 3 * 2 * state.expert_length
    held = [state.dense_m_P, state.dense_v_P, state.dense_gradient_P]
    held += [state.experts_m_TN, state.experts_v_TN, state.experts_gradient_TN]
    assert sum(tensor.numel() for tensor in held) == rows


def test_a_frozen_expert_is_adopted_beside_a_trained_one() -> None:
    state, donor = alone(1), alone(0, 2)
    staged = donor.empty_part(1)
    copy_part(staged, donor.part(1))
    state.adopt((0, 1, 2), {1: staged, 3: donor.part(3)}, 0)
    assert (state.held, state.trained) == ((0, 1, 2), (1, 2))
    assert all(equal(state.part(part), donor.part(part)) for part in (1, 3))


STAGES = Stages(layers=2, count=2)


def staged(stage: int, *experts: int) -> TrainingState:
    """A trainer of one of two stages, each with four experts: 0 to 3, and 4 to 7."""
    state = TrainingState(CONFIG, seed=3, device=torch.device("cpu"), stages=STAGES)
    state.initialise(experts, stage=stage)
    return state


def tensors(state: TrainingState, part: int) -> dict[str, torch.Tensor]:
    """Weights of a part by the names of its tensors."""
    dense, expert = state.layouts[state.numbers.stage_of(part)]
    layout = dense if state.numbers.is_dense(part) else expert
    return {entry.name: state.part(part).weights[entry.span] for entry in layout.entries}


def test_stages_begin_with_the_weights_of_the_whole_model() -> None:
    """The seed gives a tensor its values, wherever it lies."""
    whole = make(0, 1, 2, 3)
    first, second = staged(0, 0, 1, 2, 3), staged(1, 4, 5, 6, 7)
    dense = {**tensors(first, 0), **tensors(second, 1)}
    assert dense.keys() == tensors(whole, DENSE).keys()
    assert all(torch.equal(value, tensors(whole, DENSE)[name]) for name, value in dense.items())
    for expert in range(4):
        number = first.numbers.expert
        parts = {**tensors(first, number(expert)), **tensors(second, number(4 + expert))}
        assert parts.keys() == tensors(whole, expert + 1).keys()
        assert all(torch.equal(value, tensors(whole, expert + 1)[name]) for name, value in parts.items())


def test_a_trainer_goes_over_to_another_stage() -> None:
    """It gives up what it held, and holds what it has received."""
    mover, donor = staged(0, 0, 1), staged(1, 4, 5, 6)
    advance(mover, 1)
    advance(donor, 1)
    number = mover.numbers.expert
    received = {part: donor.part(part) for part in (1, number(4), number(6))}
    mover.adopt((4, 6), received, 1, stage=1)
    assert mover.versions() == tuple(1 if part in (1, number(4), number(6)) else -1 for part in range(10))
    assert all(equal(mover.part(part), donor.part(part)) for part in received)
    advance(mover, 2)
    advance(donor, 2)
    assert all(equal(mover.part(part), donor.part(part)) for part in received)


def test_who_goes_over_without_the_dense_part_is_a_bug() -> None:
    mover, donor = staged(0, 0), staged(1, 4)
    part = mover.numbers.expert(4)
    with pytest.raises(AssertionError, match="has copied its part"):
        mover.adopt((4,), {part: donor.part(part)}, 0, stage=1)


def test_stages_have_another_layout_and_one_stage_the_one_it_always_had() -> None:
    """A checkpoint of another division is refused by its layout."""
    assert make(0).layout_id != staged(0, 0).layout_id
    one = TrainingState(CONFIG, seed=3, device=torch.device("cpu"), stages=Stages(layers=2))
    assert one.layout_id == make(0).layout_id


def test_parts_of_stages_are_numbered_dense_first() -> None:
    numbers = PartNumbers(stages=3, experts=2)
    assert [numbers.name(part) for part in range(numbers.count)] == [
        "dense",
        "dense-00001",
        "dense-00002",
        *(f"expert-{expert:05d}" for expert in range(6)),
    ]
    assert [numbers.number(numbers.name(part)) for part in range(9)] == list(range(9))
    assert [numbers.stage_of(part) for part in range(9)] == [0, 1, 2, 0, 0, 1, 1, 2, 2]
    for unknown in ("dense-00003", "expert-00006", "dense-1", "router"):
        with pytest.raises(ValueError, match="names no part"):
            numbers.number(unknown)
