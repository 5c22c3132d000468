"""A folder of event files that says a sequence of points, and nothing else.

`begin`, then `put` each point from the first on: what stands there already is compared, what differs is cut off with
all that follows, the rest is appended. `settled` says that the sequence ends here for now, so that what stands behind
it is cut off too. So it makes no difference how often a writer was killed, and where: the folder holds what was put.

Where something was cut, a new file begins whose first record tells a TensorBoard that is looking to drop what it has
read of it. One process writes a folder (`tensorboard.py` sees to it); any number read. Next: `events.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.loggers.events import Point, is_opening, opening, payload_of, read_records, record_of

log = logging.getLogger(__name__)

_NAME = "events.out.tfevents.{number:010d}.understudy"
_PATTERN = "events.out.tfevents.*.understudy"


class EventFolder:
    """Used by one thread. Every method raises OSError; after one only `begin` helps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._present: Iterator[tuple[bytes, Path, int]] | None = None
        """What stands there and was not compared yet; None when the end was reached."""
        self._agreed: tuple[Path, int] | None = None
        """The file and the place up to which everything is as it should be."""
        self._last_step = 0
        self._pending = bytearray()

    def begin(self) -> None:
        """Compare from the first point on."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._pending.clear()
        self._agreed = None
        self._last_step = 0
        self._present = self._standing()

    def put(self, point: Point) -> None:
        """The next point of the sequence. It is in the file after `written` or `settled`."""
        payload = payload_of(point)
        if self._present is not None:
            following = next(self._present, None)
            if following is not None and following[0] == payload:
                self._agreed = following[1], following[2]
                self._last_step = point.step
                return
            self._present = None
            self._cut(point.step, point.at)
        self._pending += record_of(payload)
        self._last_step = point.step

    def settled(self, at: float) -> None:
        """The sequence ends here for now: cut off what stands behind it, write what waits to be written."""
        if self._present is not None:
            self._present = None
            self._cut(self._last_step + 1, at)
        self.written()

    def written(self) -> None:
        """Write what waits to be written; there are more points to come."""
        if not self._pending or self._agreed is None:
            return
        path, end = self._agreed
        data = bytes(self._pending)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, end)
                raise OSError(0, f"only {written} of {len(data)} bytes were written (disk full?)", str(path))
        finally:
            os.close(descriptor)
        self._agreed = path, end + written
        self._pending.clear()

    def _files(self) -> list[Path]:
        return sorted(self._path.glob(_PATTERN))

    def _standing(self) -> Iterator[tuple[bytes, Path, int]]:
        for path in self._files():
            for payload, end in read_records(path):
                if is_opening(payload):
                    self._agreed = path, end
                else:
                    yield payload, path, end

    def _cut(self, first_step: int, at: float) -> None:
        """Keep what was agreed on. Whatever stood behind it, torn or whole, goes; then a new file goes on."""
        files = self._files()
        kept = self._agreed
        behind = [path for path in files if kept is None or path > kept[0]]
        torn = kept is not None and kept[0].stat().st_size > kept[1]
        if kept is not None and not torn and not behind:
            return
        for path in reversed(behind):
            path.unlink()
        if kept is not None and torn:
            os.truncate(*kept)
        newest = max((int(path.name.split(".")[3]) for path in files), default=0)
        path = self._path / _NAME.format(number=newest + 1)
        start = opening(at, first_step if files else None)
        scratch = path.with_name(f".{path.name}.new")
        scratch.write_bytes(start)
        scratch.replace(path)
        self._agreed = path, len(start)
