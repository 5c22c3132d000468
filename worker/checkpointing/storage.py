"""The few operations that checkpoints need of a storage, and their files-and-folders form.

Names are relative: "folder" or "folder/file". Errors are OSError with an errno; `writer`, `sealing` and `reader` give
them their meaning. An object store fits behind the same Protocol: `create` is an upload that appears at `rename`,
`read_into` is a ranged GET, and renaming a folder is a copy of its one manifest object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Protocol

_READ_BYTES_MAX = 1 << 30  # one preadv moves no more than 2 GiB; stay well below


class Sink(Protocol):
    """A file that is being written from its beginning to its end."""

    def write(self, data: memoryview) -> None:
        """Appends all of `data`."""

    def sync(self) -> None:
        """Returns when what was written survives a loss of power."""

    def close(self) -> None:
        """Ends the writing; may be called twice."""


class Source(Protocol):
    """A file that is read at any place."""

    @property
    def bytes(self) -> int:
        """Its size."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fills `target` from `offset`; returns the bytes read, fewer only at the end of the file."""

    def close(self) -> None:
        """Ends the reading."""


class Readable(Protocol):
    """Where a saved state can be read: all that a reader needs of a storage."""

    def open(self, name: str) -> Source:
        """Opens a file for reading."""


class Storage(Readable, Protocol):
    """Where checkpoints are kept. One storage holds the checkpoints of one job."""

    def describe(self, name: str) -> str:
        """The full place of `name`, for people."""

    def make_folder(self, folder: str) -> None:
        """Makes the folder unless it exists."""

    def create(self, name: str) -> Sink:
        """Opens a file for writing, empty."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is none."""

    def rename(self, old: str, new: str) -> None:
        """Gives a file or folder its other name, in one indivisible step."""

    def sync_folder(self, folder: str) -> None:
        """Returns when the names in the folder ("" is the root) survive a loss of power."""

    def list_folder(self, folder: str) -> tuple[str, ...]:
        """The names in the folder ("" is the root), sorted; empty if there is no such folder."""

    def remove(self, name: str) -> None:
        """Removes a file; it need not exist."""

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and all in it; it need not exist."""


class FileStorage:
    """Folders and files under one root on a mounted filesystem."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, name: str) -> Path:
        assert not name.startswith("/") and ".." not in name.split("/")
        return self._root / name

    def describe(self, name: str) -> str:
        """The absolute path."""
        return str(self._path(name).absolute())

    def make_folder(self, folder: str) -> None:
        """Makes the root too."""
        self._path(folder).mkdir(parents=True, exist_ok=True)

    def create(self, name: str) -> Sink:
        """A file left by an earlier attempt is overwritten."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return _FileSink(os.open(self._path(name), flags, 0o644))

    def open(self, name: str) -> Source:
        """Raises FileNotFoundError if there is none."""
        return _FileSource(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))

    def size(self, name: str) -> int | None:
        """A folder counts as no file."""
        try:
            path = self._path(name)
            return path.stat().st_size if not path.is_dir() else None
        except FileNotFoundError:
            return None

    def rename(self, old: str, new: str) -> None:
        """A folder is not renamed onto one that holds files: OSError with ENOTEMPTY or EEXIST."""
        self._path(old).rename(self._path(new))

    def sync_folder(self, folder: str) -> None:
        """fsync of the directory itself."""
        descriptor = os.open(self._path(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def list_folder(self, folder: str) -> tuple[str, ...]:
        """Sorted names, hidden ones included."""
        try:
            return tuple(sorted(path.name for path in self._path(folder).iterdir()))
        except FileNotFoundError:
            return ()

    def remove(self, name: str) -> None:
        """Quietly does nothing where there is no such file."""
        self._path(name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Another process may be removing the same folder."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path(folder))


class _FileSink:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def write(self, data: memoryview) -> None:
        begun = self._offset
        while data:
            written = os.write(self._descriptor, data)
            if written == 0:
                raise OSError(errno.EIO, "the file took no more bytes")
            data = data[written:]
            self._offset += written
        # Starts the writing to the device now, so that it goes on while the next chunk is hashed, and keeps a
        # checkpoint from filling the page cache. It is advice: a filesystem may ignore it, `sync` does not rely on it.
        os.posix_fadvise(self._descriptor, begun, self._offset - begun, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class _FileSource:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = os.fstat(descriptor).st_size

    @property
    def bytes(self) -> int:
        return self._bytes

    def read_into(self, offset: int, target: memoryview) -> int:
        done = 0
        while done < len(target):
            got = os.preadv(self._descriptor, [target[done : done + _READ_BYTES_MAX]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
