"""A pair check: two trainers do the same small work, compare it, and say how it went. The controller decides.

What is found out: whether two nodes can talk at all; whether a matrix product is the known answer (small integers, for
which every order of summation is exact, checked by the method of Freivalds 1977); whether a long chain of products and
sines gives the same bits on both, which one wrong bit anywhere would spoil; how long each takes alone; how long data
takes between them. On a CPU all of it takes a few tenths of a second. It runs on the training thread, so a member is
measured while it does nothing else, and only at a step boundary.

What must not live here: the verdict (`orchestrator/core/pair_verdict.py`). Next: `loop.py`, which calls this.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.agent.messages import CheckPair, PairChecked
from worker.parallel.backends import Seat
from worker.parallel.groups import CommunicationError, GenerationEnded, Group, Watch, build_group
from worker.parallel.pulse import Pulse

PAIR = 2
MEET_SHARE = 0.5
"""Of the limit, for meeting the other one; the rest is for the work."""
EXCHANGE_ELEMENTS = 1 << 20
EXCHANGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much work: N x N products, so many of them."""

    width: int
    rounds: int


CPU = Amount(width=256, rounds=120)
CUDA = Amount(width=4096, rounds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a check needs of the trainer that it runs in."""

    watch: Watch
    device: torch.device
    bind_host: str
    strike: Callable[[], None]
    """Injected failures strike here, after each product."""


def check_pair(order: CheckPair, place: Place) -> PairChecked:
    """Meet the other one and do the work. Nothing is raised: what went wrong is the report."""
    try:
        return _meet_and_work(order, place)
    except GenerationEnded as error:
        return _without_result(order, "abandoned", str(error))
    except (CommunicationError, RuntimeError) as error:
        return _without_result(order, "failed", str(error).strip().split("\n", 1)[0][:300])


def _without_result(order: CheckPair, outcome: str, reason: str) -> PairChecked:
    return PairChecked(
        check=order.check,
        outcome=outcome,
        right=False,
        digest="",
        compute_seconds=0.0,
        exchange_seconds=0.0,
        reason=reason,
    )


def _meet_and_work(order: CheckPair, place: Place) -> PairChecked:
    seat = Seat(
        generation=order.generation,
        rank=order.rank,
        world=PAIR,
        store_address=order.store_address,
        bind_host=place.bind_host,
        exchange=tuple(range(PAIR)),
        meeting=f"pair-check-{order.check}",
    )
    group = build_group(
        seat,
        watch=place.watch,
        pulse=Pulse(),
        device=place.device,
        regroup_seconds=order.limit_seconds * MEET_SHARE,
        collective_seconds=order.limit_seconds,
    )
    try:
        _exchange(group, rounds=1)  # both are there, and what is made on first use is made
        amount = CUDA if place.device.type == "cuda" else CPU
        right, digest, seconds = compute(amount, place.device, place.strike)
        _exchange(
            group, rounds=1
        )  # the faster one waits here, so that the exchange is timed and not the wait
        began = time.monotonic()
        received = _exchange(group, rounds=EXCHANGES)
        exchange_seconds = time.monotonic() - began
    finally:
        group.abandon()
    return PairChecked(
        check=order.check,
        outcome="done",
        right=right and received,
        digest=digest,
        compute_seconds=seconds,
        exchange_seconds=exchange_seconds,
        reason="",
    )


def compute(amount: Amount, device: torch.device, strike: Callable[[], None]) -> tuple[bool, str, float]:
    """Whether the known answer came out, the digest of the chain, and the seconds of the chain.

    The first product is not timed: it loads what is loaded lazily.
    """
    left_NN, right_NN = known_factors(amount.width, device)
    right = is_product(left_NN @ right_NN, left_NN, right_NN)
    chain_NN = left_NN / 8.0
    scale = amount.width**-0.5
    _finish(device)
    strike()
    began = time.monotonic()
    for _ in range(amount.rounds):
        chain_NN = torch.sin(chain_NN @ right_NN * scale)
        strike()
    _finish(device)
    seconds = time.monotonic() - began
    right = right and is_product(left_NN @ right_NN, left_NN, right_NN)
    digest = hashlib.sha256(chain_NN.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return right, digest[:16], seconds


def known_factors(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two float32 matrices of small integers: every sum that occurs in their product is exact."""
    row_N1, column_1N = (
        torch.arange(width, device=device)[:, None],
        torch.arange(width, device=device)[None, :],
    )
    left_NN = (3 * row_N1 + 5 * column_1N) % 7 - 3
    right_NN = (5 * row_N1 + 2 * column_1N) % 11 - 5
    return left_NN.to(torch.float32), right_NN.to(torch.float32)


def is_product(product_NN: Tensor, left_NN: Tensor, right_NN: Tensor) -> bool:
    """Freivalds: P r = A (B r) for a vector without zeros, exact in float64. Finds every single wrong element."""
    width = product_NN.shape[0]
    r_N = (torch.arange(width, device=product_NN.device) % 13 + 1).to(torch.float64)
    expected_N = left_NN.to(torch.float64) @ (right_NN.to(torch.float64) @ r_N)
    return torch.equal(product_NN.to(torch.float64) @ r_N, expected_N)


def _exchange(group: Group, *, rounds: int) -> bool:
    """Sum known numbers over the pair; True when the sums are right."""
    right = True
    for turn in range(rounds):
        sent_P = torch.full((EXCHANGE_ELEMENTS,), float(group.rank + turn), device=group.device)
        group.all_reduce(sent_P)
        right = right and bool((sent_P == float(2 * turn + 1)).all())
    group.settle()
    return right


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
