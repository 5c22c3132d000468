"""Follows a file of lines that grows, and that a roll-back puts another file in the place of. Reads, never writes.

Next: `points.py`, which knows what the lines mean.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """What was found in one look."""

    anew: bool
    """These are the first lines of the file: what was seen before is to be forgotten."""
    lines: tuple[bytes, ...]
    more: bool
    """There are further ones by now."""


class LineFollower:
    """Used by one thread. The file may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._anew = True

    def forget(self) -> None:
        """The next look begins with the first line."""
        self._anew = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def look(self, limit: int) -> Lines:
        """The next lines, at most `limit`; a torn last one is left for later. Raises OSError."""
        if self._file is not None and not self._is_current(self._file):
            self.forget()
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                anew, self._anew = self._anew, False
                return Lines(anew=anew, lines=(), more=False)
            self._anew = True
        anew, self._anew = self._anew, False
        found: list[bytes] = []
        while len(found) < limit:
            at = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(at)
                return Lines(anew=anew, lines=tuple(found), more=False)
            found.append(line)
        return Lines(anew=anew, lines=tuple(found), more=True)

    def _is_current(self, file: BinaryIO) -> bool:
        """An open file keeps its number, so another file at this path has another one."""
        ours = os.fstat(file.fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) and there.st_size >= file.tell()
