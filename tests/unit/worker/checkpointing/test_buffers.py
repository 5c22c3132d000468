"""Buffers are used again, made ready in the background, bounded, and honest about memory that is not there."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.unit.worker.checkpointing.states import WAIT_SECONDS
from tests.waiting import wait_until
from worker.checkpointing.buffers import BufferPool

F32 = torch.float32


def wait_for_stock(pool: BufferPool, length: int, count: int) -> None:
    wait_until(
        lambda: len(pool._free.get((length, F32), ())) >= count,
        within_seconds=WAIT_SECONDS,
        what=f"{count} buffers",
    )


def test_a_buffer_that_was_given_back_is_taken_again() -> None:
    pool = BufferPool(bytes_max=1000, pinned=False)
    tensor = pool.take(10, F32)
    place = tensor.data_ptr()
    pool.give(tensor)
    assert pool.take(10, F32).data_ptr() == place
    assert pool.take(10, torch.float64).dtype == torch.float64


def test_what_is_wanted_is_made_ready_and_replaced_when_taken() -> None:
    pool = BufferPool(bytes_max=1000, pinned=False)
    pool.want(10, F32, 3)
    wait_for_stock(pool, 10, 3)
    pool.take(10, F32)
    wait_for_stock(pool, 10, 3)
    assert pool.ready(10, F32, 3)


def test_the_stock_is_bounded_in_bytes_and_waiting_for_more_is_no_use() -> None:
    pool = BufferPool(bytes_max=100, pinned=False)
    pool.want(10, F32, 5)
    wait_until(lambda: pool.ready(10, F32, 5), within_seconds=WAIT_SECONDS, what="the end of the stocking")
    assert len(pool._free[(10, F32)]) == 2
    for tensor in [pool.take(10, F32) for _ in range(4)]:
        pool.give(tensor)
    assert pool._bytes <= 100


def test_after_clear_nothing_is_kept_or_wanted() -> None:
    pool = BufferPool(bytes_max=1000, pinned=False)
    pool.want(10, F32, 3)
    wait_for_stock(pool, 10, 3)
    pool.clear()
    assert pool._bytes == 0
    pool.give(pool.take(10, F32))
    assert len(pool._free[(10, F32)]) == 1


def test_memory_that_is_not_there_is_told_to_whoever_takes_it() -> None:
    pool = BufferPool(bytes_max=1 << 62, pinned=False)
    pool.want(1 << 58, F32, 1)
    wait_until(lambda: pool.ready(1 << 58, F32, 1), within_seconds=WAIT_SECONDS, what="the failure")
    with pytest.raises(MemoryError, match="no room for"):
        pool.take(1 << 58, F32)
    pool.want(10, F32, 1)  # others are still served
    wait_for_stock(pool, 10, 1)


def test_many_threads_take_and_give_without_losing_count() -> None:
    pool = BufferPool(bytes_max=400, pinned=False)
    pool.want(10, F32, 4)

    def work() -> None:
        for _ in range(200):
            pool.give(pool.take(10, F32))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    wait_until(lambda: not pool._stocking, within_seconds=WAIT_SECONDS, what="the end of the stocking")
    assert pool._bytes == 40 * len(pool._free[(10, F32)]) <= 400
