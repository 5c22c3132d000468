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
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGUSR1)
        told = ""
        while not ("thread MainThread:" in told and "input()" in told and "in waits_for_ever" in told):
            told += process.stderr.readline()  # pytest's time-out bounds this
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(60) == 0
    assert "thread waiter:" in told
