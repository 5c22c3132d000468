"""What a user without rights meets, also where the suite runs as root.

`somebody_else` is a context in which this process may do what user "nobody" may; where it is not root, it is somebody
without rights already. Files for it lie in the folder of the fixture `nobodys`, since others cannot reach pytest's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_NOBODY = 65534


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Root's rights are laid down, and taken up again at the end."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
