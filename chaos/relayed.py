"""`python -m chaos.relayed PORTS NODE COMMAND...`: become COMMAND, with its controller replaced by the node's relay."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def redirected(command: Sequence[str], port: int) -> list[str]:
    """The command with another address after `--controller`."""
    words = list(command)
    words[words.index("--controller") + 1] = f"127.0.0.1:{port}"
    return words


if __name__ == "__main__":
    ports_file, node, *command = sys.argv[1:]
    words = redirected(command, json.loads(Path(ports_file).read_text())[node])
    os.execvp(words[0], words)
