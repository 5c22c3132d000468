"""The leak check of `conftest.py` sees a stray process, a daemon without a parent too, and fails its session."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT
from tests.leaks import MARK, kill, strays
from tests.waiting import wait_until

SLEEPER = "import time; time.sleep(60)"


def test_a_child_is_seen_until_it_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as child:
        found = [stray for stray in strays("no mark") if stray.pid == child.pid]
        assert [SLEEPER in stray.command for stray in found] == [True]
        kill(found[0])
    assert child.pid not in {stray.pid for stray in strays("no mark")}


def test_a_daemon_without_a_parent_is_seen_by_its_mark() -> None:
    mark = "a session of its own"
    launcher = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, start_new_session=True)\n"
        "child.returncode = 0\n"  # leave without waiting for it, as a launcher of daemons does
        "print(child.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher],
        env={**os.environ, MARK: mark},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    pid = int(done.stdout)
    found = wait_until(
        lambda: [stray for stray in strays(mark) if stray.pid == pid],
        within_seconds=10,
        what="the daemon is seen",
    )
    kill(found[0])
    wait_until(lambda: not strays(mark), within_seconds=10, what="the daemon is gone")


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two processes"])
def test_a_session_that_leaves_a_process_fails_and_names_it(tmp_path: Path, processes: list[str]) -> None:
    (tmp_path / "conftest.py").write_text(
        "import tests.conftest\nfrom tests.conftest import *\n\ntests.conftest.LEAK_GRACE_SECONDS = 0.2\n"
    )
    (tmp_path / "test_leaky.py").write_text(
        textwrap.dedent(
            f"""
            import subprocess, sys

            def test_leaves_a_process():
                quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
                child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True, **quiet)
                child.returncode = 0
            """
        )
    )
    arguments = ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), *processes, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    assert "1 passed" in result.stdout
    assert "left this process alive (killed now): " in result.stdout
    assert SLEEPER in result.stdout
