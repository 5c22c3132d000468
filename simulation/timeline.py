"""The story of a seed: one line for each thing worth telling, and a digest by which two runs are compared."""

from __future__ import annotations

from hashlib import sha256

from simulation.scheduler import Scheduler


class Timeline:
    """Lines in the order in which things happened."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._began = scheduler.now
        self._digest = sha256()
        self.lines: list[str] = []

    def say(self, who: str, text: str) -> None:
        """Tell that something happened now."""
        line = f"{self._scheduler.now - self._began:9.3f} {who:<12} {text}"
        self.lines.append(line)
        self._digest.update(line.encode())

    @property
    def digest(self) -> str:
        """Equal for equal stories."""
        return self._digest.hexdigest()[:16]
