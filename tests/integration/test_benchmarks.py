"""Benchmarks run: what they measure is for a quiet machine, but one that breaks would go unseen until then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "overhead": ("--blocks", "1", "--block-steps", "1"),
    "decisions": ("--agents", "16"),
}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_measures_something(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALLEST[name], "--json", str(figures)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert json.loads(figures.read_text())
