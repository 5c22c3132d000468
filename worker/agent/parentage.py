"""A trainer never outlives its agent: the kernel ends it, whatever either of them is doing or whether it is stopped.

Called by the trainer itself as the first thing it does (not between fork and exec, where a process with threads may
do next to nothing). Until then, and where there is no such call, the end of the socket tells. Next: `supervisor.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The agent ended before its trainer had come so far."""


def die_with_parent(parent_pid: int) -> None:
    """Have this process killed when the thread that started it ends. Raises ParentGone when that was before."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent_pid:
        raise ParentGone(f"the agent {parent_pid} is gone, the parent is {os.getppid()}")
