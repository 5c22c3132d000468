"""Training text as bytes, and which bytes a sample is.

A sample has a global number (its id), counted from 0 over the whole job; step s takes ids [(s-1)*B, s*B), microbatch
i of the step a contiguous slice of them. An id alone says which window of the text it is, so there is no position to
keep, hand over or lose: whoever is dealt a microbatch reads it. In each epoch every window comes once, in an order
drawn from the job's seed.

What must not live here: who computes which microbatch (the deal), and anything that is kept between calls.

Shapes: B sequences; C = S + 1 bytes of a window (input and the byte after it).
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.model.fields import read_fields, require
from worker.training.permutation import mixed, permuted

STDLIB = "stdlib"
# Third-party code, and tests (more bytes than all the rest, with deliberately broken sources among them).
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
HASH_BLOCK_BYTES = 1 << 24

Bytes = npt.NDArray[np.uint8]


class DataError(ValueError):
    """Data that cannot be trained on: names `data.path`, and says what to do."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(f"data.path is {path!r}: {problem}; {remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How many samples a step has."""

    microbatches: int
    microbatch_size: int

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> BatchConfig:
        """Reads the job's `batch` section, strictly. Raises FieldError."""
        return read_fields(cls, values, "batch")

    def __post_init__(self) -> None:
        for name in ("microbatches", "microbatch_size"):
            require(getattr(self, name) >= 1, f"batch.{name}", getattr(self, name), "1 or more is needed")

    @property
    def samples_per_step(self) -> int:
        return self.microbatches * self.microbatch_size

    def microbatch_ids(self, step: int, microbatch: int) -> range:
        """Sample ids of one microbatch (counted from 0) of a step (counted from 1)."""
        assert step >= 1, f"steps count from 1, not {step}"
        assert 0 <= microbatch < self.microbatches, f"no microbatch {microbatch} among {self.microbatches}"
        first = (step - 1) * self.samples_per_step + microbatch * self.microbatch_size
        return range(first, first + self.microbatch_size)

    def step_ids(self, step: int) -> range:
        """Sample ids of a whole step."""
        first = self.microbatch_ids(step, 0).start
        return range(first, first + self.samples_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """All bytes, file after file in the order of their names; a single file stays on disk and is mapped."""

    names: tuple[str, ...]
    """Relative to what was asked for, so that the same data elsewhere has the same fingerprint."""
    sizes: tuple[int, ...]
    content: Bytes

    def fingerprint(self) -> str:
        """Hex digest of names, sizes and bytes. Reads everything: about a second per gigabyte."""
        digest = hashlib.blake2b(digest_size=16)
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{len(name)}:{name}:{size};".encode(errors="surrogateescape"))
        for start in range(0, len(self.content), HASH_BLOCK_BYTES):
            digest.update(self.content[start : start + HASH_BLOCK_BYTES].tobytes())
        return digest.hexdigest()


def open_text(path: str) -> Text:
    """Opens a file, the files of a folder, those that match a glob, or `stdlib`. Raises DataError."""
    root, files = _files(path)
    if not files:
        raise DataError(path, "no file is there", "name a file, a folder, a glob with matches, or stdlib")
    try:
        if len(files) == 1 and files[0].stat().st_size > 0:
            content: Bytes = np.memmap(files[0], dtype=np.uint8, mode="r")
            sizes: tuple[int, ...] = (len(content),)
        else:
            pieces = [np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in files]
            content = np.concatenate(pieces)
            sizes = tuple(len(piece) for piece in pieces)
    except OSError as error:
        raise DataError(path, f"it cannot be read ({error})", "make it readable on every node") from error
    names = tuple(os.path.relpath(file, root) for file in files)
    return Text(names=names, sizes=sizes, content=content)


def _files(path: str) -> tuple[Path, list[Path]]:
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


class Windows:
    """The text cut into windows of one sequence (each also ends in the first byte of the next), by sample id."""

    def __init__(self, text: Text, *, path: str, sequence_length: int, seed: int) -> None:
        """`path` is where the text came from, for the message. Raises DataError for less than one window."""
        self._text = text
        self._length = sequence_length
        self._seed = seed
        self.count = (len(text.content) - 1) // sequence_length
        if self.count < 1:
            raise DataError(
                path,
                f"it holds {len(text.content)} bytes, one sample needs {sequence_length + 1}",
                "name a longer text, or lower model.sequence_length",
            )

    def window_of(self, sample: int) -> int:
        """Which window a sample id is: each one once per epoch."""
        assert sample >= 0, f"sample ids count from 0, not {sample}"
        epoch, position = divmod(sample, self.count)
        return permuted(position, self.count, mixed(self._seed, epoch))

    def batch(self, ids: Sequence[int]) -> Tensor:
        """The bytes of some samples: int64 [B, C]; [0, C] for none."""
        window_BC = np.empty((len(ids), self._length + 1), dtype=np.int64)
        for row, sample in enumerate(ids):
            start = self.window_of(sample) * self._length
            window_BC[row] = self._text.content[start : start + self._length + 1]
        return torch.from_numpy(window_BC)
