"""A process that hangs says where, when it is asked with a signal."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import threading
from worker.app import tell_stacks_when_asked

def waits_for_ever(entered, leave):
    entered.set()
    leave.wait()

tell_stacks_when_asked()
entered, leave = threading.Event(), threading.Event()
threading.Thread(target=waits_for_ever, args=(entered, leave), name="waiter").start()
entered.wait()
print("go", flush=True)
input()
leave.set()
"""


def test_the_stacks_of_all_threads_are_written_and_the_process_lives_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGUSR1)
        told = ""
        while not ("in <module>" in told and "in waits_for_ever" in told):
            line = process.stderr.readline()
            assert line, f"the process has ended: {told}"
            told += line
        assert "thread MainThread:" in told and "thread waiter:" in told
        _, rest = process.communicate("\n", timeout=60)
        assert process.returncode == 0, rest
    finally:
        process.kill()
        process.wait()
