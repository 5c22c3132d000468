"""The story of a seed: one line for each thing worth telling, and a digest by which two runs are compared."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from simulation.scheduler import Scheduler


class Timeline:
    """Lines in the order in which things happened."""

    def __init__(self, scheduler: Scheduler, folder: Path) -> None:
        """`folder` is the world's own, whose name is another one each time: it is told as DIR."""
        self._scheduler = scheduler
        self._folder = str(folder)
        self._began = scheduler.now
        self._digest = sha256()
        self.lines: list[str] = []

    def say(self, who: str, text: str) -> None:
        """Tell that something happened now."""
        line = f"{self._scheduler.now - self._began:9.3f} {who:<12} {text.replace(self._folder, 'DIR')}"
        self.lines.append(line)
        self._digest.update(line.encode())

    @property
    def digest(self) -> str:
        """Equal for equal stories."""
        return self._digest.hexdigest()[:16]
