"""Host memory that a GPU copies to directly: registered with the driver, chunk by chunk, in the background.

Pinning takes the lock of the process's memory map and that of the driver: 0.6 s per GiB in which no thread can touch
fresh memory or start a kernel. So it is done in small chunks with long pauses: training loses a tenth of its speed
meanwhile, and nobody stands still. A copy must not cross the edge of a chunk: `cuts` says where that is.
What must not live here: what is copied (`snapshot.py`).
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import torch

CHUNK_BYTES = 16 << 20
_PAUSES = 9.0
"""Between two chunks, in the time that the last one took."""
_PORTABLE = 1
"""cudaHostRegisterPortable."""


class PinnedMemory:
    """A registered stretch of memory, kept alive until `release`."""

    def __init__(self, memory: memoryview, device: torch.device) -> None:
        """Pins all of `memory`, which begins at a page; takes seconds for each GiB, so not on the training thread.

        Raises MemoryError where the driver refuses; nothing is pinned then.
        """
        self._registered: list[int] = []
        self._view = torch.frombuffer(memory, dtype=torch.uint8)
        self.address = self._view.data_ptr()
        assert self.address % mmap.PAGESIZE == 0
        # Of this thread: else the driver would make a context on another device.
        torch.cuda.set_device(device.index or 0)
        for start in range(0, len(memory), CHUNK_BYTES):
            size = min(CHUNK_BYTES, len(memory) - start)
            began = time.monotonic()
            outcome = int(torch.cuda.cudart().cudaHostRegister(self.address + start, size, _PORTABLE))
            if outcome != 0:
                self.release()
                raise MemoryError(f"no room for {len(memory)} bytes of pinned memory (CUDA error {outcome})")
            self._registered.append(self.address + start)
            time.sleep(_PAUSES * (time.monotonic() - began))

    @property
    def bytes(self) -> int:
        """Of the whole stretch."""
        return self._view.numel()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether all of a tensor lies in it."""
        start = tensor.data_ptr() - self.address
        return start >= 0 and start + tensor.numel() * tensor.element_size() <= self.bytes

    def release(self) -> None:
        """Unpins, with pauses; nothing may be copied there by a GPU any more."""
        while self._registered:
            began = time.monotonic()
            torch.cuda.cudart().cudaHostUnregister(self._registered.pop())
            time.sleep(_PAUSES * (time.monotonic() - began))

    def __del__(self) -> None:
        """Memory that is still registered when it is freed could not be pinned again by whoever gets it next."""
        for address in self._registered:
            torch.cuda.cudart().cudaHostUnregister(address)


def cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The bytes from `start` to `stop` of a pinned stretch, cut at the edges of chunks."""
    while start < stop:
        edge = min(stop, (start // CHUNK_BYTES + 1) * CHUNK_BYTES)
        yield start, edge
        start = edge
