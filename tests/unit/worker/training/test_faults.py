"""Injected failures strike once, at their moment, and only their victim. Signals are really sent, by a child."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.training.faults import Faults

CHILD = """
import sys
from pathlib import Path
from worker.training.faults import Faults
fault = dict(kind="sigkill", node="node-1", device=0, step=3, phase="reduce", target="trainer")
faults = Faults([fault], sys.argv[1], Path(sys.argv[2]))
for step in (1, 2, 3, 4):
    for phase in ("forward", "reduce"):
        faults.strike(step, phase)
        print(step, phase, flush=True)
"""


def run(trainer: str, markers: Path) -> tuple[int, list[str]]:
    """Exit code and what the child got to."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, trainer, str(markers)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.split("\n")[:-1]


def test_the_victim_dies_at_its_moment_and_is_spared_the_next_time(tmp_path: Path) -> None:
    code, reached = run("node-1/0", tmp_path)
    assert code == -signal.SIGKILL
    assert reached[-1] == "3 forward"
    code, reached = run("node-1/0", tmp_path)
    assert code == 0
    assert reached[-1] == "4 reduce"


def test_another_trainer_is_not_concerned(tmp_path: Path) -> None:
    code, _ = run("node-1/1", tmp_path)
    assert code == 0
    assert not list(tmp_path.iterdir())


def test_a_kind_that_is_no_signal_is_refused(tmp_path: Path) -> None:
    wrong = {"kind": "sigsegv", "node": "n", "device": 0, "step": 1, "phase": "vote", "target": "node"}
    with pytest.raises(KeyError):
        Faults([wrong], "n/0", tmp_path)
