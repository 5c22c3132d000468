"""What a trainer does before it says that it is ready: one tiny step, so that everything loaded lazily is loaded.

A spare that has done this walks on without import pauses. Nothing of it touches the job's state.
"""

from __future__ import annotations

import dataclasses

import torch

from worker.model.compute import ComputeConfig
from worker.model.config import ModelConfig
from worker.model.objective import microbatch_loss
from worker.model.router import ForwardContext
from worker.model.transformer import Transformer
from worker.parallel.dispatch import LocalDispatcher
from worker.training.optimizer import AdamW
from worker.training.state import TrainingState

_POSITIONS = 8


def warm_up(config: ModelConfig, compute: ComputeConfig, optimizer: AdamW, device: torch.device) -> None:
    """Forward, backward and update of a one-layer model of the job's shapes, thrown away afterwards."""
    tiny = dataclasses.replace(config, layers=1, sequence_length=_POSITIONS)
    dispatcher = LocalDispatcher(tiny.experts)
    model = Transformer(tiny, seed=0, dispatcher=dispatcher, device=device, compute=compute)
    state = TrainingState(tiny, 0, device)
    state.initialise(range(tiny.experts))
    state.attach(model, dispatcher)
    window_BC = torch.zeros(1, _POSITIONS + 1, dtype=torch.int64, device=device)
    loss = microbatch_loss(
        model,
        window_BC,
        ForwardContext(step=1, microbatch=0),
        step_tokens=_POSITIONS,
        step_microbatches=1,
    )
    loss.objective.backward()
    state.ready = 1
    state.commit(optimizer, 1, 1.0, halfway=lambda: None)
