"""A storage that writes real files, writes down what it is asked, and can be told to fail at one of the calls."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from worker.checkpointing.storage import FileStorage, Sink


class RecordingStorage(FileStorage):
    """`calls` is what happened, in order. `fail_at` is a call that raises `failure` each time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[str] = []
        self.fail_at = ""
        self.failure = errno.EIO
        self.gate = threading.Event()  # writes wait here until it is set
        self.gate.set()

    def note(self, call: str) -> None:
        """Remembers the call, and fails it if this is the one."""
        self.calls.append(call)
        if self.fail_at and call.startswith(self.fail_at):
            raise OSError(self.failure, os.strerror(self.failure))

    def create(self, name: str) -> Sink:
        self.note(f"create {name}")
        return _RecordingSink(self, super().create(name), name)

    def rename(self, old: str, new: str) -> None:
        self.note(f"rename {old} {new}")
        super().rename(old, new)

    def sync_folder(self, folder: str) -> None:
        self.note(f"sync_folder {folder or '(root)'}")
        super().sync_folder(folder)

    def make_folder(self, folder: str) -> None:
        self.note(f"make_folder {folder}")
        super().make_folder(folder)

    def remove(self, name: str) -> None:
        self.note(f"remove {name}")
        super().remove(name)

    def remove_folder(self, folder: str) -> None:
        self.note(f"remove_folder {folder}")
        super().remove_folder(folder)


class _RecordingSink:
    def __init__(self, storage: RecordingStorage, sink: Sink, name: str) -> None:
        self._storage = storage
        self._sink = sink
        self._name = name

    def write(self, data: memoryview) -> None:
        self._storage.note(f"write {self._name}")
        assert self._storage.gate.wait(60.0)
        self._sink.write(data)

    def sync(self) -> None:
        self._storage.note(f"sync {self._name}")
        self._sink.sync()

    def close(self) -> None:
        self._storage.note(f"close {self._name}")
        self._sink.close()
