"""A small file system under the checkpoints of a run, which can be filled to its last byte (root).

Next: `strikes.py`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

SIZE_MEGABYTES = 64
_FILLER = ".filler"
_CHUNK_BYTES = 1024 * 1024


class SmallDisk:
    """Mounted while it is used as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={SIZE_MEGABYTES}m"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "understudy-chaos", str(self.folder)], check=True
        )
        return self

    def __exit__(self, *unused: object) -> None:
        # Lazily: a process that is being ended may still have a file open.
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Take all the room that is left."""
        for size in (_CHUNK_BYTES, 4096, 1):
            try:
                with (self.folder / _FILLER).open("ab", buffering=0) as filler:
                    while filler.write(b"\0" * size):
                        pass
            except OSError:
                continue  # full for pieces of this size

    def free(self) -> None:
        """Give it back."""
        (self.folder / _FILLER).unlink(missing_ok=True)
