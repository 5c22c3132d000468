"""TensorBoard's files of a run against its ledger, read with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.chaos.runs import Run

EVERYTHING = dict.fromkeys(("scalars", "tensors", "histograms", "compressedHistograms"), 0)


def curves(folder: Path) -> EventAccumulator:
    """A folder of event files, whole."""
    accumulator = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    accumulator.Reload()
    return accumulator


def assert_curves_are_the_ledger(run: Run) -> None:
    """Each committed step once, in order, with its numbers; no step besides."""
    ledger, train = run.ledger(), curves(run.workdir / "tensorboard" / "train")
    for tag in ("loss", "learning_rate", "gradient_norm", "generation", "step_seconds"):
        told = [(event.step, event.value) for event in train.Scalars(tag)]
        assert told == [(line["step"], float(np.float32(line[tag]))) for line in ledger], tag


def told_incidents(run: Run) -> list[str]:
    """The texts of the incidents that are told."""
    found: Any = curves(run.workdir / "tensorboard" / "job")
    if "incidents/text_summary" not in found.Tags()["tensors"]:
        return []
    return [each.tensor_proto.string_val[0].decode() for each in found.Tensors("incidents/text_summary")]
