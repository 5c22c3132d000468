"""How much memory a trainer has really used, beside what `understudy plan` says that it needs.

On a GPU it is what torch had allocated at most; on a CPU, where nobody keeps count, the resident memory of this process
at most, less what it was before there was any state. Each trainer leaves both figures in a file of the workdir when its
generation ends. What must not live here: estimates (`orchestrator/core/memory.py`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

FOLDER = "memory"
"""Of the workdir."""

log = logging.getLogger(__name__)


class Meter:
    """Measures from its creation on; one for each trainer process, made when it is warm."""

    def __init__(self, device: torch.device, file: Path) -> None:
        self._device = device
        self._file = file
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before = 0 if device.type == "cuda" else _status("VmRSS")

    @property
    def peak(self) -> int:
        """Bytes so far, at most."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return _status("VmHWM") - self._before

    def write(self) -> None:
        """Leave the figure in the file; a full disk costs the figure and nothing else."""
        figures = {"device": self._device.type, "peak_bytes": self.peak, "before_bytes": self._before}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(figures) + "\n")
        except OSError as error:
            log.warning("the peak of memory is not written to %s: %s", self._file, error)


def _status(name: str) -> int:
    """A size that the kernel knows of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"the kernel says nothing of {name}")
