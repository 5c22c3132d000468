"""The plan of memory against the peak of real trainers, on whatever devices this machine has.

    python -m benchmarks.memory_plan [CONFIG] [--set KEY=VALUE ...] [--json FILE]

Runs a job of a few steps with `understudy run` and prints, for each trainer, what `understudy plan` says that it needs
and what it has used at most: what torch had allocated on a GPU, resident memory on a CPU (large blocks are given back
at once, so that pages follow tensors; the copy for a checkpoint lies there too and is counted, snapshots for other
nodes are switched off). Run with and without recomputation, unless `compute.recompute` is set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from orchestrator.core import memory
from orchestrator.core.spec import JobSpec
from orchestrator.jobfile import load_job_file
from worker.training.memory import FOLDER

UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
EXAMPLE = Path(__file__).parents[1] / "examples" / "stdlib-moe.yaml"
RUN_SECONDS = 900
SMALL = ("model.width=512", "model.expert_width=1024", "model.layers=4", "model.sequence_length=256")
LARGE = (
    "precision=bfloat16",
    "cluster.device=cuda",
    "model.width=2048",
    "model.heads=16",
    "model.kv_heads=4",
    "model.layers=8",
    "model.expert_width=2816",
    "model.sequence_length=2048",
    "batch.microbatch_size=4",
)
"""Of a GPU: some ten gigabytes."""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    usual: tuple[str, ...] = ()
    if given.config is None:
        nodes = max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 2
        usual = (*(LARGE if torch.cuda.is_available() else SMALL), f"cluster.nodes={nodes}")
        usual += (
            f"cluster.replicas={min(2, nodes)}",
            "cluster.spares=0",
            "steps=4",
            "snapshot.enabled=false",
        )
    chosen = any(text.startswith("compute.recompute=") for text in given.overrides)
    variants = ((),) if chosen else (("compute.recompute=nothing",), ("compute.recompute=all",))
    found = []
    for variant in variants:
        overrides = [*usual, *given.overrides, *variant]
        found += measure(given.config or EXAMPLE, overrides)
    for row in found:
        print(
            f"{row['trainer']:<12} {row['device']:<5} recompute {row['recompute']:<10} planned "
            f"{memory.in_words(row['planned']):>8}  measured {memory.in_words(row['measured']):>8}  "
            f"planned / measured {row['planned'] / row['measured']:.3f}"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(config: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """One run: a row for each trainer. Raises RuntimeError when it fails."""
    spec = load_job_file(str(config), overrides)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [UNDERSTUDY, "run", str(config), "--workdir", str(workdir), "--plain"]
        command += [word for text in overrides for word in ("--set", text)]
        done = subprocess.run(
            command,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the run failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return [_row(spec, each) for each in sorted((workdir / FOLDER).glob("*.json"))]


def _row(spec: JobSpec, file: Path) -> dict[str, Any]:
    used, plan = json.loads(file.read_text()), memory.plan(spec)
    beside = plan.node_snapshot // spec.cluster.devices_per_node if used["device"] == "cpu" else 0
    return {
        "trainer": file.stem,
        "device": used["device"],
        "recompute": spec.compute.recompute.value,
        "planned": plan.peak + beside,
        "measured": used["peak_bytes"],
    }


if __name__ == "__main__":
    main()
