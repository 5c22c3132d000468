"""Text as bytes: a file, the files of a folder, those that match a glob, or the sources of the standard library.

Files follow one another in the order of their names, which does not depend on the machine. Large ones stay on disk
and are mapped, small ones are read at once. What must not live here: what a sample is (`windows.py`).
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.data.errors import TO_TRAIN_ON, DataError

STDLIB = "stdlib"
# Third-party code, and tests (more bytes than all the rest, with deliberately broken sources among them).
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
HASH_BLOCK_BYTES = 1 << 24
MAPPED_BYTES = 1 << 24
"""A file of this size or more is mapped: each trainer of a machine would hold a copy of what is read."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """All bytes, file after file in the order of their names."""

    names: tuple[str, ...]
    """Relative to what was asked for, so that the same data elsewhere has the same fingerprint."""
    sizes: tuple[int, ...]
    pieces: tuple[Bytes, ...]
    """One after the other; neighbours that are small are one piece."""
    ends: tuple[int, ...]
    """Where each piece ends."""

    @classmethod
    def of(cls, names: tuple[str, ...], contents: Iterable[Bytes]) -> Text:
        """From the content of each file."""
        sizes: list[int] = []
        pieces: list[Bytes] = []
        small: list[Bytes] = []
        for content in contents:
            sizes.append(len(content))
            if isinstance(content, np.memmap):
                pieces += [*_joined(small), content]
                small = []
            else:
                small.append(content)
        pieces += _joined(small)
        ends = tuple(accumulate(len(piece) for piece in pieces))
        return cls(names=names, sizes=tuple(sizes), pieces=tuple(pieces), ends=ends)

    @property
    def bytes(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop)."""
        assert 0 <= start <= stop <= self.bytes, (start, stop, self.bytes)
        found: list[Bytes] = []
        number = bisect_right(self.ends, start)
        while start < stop:
            offset = self.ends[number] - len(self.pieces[number])
            until = min(stop, self.ends[number])
            found.append(self.pieces[number][start - offset : until - offset])
            start, number = until, number + 1
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty(0, dtype=np.uint8)

    def fingerprint(self) -> str:
        """Hex digest of names, sizes and bytes. Reads everything: about a second per gigabyte."""
        digest = hashlib.blake2b(digest_size=16)
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{len(name)}:{name}:{size};".encode(errors="surrogateescape"))
        for piece in self.pieces:
            for start in range(0, len(piece), HASH_BLOCK_BYTES):
                digest.update(piece[start : start + HASH_BLOCK_BYTES].tobytes())
        return digest.hexdigest()


def _joined(small: list[Bytes]) -> list[Bytes]:
    return [np.concatenate(small)] if sum(map(len, small)) else []


def open_text(path: str, *, field: str = TO_TRAIN_ON) -> Text:
    """Opens a file, the files of a folder, those that match a glob, or `stdlib`. Raises DataError."""
    root, files = find_files(path)
    if not files:
        raise DataError(
            path, "no file is there", "name a file, a folder, a glob with matches, or stdlib", field=field
        )
    names = tuple(os.path.relpath(file, root) for file in files)
    try:
        return Text.of(names, [_content(file) for file in files])
    except OSError as error:
        problem = f"it cannot be read ({error})"
        raise DataError(path, problem, "make it readable on every node", field=field) from error


def _content(file: Path) -> Bytes:
    if file.stat().st_size >= MAPPED_BYTES:
        return np.memmap(file, dtype=np.uint8, mode="r")
    return np.frombuffer(file.read_bytes(), dtype=np.uint8)


def find_files(path: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files, in an order that does not depend on the machine."""
    if path == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return root, _sorted(file for file in _walk(root, NOT_STDLIB) if file.suffix == ".py")
    if Path(path).is_file():
        return Path(path).parent, [Path(path)]
    if Path(path).is_dir():
        return Path(path), _sorted(_walk(Path(path), frozenset()))
    if has_magic(path):
        matches = [Path(match) for match in glob(path, recursive=True)]
        fixed = path[: min(path.find(sign) for sign in "*?[" if sign in path)]
        return Path(fixed).parent if not fixed.endswith("/") else Path(fixed), _sorted(matches)
    return Path(path), []


def _walk(root: Path, skipped: frozenset[str]) -> Iterable[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        for name in names:
            yield Path(folder, name)


def _sorted(files: Iterable[Path]) -> list[Path]:
    return sorted((file for file in files if file.is_file()), key=os.fsencode)
