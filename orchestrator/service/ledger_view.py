"""Follows the ledger's file for readers: the newest steps and the time spent in all of them. Reads, never writes.

Each look reads only what was added since the last one; a ledger that was rolled back is another file, and is read anew.
Totals that prove things about samples are in `controller/ledger_lines.py`. Next: `views.py`, which shows this.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.controller.ledger_lines import decode_line
from orchestrator.controller.validations import VALIDATIONS_FILE, read_validations
from orchestrator.core.measurements import StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """What committed steps say, at one moment."""

    recent: tuple[StepRecord, ...] = ()
    """The newest steps, oldest first."""
    productive_seconds: float = 0.0
    """Time spent in committed steps since the moment that was asked about."""
    validations: tuple[Mapping[str, Any], ...] = ()
    """Lines of the file of validations, by step."""


class LedgerFollower:
    """One reader of a growing ledger. `look` may be called from any thread, and may read a file."""

    def __init__(self, path: Path, *, recent: int) -> None:
        self._path = path
        self._recent: deque[StepRecord] = deque(maxlen=recent)
        self._productive_seconds = 0.0
        self._since = 0.0
        self._file_id: tuple[int, int] | None = None
        self._offset = 0
        self._validations_path = path.with_name(VALIDATIONS_FILE)
        self._validations: tuple[Mapping[str, Any], ...] = ()
        self._validations_seen: tuple[int, int, int] | None = None
        self._guard = threading.Lock()

    def look(self, *, since: float = 0.0) -> LedgerView:
        """The ledger as it is now; empty before its first line. `since` is when the job was started, for the last time.

        Raises OSError, ValueError for a damaged line.
        """
        with self._guard:
            if since != self._since:
                self._forget()
                self._since = since
            try:
                with self._path.open("rb") as lines:
                    self._begin_anew_when_replaced(os.fstat(lines.fileno()))
                    lines.seek(self._offset)
                    for line in lines:
                        if not line.endswith(b"\n"):
                            break  # still being written
                        self._take(decode_line(line))
                        self._offset += len(line)
            except FileNotFoundError:
                self._forget()
            return LedgerView(
                recent=tuple(self._recent),
                productive_seconds=self._productive_seconds,
                validations=self._look_at_validations(),
            )

    def _look_at_validations(self) -> tuple[Mapping[str, Any], ...]:
        """Read anew only when the file has changed: it is short, and rarely written."""
        try:
            status = self._validations_path.stat()
        except FileNotFoundError:
            return ()
        seen = status.st_ino, status.st_size, status.st_mtime_ns
        if seen != self._validations_seen:
            self._validations = tuple(read_validations(self._validations_path))
            self._validations_seen = seen
        return self._validations

    def _begin_anew_when_replaced(self, status: os.stat_result) -> None:
        file_id = (status.st_dev, status.st_ino)
        if file_id != self._file_id or status.st_size < self._offset:
            self._forget()
            self._file_id = file_id

    def _forget(self) -> None:
        self._recent.clear()
        self._productive_seconds = 0.0
        self._offset = 0
        self._file_id = None

    def _take(self, record: StepRecord) -> None:
        self._recent.append(record)
        if record.time >= self._since:
            self._productive_seconds += record.step_seconds
