"""Names of the parts of a model's state, as trainers and checkpoints call them (`worker/checkpointing/names.py`)."""

from __future__ import annotations

DENSE = "dense"
"""The part that holds everything but the experts; every member has it. In a pipeline: of the first stage."""


def dense_part(stage: int) -> str:
    """The name of a stage's dense part; every member of the stage has it."""
    return f"{DENSE}-{stage:05d}" if stage else DENSE


def expert_part(expert: int) -> str:
    """The name of an expert's part."""
    return f"expert-{expert:05d}"
