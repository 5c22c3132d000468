"""A process that hangs says where, when it is asked with a signal."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, threading
from worker.app import tell_stacks_when_asked

def waits_for_ever(entered, leave):
    entered.set()
    leave.wait()

tell_stacks_when_asked()
entered, leave = threading.Event(), threading.Event()
threading.Thread(target=waits_for_ever, args=(entered, leave)).start()
entered.wait()
os.kill(os.getpid(), signal.SIGUSR1)
leave.set()
"""


def test_the_stacks_of_all_threads_are_written_and_the_process_lives_on() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert "waits_for_ever" in told.stderr
    assert told.stderr.count("hread 0x") == 2
