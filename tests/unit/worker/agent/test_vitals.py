"""The processor time of a process, from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from worker.agent.vitals import processor_seconds

SPIN = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"


def test_work_is_counted_also_under_a_strange_name() -> None:
    before = processor_seconds(os.getpid())
    began = time.process_time()
    while time.process_time() - began < 0.1:
        pass
    after = processor_seconds(os.getpid())
    assert before is not None and after is not None and after - before >= 0.08


def test_another_process_is_seen_until_it_is_gone() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        used = processor_seconds(other.pid)
        assert used is not None and used >= 0.45
    assert processor_seconds(other.pid) is None
