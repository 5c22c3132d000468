"""Where a controller can be found: DIR/controller.json, read by the CLI and by the next controller of the folder.

The next controller takes the same port, for that is where living agents look. Next: `server.py`, which binds it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

CONTROLLER_FILE = "controller.json"
_DIALLED = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""An address that means "all of mine" to a listener means nothing to a caller."""


def dialled(address: str) -> str:
    """The address at which a process of this machine reaches what listens on `address`."""
    host, _, port = address.rpartition(":")
    return f"{_DIALLED.get(host, host)}:{port}"


def is_loopback(address: str) -> bool:
    """Nobody outside this machine can reach it."""
    host = address.rpartition(":")[0]
    return host.startswith("127.") or host in ("localhost", "[::1]")


def last_port(workdir: Path) -> int:
    """The port of the folder's last controller; 0 when there was none."""
    try:
        said = json.loads((workdir / CONTROLLER_FILE).read_text(encoding="utf-8"))
        return int(str(said["address"]).rpartition(":")[2])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write(workdir: Path, *, address: str, job: str, started_at: float, tls: bool = False) -> None:
    """Say where this process listens; the file is whole or not there at all. Raises OSError."""
    content = {"address": address, "pid": os.getpid(), "started_at": started_at, "job": job, "tls": tls}
    scratch = workdir / f".{CONTROLLER_FILE}.{os.getpid()}"
    with scratch.open("w", encoding="utf-8") as new:
        new.write(json.dumps(content) + "\n")
        new.flush()
        os.fsync(new.fileno())
    scratch.replace(workdir / CONTROLLER_FILE)
