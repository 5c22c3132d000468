"""Host buffers for copies of live state: used again, and made ready by a thread that is not the training thread.

Fresh memory is what a copy costs most: a page fault per 4 KiB (about 0.4 s per GiB), or a slow call to the driver where
it is pinned (0.6 s per GiB, against 0.02 s for the copy from the GPU). So whoever foresees a copy says so with `want`,
and the stock is filled in the background. `take` never waits: where nothing is ready it pays the price itself.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

Key = tuple[int, torch.dtype]


class BufferPool:
    """Free buffers by length and dtype, of `bytes_max` in all. Safe to share between threads."""

    def __init__(self, *, bytes_max: int, pinned: bool) -> None:
        self._bytes_max = bytes_max
        self._pinned = pinned
        self._condition = threading.Condition()
        self._free: dict[Key, list[Tensor]] = {}
        self._wanted: dict[Key, int] = {}
        self._failed: set[Key] = set()
        self._bytes = 0
        self._stocking = False

    def want(self, length: int, dtype: torch.dtype, count: int) -> None:
        """Keeps `count` of these ready from now on, until `clear`; more than `bytes_max` are not made."""
        with self._condition:
            self._wanted[(length, dtype)] = count
            self._order()

    def ready(self, length: int, dtype: torch.dtype, count: int) -> bool:
        """Whether `count` can be taken at no cost, or waiting is no use: the pool is full, or memory is short."""
        with self._condition:
            key = (length, dtype)
            return len(self._free.get(key, ())) >= count or not self._stocking or key in self._failed

    def take(self, length: int, dtype: torch.dtype) -> Tensor:
        """A buffer with any content; raises MemoryError where the host has no room for a fresh one."""
        with self._condition:
            free = self._free.get((length, dtype))
            if free:
                self._bytes -= length * dtype.itemsize
                tensor = free.pop()
                self._order()
                return tensor
        return self._fresh(length, dtype)

    def give(self, tensor: Tensor) -> None:
        """Takes a buffer back; it is freed where the pool is full."""
        with self._condition:
            self._keep(tensor)

    def clear(self) -> None:
        """Frees everything, and wants nothing any more."""
        with self._condition:
            self._wanted.clear()
            self._failed.clear()
            self._free.clear()
            self._bytes = 0

    def _order(self) -> None:
        if not self._stocking and self._lacking() is not None:
            self._stocking = True
            threading.Thread(target=self._stock, name="buffer-stock", daemon=True).start()

    def _stock(self) -> None:
        """The background thread: fills what is wanted and ends."""
        while True:
            with self._condition:
                key = self._lacking()
                if key is None:
                    self._stocking = False
                    return
            try:
                tensor = self._fresh(*key).fill_(0)  # touches each page
            except MemoryError:
                with self._condition:
                    self._failed.add(key)  # who takes one will be told
                continue
            with self._condition:
                if key in self._wanted:
                    self._keep(tensor)

    def _lacking(self) -> Key | None:
        for (length, dtype), count in self._wanted.items():
            fits = self._bytes + length * dtype.itemsize <= self._bytes_max
            if (length, dtype) in self._failed:
                continue
            if fits and len(self._free.get((length, dtype), ())) < count:
                return length, dtype
        return None

    def _keep(self, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._bytes + size <= self._bytes_max:
            self._free.setdefault((tensor.numel(), tensor.dtype), []).append(tensor)
            self._bytes += size

    def _fresh(self, length: int, dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty(length, dtype=dtype, pin_memory=self._pinned)
        except RuntimeError as error:  # what torch raises when an allocation fails
            raise MemoryError(f"no room for {length} elements: {error}") from error
