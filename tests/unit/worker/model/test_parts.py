"""Parts as flat rows: nothing overlaps, nothing is forgotten, and parameters are views."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.unit.worker.model.models import CPU, bound_model, random_windows, small_config
from worker.model.parts import ALIGNMENT, PartLayout, bind, bind_frozen, dense_layout, expert_layout
from worker.model.transformer import Transformer
from worker.parallel.dispatch import LocalDispatcher

CONFIG = small_config(width=24, expert_width=10)


@pytest.mark.parametrize("layout", [dense_layout(CONFIG), expert_layout(CONFIG)])
def test_entries_are_aligned_and_disjoint(layout: PartLayout) -> None:
    end = 0
    for entry in layout.entries:
        assert entry.offset % ALIGNMENT == 0
        assert entry.offset >= end
        end = entry.offset + entry.elements
    assert end <= layout.length < end + ALIGNMENT
    assert layout.length % ALIGNMENT == 0 and layout.decay_length % ALIGNMENT == 0


def test_the_parts_are_the_whole_model() -> None:
    model = Transformer(CONFIG, seed=0, dispatcher=LocalDispatcher(CONFIG.experts), device=CPU)
    shapes = {entry.name: entry.shape for entry in dense_layout(CONFIG).entries}
    shapes |= {entry.name: (CONFIG.experts, *entry.shape) for entry in expert_layout(CONFIG).entries}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_norms_and_routers_are_the_tail_without_decay() -> None:
    layout = dense_layout(CONFIG)
    tail = {entry.name for entry in layout.entries if entry.offset >= layout.decay_length}
    assert tail == {entry.name for entry in layout.entries if "norm" in entry.name or "router" in entry.name}
    whole = expert_layout(CONFIG)
    assert whole.decay_length == whole.length


def test_parameters_and_gradients_are_views_of_the_buffers() -> None:
    bound = bound_model(CONFIG)
    experts = bound.model.get_submodule("layers.1.moe.experts")
    w1_EFD = experts.get_parameter("w1_EFD")
    assert w1_EFD.stride() == (expert_layout(CONFIG).length, CONFIG.width, 1)
    bound.experts_EN.fill_(3.0)
    bound.dense_P.fill_(4.0)
    for name, parameter in bound.model.named_parameters():
        assert bool((parameter == (3.0 if ".experts." in name else 4.0)).all()), name
        assert parameter.grad is not None
        parameter.grad.fill_(1.0)
    total = CONFIG.experts * CONFIG.expert_parameters()
    assert int(bound.experts_grad_EN.sum()) == total
    assert int(bound.dense_grad_P.sum()) == CONFIG.dense_parameters()


def test_gradients_add_up_in_the_buffers_in_place_and_without_a_warning() -> None:
    bound = bound_model(CONFIG)
    window_BC = random_windows(CONFIG, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound.loss(window_BC).objective.backward()
        once_P, once_EN = bound.dense_grad_P.clone(), bound.experts_grad_EN.clone()
        bound.loss(window_BC).objective.backward()
    assert bool(once_P.any()) and bool(once_EN.any())
    torch.testing.assert_close(bound.dense_grad_P, 2 * once_P, rtol=1e-12, atol=0)
    torch.testing.assert_close(bound.experts_grad_EN, 2 * once_EN, rtol=1e-12, atol=0)
    for name, parameter in bound.model.named_parameters():
        buffer = bound.experts_grad_EN if ".experts." in name else bound.dense_grad_P
        assert parameter.grad is not None
        assert parameter.grad.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr(), name


def test_gaps_between_tensors_get_no_gradient() -> None:
    bound = bound_model(CONFIG)
    bound.loss(random_windows(CONFIG, 2)).objective.backward()
    covered = torch.zeros(dense_layout(CONFIG).length, dtype=torch.bool)
    for entry in dense_layout(CONFIG).entries:
        covered[entry.offset : entry.offset + entry.elements] = True
    assert not bool(covered.all())
    assert not bool(bound.dense_grad_P[~covered].any()) and not bool(bound.dense_P[~covered].any())


def test_a_new_binding_leaves_an_old_backward_pass_nothing_to_write_to() -> None:
    bound = bound_model(CONFIG)
    abandoned = bound.loss(random_windows(CONFIG, 1)).objective
    fresh_P, fresh_EN = torch.zeros_like(bound.dense_P), torch.zeros_like(bound.experts_EN)
    bind(
        bound.model,
        CONFIG,
        dense_P=bound.dense_P,
        experts_EN=bound.experts_EN,
        dense_grad_P=fresh_P,
        experts_grad_EN=fresh_EN,
    )
    abandoned.backward()
    assert not bool(fresh_P.any()) and not bool(fresh_EN.any())


def test_frozen_parameters_stay_frozen() -> None:
    bound = bound_model(CONFIG)
    bound.model.get_parameter("head_VD").requires_grad_(False)
    bind(
        bound.model,
        CONFIG,
        dense_P=bound.dense_P,
        experts_EN=bound.experts_EN,
        dense_grad_P=bound.dense_grad_P,
        experts_grad_EN=bound.experts_grad_EN,
    )
    assert not bound.model.get_parameter("head_VD").requires_grad
    assert bound.model.get_parameter("embedding_VD").requires_grad


def test_buffers_of_another_model_are_refused() -> None:
    bound, other = bound_model(CONFIG), bound_model(small_config(width=32))
    with pytest.raises(AssertionError, match="layout has"):
        bind(
            bound.model,
            CONFIG,
            dense_P=other.dense_P,
            experts_EN=bound.experts_EN,
            dense_grad_P=bound.dense_grad_P,
            experts_grad_EN=bound.experts_grad_EN,
        )


def test_some_experts_alone_get_the_gradients_that_they_get_in_the_whole() -> None:
    """To the last bit; and nothing else wants one."""
    whole, windows_BC = bound_model(CONFIG), random_windows(CONFIG, 3)
    whole.loss(windows_BC).objective.backward()
    part = bound_model(CONFIG)
    grad_TN = part.experts_EN.new_zeros(2, expert_layout(CONFIG).length)
    bind_frozen(
        part.model,
        CONFIG,
        dense_P=part.dense_P,
        experts_EN=part.experts_EN,
        trained_slots=[1, 3],
        experts_grad_TN=grad_TN,
    )
    part.loss(windows_BC).objective.backward()
    assert torch.equal(grad_TN, whole.experts_grad_EN[[1, 3]]) and bool(grad_TN.any())
    assert all(parameter.grad is None for parameter in part.model.parameters())
    assert {name for name, each in part.model.named_parameters() if each.requires_grad} == {
        entry.name for entry in expert_layout(CONFIG).entries
    }
