"""Documents that are kept apart: a window of several gives what each gives alone, and their borders are not predicted.

Shapes: B sequences; C = S + 1 tokens of a window; V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.worker.model.models import Bound, bound_model, random_windows, small_config
from worker.model.objective import NOT_PREDICTED, microbatch_loss, targets
from worker.model.router import ForwardContext

CONFIG = small_config(aux_loss=0.0)
SIZES = (3, 1, 5)
"""Of the documents in a window of nine tokens."""
PREDICTED = 6
"""Two and no and four tokens have one of their own document before them."""


def window_of_three() -> tuple[Tensor, Tensor]:
    document_C = torch.repeat_interleave(torch.arange(1, 4), torch.tensor(SIZES))
    return random_windows(CONFIG, 1), document_C.unsqueeze(0)


def apart(bound: Bound, window_BC: Tensor, document_BC: Tensor) -> Tensor:
    context = ForwardContext(step=1, microbatch=0, document_BC=document_BC)
    out = microbatch_loss(bound.model, window_BC, context, step_tokens=PREDICTED, step_microbatches=1)
    out.objective.backward()
    return out.cross_entropy_sum


def test_a_window_of_several_documents_is_each_of_them_alone() -> None:
    together, alone = bound_model(CONFIG), bound_model(CONFIG)
    window_BC, document_BC = window_of_three()
    total = apart(together, window_BC, document_BC)
    nats = torch.zeros((), dtype=torch.float64)
    for piece_C in window_BC[0].split(SIZES):
        if len(piece_C) > 1:
            context = ForwardContext(step=1, microbatch=0)
            out = microbatch_loss(
                alone.model, piece_C.unsqueeze(0), context, step_tokens=6, step_microbatches=1
            )
            out.objective.backward()
            nats += out.cross_entropy_sum
    torch.testing.assert_close(total, nats, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(together.dense_grad_P, alone.dense_grad_P, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(together.experts_grad_EN, alone.experts_grad_EN, rtol=1e-9, atol=1e-12)


def test_what_stands_before_a_document_changes_nothing_in_it() -> None:
    bound = bound_model(CONFIG)
    window_BC, document_BC = window_of_three()
    context = ForwardContext(step=1, microbatch=0, document_BC=document_BC)
    other_BC = window_BC.clone()
    other_BC[0, :4] = (other_BC[0, :4] + 1) % 256
    with torch.no_grad():
        first, second = (
            bound.model(each[:, :-1], context).logits_BSV[0, 4:] for each in (window_BC, other_BC)
        )
        joined = bound.model(other_BC[:, :-1], ForwardContext(step=1, microbatch=0)).logits_BSV[0, 4:]
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(joined, second)


def test_the_first_token_of_a_document_is_not_predicted() -> None:
    window_BC, document_BC = window_of_three()
    expected = window_BC[0, 1:].clone()
    expected[[2, 3]] = NOT_PREDICTED
    assert torch.equal(targets(window_BC, document_BC), expected)
    assert torch.equal(targets(window_BC, None), window_BC[0, 1:])


def test_one_document_is_the_same_as_no_documents() -> None:
    bound = bound_model(CONFIG)
    window_BC = random_windows(CONFIG, 2)
    whole = ForwardContext(step=1, microbatch=0, document_BC=torch.ones_like(window_BC))
    with torch.no_grad():
        found, plain = (
            bound.model(window_BC[:, :-1], context).logits_BSV
            for context in (whole, ForwardContext(step=1, microbatch=0))
        )
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    nats = functional.cross_entropy(plain.flatten(0, 1), window_BC[:, 1:].reshape(-1), reduction="sum")
    out = microbatch_loss(bound.model, window_BC, whole, step_tokens=16, step_microbatches=1)
    torch.testing.assert_close(out.cross_entropy_sum, nats, rtol=1e-12, atol=0.0)
