"""The secret that trainers of one job show each other when they copy state: random, in no log and no database.

It goes from here into the answer to a registration and nowhere else: it is no part of the job's spec (which is shown,
stored, and written into checkpoints), and the core never hears of it. A restarted controller must give newcomers the
one that living trainers have, so it is kept in the work directory, readable by its owner only.
Next: `worker_api.py`, which adds it to every Welcome.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN_FILE = "copy-token"
TOKEN_BYTES = 32


def fresh(workdir: Path) -> str:
    """Make the token of a job that begins, instead of the last one's. Raises OSError."""
    token = secrets.token_hex(TOKEN_BYTES)
    scratch = workdir / f".{TOKEN_FILE}.{os.getpid()}"
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(workdir / TOKEN_FILE)
    return token


def kept(workdir: Path) -> str:
    """The token of a job that is under way; a new one where the file is gone or empty. Raises OSError."""
    try:
        token = (workdir / TOKEN_FILE).read_text().strip()
    except FileNotFoundError:
        token = ""
    return token or fresh(workdir)
