"""`python -m orchestrator wandb`: hears lines of JSON and tells Weights & Biases. The only door to its library.

The first line says which run; each further one holds a row, counts, words for the summary, and the position that is
written down when they have been told. The end of the input is the end of the run. A service that does not answer
then is waited for with a limit. Next: `wandb_logger.py`, the other end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import wandb

from orchestrator.loggers.lock import take_lock
from orchestrator.loggers.wandb_logger import LOCK_FILE

INIT_SECONDS = 60
FINISH_SECONDS = 120.0
"""How long the service may take to receive what is left."""
BINS_LIMIT = 512
"""What W&B takes for one histogram."""


def main(lines: Iterable[bytes]) -> int:
    """The whole process; its exit status."""
    heard = iter(lines)
    try:
        begin: dict[str, Any] = json.loads(next(heard))
    except (StopIteration, ValueError):
        return 2
    position_path = Path(begin["position_path"])
    take_lock(position_path.with_name(LOCK_FILE), wait=True)  # given back by the end of this process
    try:
        run = _begin(begin)
        for line in heard:
            _tell(run, json.loads(line), position_path)
        _finish(run)
    except Exception as error:  # noqa: BLE001 - the last line of a process: said in one line, not as a traceback
        print(f"W&B: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _begin(begin: dict[str, Any]) -> Any:  # their Run
    online = begin["mode"] == "online"
    run = wandb.init(
        project=begin["project"],
        entity=begin["entity"],
        group=begin["group"],
        name=begin["name"],
        id=begin["id"],
        tags=begin["tags"],
        config=begin["config"],
        dir=begin["folder"],
        mode=begin["mode"],
        **({"resume": "allow"} if online else {}),
        settings=wandb.Settings(
            console="off", silent=True, disable_git=True, x_disable_stats=True, init_timeout=INIT_SECONDS
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _tell(run: Any, said: dict[str, Any], position_path: Path) -> None:
    row = dict(said["row"])
    for name, counts in said["counts"].items():
        if len(counts) <= BINS_LIMIT:
            row[f"train/{name}"] = wandb.Histogram(np_histogram=(counts, list(range(len(counts) + 1))))
    run.log(row)
    for name, words in said["summary"].items():
        run.summary[name] = words
    scratch = position_path.with_name(position_path.name + ".new")
    scratch.write_text(json.dumps(said["position"]))
    scratch.replace(position_path)


def _finish(run: Any) -> None:
    """Give the service so long, and end in any case."""
    late = threading.Timer(FINISH_SECONDS, os._exit, (3,))
    late.daemon = True
    late.start()
    run.finish()
    late.cancel()
