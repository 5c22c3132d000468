"""Rows to experts and back: `dispatch` sends each token to the experts chosen for it, `combine` returns the answers.

What lives here: the `Dispatcher` protocol, `LocalDispatcher` (everything in this process: the oracle), and
`AllToAllDispatcher` (dropless, over the ranks of a generation). What must not: weights, routing decisions, knowledge
of how a group waits or fails. Who serves whom is decided in `routing.py`; groups are made in `groups.py`.

Three rules make the two dispatchers interchangeable, and a step repeatable:

- Rows of one expert are ordered by (source rank, token), whatever the timing.
- Nothing is added up in an order that could change: moves are gathers, and the sum over the choices of a token (in
  the gradient) runs over a fixed axis.
- Every rank makes the same number of `all_to_all` calls, forward and backward, also with no tokens, no experts, or
  nothing to differentiate: three forward (counts, rows, answers) and two backward for each dispatch and combine. Who
  is alone in its group makes one, which moves nothing.

Shapes: T tokens here; K choices of a token; J = T*K (token, choice) pairs, token-major; R rows received; D width;
E experts; H experts held here ("slots", ascending ids); W ranks that exchange tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from worker.parallel.routing import Route


class Exchange(Protocol):
    """What dispatch needs of the ranks that exchange tokens (`worker.parallel.groups.TokenExchange` is one)."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """Sends rows of `input` ([sum of input_splits, ...]) into `output`; returns when done, or raises."""
        ...

    def settle(self) -> None:
        """Before the host looks at what was received: waits for the device, in a way that can be abandoned."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What `combine` needs in order to undo one `dispatch`. Good for one use."""

    choices: int
    """K"""
    order_J: Tensor
    """Pair at each place of the send order (by destination, then expert, then token)."""
    place_J: Tensor
    """The inverse: place of each pair in the send order."""
    arrival_R: Tensor
    """Place in the arrival order (by source, then expert, then token) of each row handed to the experts."""
    row_R: Tensor
    """The inverse."""
    sent_W: Sequence[int]
    received_W: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """Rows for the experts held here, sorted by slot, then source rank, then token."""

    rows_RD: Tensor
    count_H: Tensor
    """Rows of each slot, int64, on the device of the rows."""
    counts: Sequence[int] | None
    """The same on the host, where it is known there already."""
    receipt: Receipt


class Dispatcher(Protocol):
    """Carries tokens to experts and answers back; differentiable both ways."""

    @property
    def held(self) -> Sequence[int]:
        """Global ids of the experts held here, ascending: slot h is expert held[h]."""
        ...

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor) -> Dispatched: ...

    def combine(self, y_RD: Tensor, receipt: Receipt) -> Tensor:
        """Answers for this rank's tokens, [T, K, D], in the order of `expert_TK`."""
        ...


class LocalDispatcher:
    """All experts in this process; no communication. The oracle for every other dispatcher."""

    def __init__(self, experts: int) -> None:
        self.held: Sequence[int] = range(experts)

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor) -> Dispatched:
        expert_J = expert_TK.reshape(-1)
        order_J, place_J = _stable_order(expert_J)
        rows_RD = _spread(x_TD, order_J, place_J, expert_TK.shape[1])
        count_H = _count(expert_J, len(self.held))
        receipt = Receipt(
            choices=expert_TK.shape[1],
            order_J=order_J,
            place_J=place_J,
            arrival_R=order_J,
            row_R=place_J,
            sent_W=(),
            received_W=(),
        )
        return Dispatched(rows_RD=rows_RD, count_H=count_H, counts=None, receipt=receipt)

    def combine(self, y_RD: Tensor, receipt: Receipt) -> Tensor:
        y_JD = _permute(y_RD, receipt.place_J, receipt.order_J)
        return y_JD.view(-1, receipt.choices, y_RD.shape[1])


class AllToAllDispatcher:
    """Experts spread over the ranks of an exchange group. No token is ever dropped.

    For each source rank one replica of each expert is fixed by the route, so the rows a rank receives follow from the
    routing decisions alone. One host synchronisation per dispatch: the counts that size the exchange.

    A rank that is alone in its group (a stage whose trainers all hold every expert) moves its rows once each way and
    not three times, to the same bits. Its group only hears that this would be an exchange. On a GPU it goes the long
    way, since there the group is the stage's.
    """

    def __init__(self, group: Exchange, route: Route, device: torch.device) -> None:
        """`group` spans the ranks of `route.group`, in that order."""
        assert group.world == len(route.group), f"{group.world} ranks exchange, the route names {route.group}"
        self._group = group
        self._alone = LocalDispatcher(len(route.held)) if group.world == 1 and device.type == "cpu" else None
        self.held: Sequence[int] = route.held
        target_E = route.target_E
        experts = len(target_E)
        # Experts in the order in which they are sent: by destination, then id.
        sequence = sorted(range(experts), key=lambda expert: (target_E[expert], expert))
        key_E = [0] * experts
        for key, expert in enumerate(sequence):
            key_E[expert] = key
        self._key_E = torch.tensor(key_E, device=device)
        self._target_E = torch.tensor(target_E, dtype=torch.int64, device=device)
        self._expert_E = torch.arange(experts, device=device)
        self._held_H = torch.tensor(list(self.held), dtype=torch.int64, device=device)

    def dispatch(self, x_TD: Tensor, expert_TK: Tensor) -> Dispatched:
        if self._alone is not None:
            nothing = torch.empty(0, dtype=torch.int64)
            self._group.all_to_all(nothing, nothing, [0], [0])
            return self._alone.dispatch(x_TD, expert_TK)
        choices = expert_TK.shape[1]
        expert_J = expert_TK.reshape(-1)
        order_J, place_J = _stable_order(self._key_E[expert_J])
        count_WH, sent_W, received_W, counts = self._exchange_counts(expert_J)
        arrival_R, row_R = _expert_major(count_WH, sum(received_W))
        sent_JD = _spread(x_TD, order_J, place_J, choices)
        arrived_RD = _exchange(sent_JD, self._group, received_W, sent_W)
        return Dispatched(
            rows_RD=_permute(arrived_RD, arrival_R, row_R),
            count_H=count_WH.sum(0),
            counts=counts,
            receipt=Receipt(
                choices=choices,
                order_J=order_J,
                place_J=place_J,
                arrival_R=arrival_R,
                row_R=row_R,
                sent_W=sent_W,
                received_W=received_W,
            ),
        )

    def combine(self, y_RD: Tensor, receipt: Receipt) -> Tensor:
        if self._alone is not None:
            return self._alone.combine(y_RD, receipt)
        leaving_RD = _permute(y_RD, receipt.row_R, receipt.arrival_R)
        returned_JD = _exchange(leaving_RD, self._group, receipt.sent_W, receipt.received_W)
        y_JD = _permute(returned_JD, receipt.place_J, receipt.order_J)
        return y_JD.view(-1, receipt.choices, y_RD.shape[1])

    def _exchange_counts(self, expert_J: Tensor) -> tuple[Tensor, list[int], list[int], list[int]]:
        """Rows that each rank sends to each of our experts; on the host, the rows sent to and received from each rank,
        and those of each slot."""
        world = self._group.world
        experts = len(self._expert_E)
        sent_WE = torch.zeros(world, experts, dtype=torch.int64, device=expert_J.device)
        sent_WE[self._target_E, self._expert_E] = _count(expert_J, experts)
        received_WE = torch.empty_like(sent_WE)
        one_each = [1] * world
        self._group.all_to_all(received_WE, sent_WE, one_each, one_each)
        count_WH = received_WE[:, self._held_H]
        told = torch.cat([sent_WE.sum(1), received_WE.sum(1), count_WH.sum(0)])
        self._group.settle()
        values = told.tolist()
        return count_WH, values[:world], values[world : 2 * world], values[2 * world :]


def _count(expert_J: Tensor, experts: int) -> Tensor:
    """Pairs per expert, [E]. Integer additions: the same in any order."""
    count_E = torch.zeros(experts, dtype=torch.int64, device=expert_J.device)
    return count_E.scatter_add_(0, expert_J, torch.ones_like(expert_J))


def _stable_order(key_J: Tensor) -> tuple[Tensor, Tensor]:
    """The stable sort of the keys as a permutation, and its inverse."""
    order_J = torch.sort(key_J, stable=True).indices
    return order_J, _inverse(order_J)


def _inverse(order_J: Tensor) -> Tensor:
    inverse_J = torch.empty_like(order_J)
    inverse_J[order_J] = torch.arange(len(order_J), device=order_J.device)
    return inverse_J


def _expert_major(count_WH: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """From blocks that lie by (source, slot) to blocks by (slot, source): the gather that does it, and its inverse."""
    flat_count = count_WH.reshape(-1)
    start_WH = (flat_count.cumsum(0) - flat_count).view_as(count_WH)
    count_HW = count_WH.t().reshape(-1)
    start_HW = start_WH.t().reshape(-1)
    # Row r of block b comes from start[b] + (r - first row of b).
    shift_HW = start_HW - (count_HW.cumsum(0) - count_HW)
    shift_R = torch.repeat_interleave(shift_HW, count_HW, output_size=rows)
    arrival_R = shift_R + torch.arange(rows, device=count_WH.device)
    return arrival_R, _inverse(arrival_R)


# Three differentiable moves.


class _Spread(torch.autograd.Function):
    """Copies each token to the places of its choices; the gradient of a token is the sum over them, first to last."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_J: Tensor, place_J: Tensor, choices: int) -> Tensor:
        ctx.save_for_backward(place_J)
        ctx.choices = choices
        return x_TD.index_select(0, order_J // choices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (place_J,) = ctx.saved_tensors
        grad_JD = gradients[0].index_select(0, place_J)
        return grad_JD.view(-1, ctx.choices, grad_JD.shape[1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """Gathers by a permutation; its gradient gathers by the inverse (no scatter, no addition)."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        return x_RD.index_select(0, order_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse_R,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse_R), None, None


class _AllToAll(torch.autograd.Function):
    """One exchange forward, the opposite exchange backward.

    The anchor is an empty tensor that wants a gradient: because of it the backward pass of every rank comes here and
    takes part in the exchange, even if nothing that this rank sent depends on a weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_JD: Tensor,
        anchor: Tensor,
        group: Exchange,
        received_W: Sequence[int],
        sent_W: Sequence[int],
    ) -> Tensor:
        ctx.group, ctx.received_W, ctx.sent_W = group, received_W, sent_W
        return _move(group, x_JD, received_W, sent_W)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        # Also where x_JD needs no gradient: the others wait for this call.
        return _move(ctx.group, gradients[0], ctx.sent_W, ctx.received_W), None, None, None, None


def _move(group: Exchange, x: Tensor, received_W: Sequence[int], sent_W: Sequence[int]) -> Tensor:
    output = x.new_empty(sum(received_W), x.shape[1])
    group.all_to_all(output, x.contiguous(), received_W, sent_W)
    return output


def _spread(x_TD: Tensor, order_J: Tensor, place_J: Tensor, choices: int) -> Tensor:
    return cast(Tensor, _Spread.apply(x_TD, order_J, place_J, choices))  # type: ignore[no-untyped-call]


def _permute(x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    return cast(Tensor, _Permute.apply(x_RD, order_R, inverse_R))  # type: ignore[no-untyped-call]


def _exchange(x_JD: Tensor, group: Exchange, received_W: Sequence[int], sent_W: Sequence[int]) -> Tensor:
    anchor = torch.empty(0, dtype=x_JD.dtype, device=x_JD.device, requires_grad=torch.is_grad_enabled())
    return cast(Tensor, _AllToAll.apply(x_JD, anchor, group, received_W, sent_W))  # type: ignore[no-untyped-call]
