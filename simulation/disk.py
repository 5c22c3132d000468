"""The storage of checkpoints, in memory: the port of `worker/checkpointing/storage.py` with faults.

A full disk refuses every write; a torn file keeps its size and not its content, as after a loss of power under a
disk that lied. Renaming is atomic. What a file means is not known here. Next: `saves.py`.
"""

from __future__ import annotations

import errno


class Disk:
    """Folders of files by name, flat: "folder/file". Implements the Storage port."""

    def __init__(self) -> None:
        self.full = False
        self._files: dict[str, bytes] = {}
        self._folders: set[str] = set()

    def describe(self, name: str) -> str:
        return f"/checkpoints/{name}"

    def make_folder(self, folder: str) -> None:
        self._refuse_if_full(folder)
        self._folders.add(folder)

    def create(self, name: str) -> _File:
        self._refuse_if_full(name)
        if name.partition("/")[0] not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self.describe(name))
        self._files[name] = b""
        return _File(self, name)

    def open(self, name: str) -> _File:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self.describe(name))
        return _File(self, name)

    def size(self, name: str) -> int | None:
        content = self._files.get(name)
        return None if content is None else len(content)

    def rename(self, old: str, new: str) -> None:
        if old in self._files:
            self._files[new] = self._files.pop(old)
            return
        if old not in self._folders or new in self._folders:
            raise OSError(errno.ENOTEMPTY, "cannot rename", self.describe(old))
        self._folders.remove(old)
        self._folders.add(new)
        for name in [each for each in self._files if each.startswith(f"{old}/")]:
            self._files[f"{new}/{name.partition('/')[2]}"] = self._files.pop(name)

    def sync_folder(self, folder: str) -> None:
        """Nothing is lost here that was written."""

    def list_folder(self, folder: str) -> tuple[str, ...]:
        if not folder:
            return tuple(sorted(self._folders))
        return tuple(sorted(name.partition("/")[2] for name in self._files if name.startswith(f"{folder}/")))

    def remove(self, name: str) -> None:
        self._files.pop(name, None)

    def remove_folder(self, folder: str) -> None:
        self._folders.discard(folder)
        for name in [each for each in self._files if each.startswith(f"{folder}/")]:
            del self._files[name]

    # ---- what the reader and the faults do ----

    def content(self, name: str) -> bytes | None:
        """A whole file; None if there is none."""
        return self._files.get(name)

    def append(self, name: str, data: bytes) -> None:
        self._refuse_if_full(name)
        self._files[name] = self._files.get(name, b"") + data

    def tear(self, name: str) -> None:
        """Keep the size of a file and lose its content."""
        if name in self._files:
            self._files[name] = b"\0" * len(self._files[name])

    def _refuse_if_full(self, name: str) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", self.describe(name))


class _File:
    """A file that is open, to be written or read."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._name = name

    @property
    def bytes(self) -> int:
        return len(self._disk.content(self._name) or b"")

    def write(self, data: memoryview) -> None:
        self._disk.append(self._name, bytes(data))

    def read_into(self, offset: int, target: memoryview) -> int:
        found = (self._disk.content(self._name) or b"")[offset : offset + len(target)]
        target[: len(found)] = found
        return len(found)

    def sync(self) -> None:
        """Nothing is lost here that was written."""

    def close(self) -> None:
        """Nothing is kept open."""
