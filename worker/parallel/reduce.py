"""Gradient reduction over the living: dense weights over all members of a stage, experts over their replicas.

Dense gradients are summed by one all-reduce, which yields the same bits everywhere. An expert's replicas exchange
their partial gradients in one all-to-all and each sums them in the order of the placement, so that replicas stay
bitwise equal whatever their number. Only copies are handed to collectives: an abandoned reduction leaves the
callers' buffers alone. Sum, not mean: the loss is already divided by the step's token count.

Shapes: P dense parameters, E local experts, N parameters of one expert (all layers). Next: `training/step.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.parallel.dispatch import Exchange
from worker.parallel.groups import StageMembers

Placement = Sequence[Sequence[int]]
"""Expert -> ranks that hold a replica, primary first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """Who exchanges which rows with whom, worked out once for a generation."""

    send_slots: tuple[int, ...]
    """Local expert slots in send order (by destination rank, then expert)."""
    splits: tuple[int, ...]
    """Rows exchanged with each rank; the same in both directions."""
    sums: tuple[tuple[int, tuple[int, ...]], ...]
    """Local slot -> its addends in placement order: -1 is the own row, else an index of the received rows."""


def plan_replicas(placement: Placement, rank: int, world: int) -> ReplicaPlan:
    """The exchange of `rank`: with each peer, one row per expert that both hold, in expert order."""
    held = [expert for expert, ranks in enumerate(placement) if rank in ranks]
    slot_of = {expert: slot for slot, expert in enumerate(held)}
    send: list[int] = []
    splits: list[int] = []
    received: dict[tuple[int, int], int] = {}
    for peer in range(world):
        shared = [expert for expert in held if peer != rank and peer in placement[expert]]
        for expert in shared:
            received[peer, expert] = len(send)
            send.append(slot_of[expert])
        splits.append(len(shared))
    sums = tuple(
        (
            slot_of[expert],
            tuple(-1 if holder == rank else received[holder, expert] for holder in placement[expert]),
        )
        for expert in held
        if len(placement[expert]) > 1
    )
    return ReplicaPlan(send_slots=tuple(send), splits=tuple(splits), sums=sums)


def reduce_dense(members: StageMembers, gradient_P: Tensor) -> None:
    """Sum the dense gradient over all members of the stage, in place, bitwise equal on each."""
    if members.world > 1:
        members.all_reduce(gradient_P)


class ReplicaReduction:
    """Carries out a plan in one generation: its buffers serve every step of it and no other generation."""

    def __init__(self, plan: ReplicaPlan, gradient_EN: Tensor) -> None:
        """`gradient_EN` gives shape and device only."""
        rows, width = len(plan.send_slots), gradient_EN.shape[1]
        self._plan = plan
        self._splits = [count * width for count in plan.splits]
        self._received_RN = gradient_EN.new_empty(rows, width)
        # Every expert here has one other replica, and they are met in order: nothing needs to be gathered first.
        self._as_they_lie = plan.send_slots == tuple(range(len(gradient_EN)))
        self._sent_RN = None if self._as_they_lie else gradient_EN.new_empty(rows, width)

    def reduce(self, group: Exchange, gradient_EN: Tensor) -> None:
        """Sum the rows of replicated experts over their replicas, in place, bitwise equal on all replicas.

        Takes part in the exchange even with nothing to send, as every member must.
        """
        if group.world == 1:
            return
        received_RN = self._received_RN
        sent_RN = self._gather(gradient_EN)
        group.all_to_all(received_RN.view(-1), sent_RN.view(-1), self._splits, self._splits)
        if self._as_they_lie:
            gradient_EN.add_(received_RN)  # two addends: equal bits in either order
            return
        for slot, addends in self._plan.sums:
            rows = [gradient_EN[slot] if addend < 0 else received_RN[addend] for addend in addends]
            if len(rows) == 2:
                torch.add(rows[0], rows[1], out=gradient_EN[slot])
                continue
            total_N = rows[0] + rows[1]
            for row in rows[2:]:
                total_N += row
            gradient_EN[slot].copy_(total_N)

    def _gather(self, gradient_EN: Tensor) -> Tensor:
        if self._sent_RN is None:
            return gradient_EN
        for place, slot in enumerate(self._plan.send_slots):
            self._sent_RN[place].copy_(gradient_EN[slot])
        return self._sent_RN
