"""The loggers that a job asks for. Next: `logger.py`."""

from __future__ import annotations

from pathlib import Path

from orchestrator.loggers import tensorboard
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.tensorboard import TensorBoardSink
from orchestrator.loggers.told import Told
from orchestrator.loggers.wandb_logger import WandbSink


def loggers_of(told: Told, workdir: Path) -> tuple[Logger, ...]:
    """Not started yet."""
    chosen = []
    if told.spec.logging.tensorboard:
        chosen.append(Logger("TensorBoard", TensorBoardSink(workdir / tensorboard.FOLDER, told)))
    if told.spec.logging.wandb.project:
        chosen.append(Logger("Weights & Biases", WandbSink(workdir, told)))
    return tuple(chosen)
