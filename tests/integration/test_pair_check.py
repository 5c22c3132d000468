"""Pair checks for real: two threads with a gloo group of their own, one store between them, real matrix products."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from worker.agent.messages import CheckPair, PairChecked
from worker.parallel.groups import Watch, serve_store
from worker.training.pair_check import Amount, Place, check_pair, compute, is_product, known_factors

HOST = "127.0.0.1"
CPU_DEVICE = torch.device("cpu")
WAIT_SECONDS = 60.0


def nothing() -> None:
    """No failure is injected."""


def place(watch: Watch | None = None, strike: Callable[[], None] = nothing) -> Place:
    return Place(watch=watch or Watch(), device=CPU_DEVICE, bind_host=HOST, strike=strike)


def order(rank: int, address: str, limit_seconds: float = 40.0) -> CheckPair:
    return CheckPair(
        check="chk-1", generation=3, rank=rank, store_address=address, limit_seconds=limit_seconds
    )


@pytest.fixture
def store() -> Any:
    """A trainer's store, and its address."""
    return serve_store(HOST)


def run_pair(address: str, places: tuple[Place, Place]) -> list[PairChecked]:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(check_pair, order(rank, address), places[rank]) for rank in range(2)]
        return [each.result(WAIT_SECONDS) for each in both]


def test_two_sound_trainers_agree_bit_for_bit(store: Any) -> None:
    reports = run_pair(store[1], (place(), place()))
    assert [(each.outcome, each.right, each.reason) for each in reports] == [("done", True, "")] * 2
    assert reports[0].digest == reports[1].digest != ""
    assert all(each.compute_seconds > 0 and each.exchange_seconds > 0 for each in reports)


def test_one_that_is_held_up_takes_measurably_longer(store: Any) -> None:
    """As an injected slowness does it: at every product, many times the product's own time."""
    never = threading.Event()

    def hold_up() -> None:
        never.wait(0.05)

    reports = run_pair(store[1], (place(), place(strike=hold_up)))
    assert reports[1].compute_seconds > 3.0 * reports[0].compute_seconds
    assert reports[0].digest == reports[1].digest


def test_nobody_to_meet_is_a_failure_with_a_reason(store: Any) -> None:
    report = check_pair(order(0, store[1], limit_seconds=1.0), place())
    assert (report.outcome, report.right) == ("failed", False)
    assert report.reason


def test_a_newer_generation_ends_the_check_at_once(store: Any) -> None:
    """A spare that gets a seat has something better to do."""
    watch = Watch()
    with ThreadPoolExecutor(1) as threads:
        alone = threads.submit(check_pair, order(0, store[1]), place(watch))
        watch.end_below(4)
        report = alone.result(WAIT_SECONDS)
    assert report.outcome == "abandoned"
    assert "4 has been assigned" in report.reason


def test_one_wrong_element_is_found() -> None:
    """Whichever it is, and however small the error."""
    left_NN, right_NN = known_factors(64, CPU_DEVICE)
    product_NN = left_NN @ right_NN
    assert is_product(product_NN, left_NN, right_NN)
    for row, column in ((0, 0), (17, 40), (63, 63)):
        wrong_NN = product_NN.clone()
        wrong_NN[row, column] += 1.0
        assert not is_product(wrong_NN, left_NN, right_NN)


def test_the_digest_depends_on_every_round() -> None:
    digests = {compute(Amount(width=32, rounds=rounds), CPU_DEVICE, nothing)[1] for rounds in (3, 4, 5)}
    assert len(digests) == 3
