"""Small models for tests, with their flat buffers: only what matters in a test is written there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model.compute import ComputeConfig
from worker.model.config import ModelConfig, Precision
from worker.model.initialise import initialise_dense, initialise_expert
from worker.model.objective import MicrobatchLoss, microbatch_loss
from worker.model.parts import bind, dense_layout, expert_layout
from worker.model.router import ForwardContext
from worker.model.transformer import Transformer
from worker.parallel.dispatch import Dispatcher, LocalDispatcher

CPU = torch.device("cpu")
SEED = 7
PLAINLY = ComputeConfig()


def model_mapping(**changes: object) -> dict[str, object]:
    """What the controller sends as the `model` section, for a model of a few thousand weights."""
    return {
        "vocabulary": 256,
        "width": 24,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "experts": 5,
        "top_k": 2,
        "expert_width": 12,
        "sequence_length": 8,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "aux_loss": 0.01,
        "router_temperature": 1.0,
        "router_noise": 0.0,
        **changes,
    }


def small_config(precision: Precision = Precision.FLOAT64, /, **changes: object) -> ModelConfig:
    return ModelConfig.from_mapping(model_mapping(**changes), precision.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A model at version 0 and the buffers that its parameters are views of."""

    model: Transformer
    dense_P: Tensor
    experts_EN: Tensor
    dense_grad_P: Tensor
    experts_grad_EN: Tensor

    def loss(
        self, window_BC: Tensor, *, step: int = 1, microbatch: int = 0, parts: int = 1
    ) -> MicrobatchLoss:
        """Of a microbatch of a step that has `parts` like it."""
        context = ForwardContext(step=step, microbatch=microbatch)
        tokens = max(1, window_BC[:, 1:].numel()) * parts
        return microbatch_loss(self.model, window_BC, context, step_tokens=tokens, step_microbatches=parts)


def bound_model(
    config: ModelConfig, dispatcher: Dispatcher | None = None, compute: ComputeConfig = PLAINLY
) -> Bound:
    dispatcher = dispatcher or LocalDispatcher(config.experts)
    dtype = config.precision.parameter_dtype
    dense_P = torch.empty(dense_layout(config).length, dtype=dtype)
    experts_EN = torch.empty(len(dispatcher.held), expert_layout(config).length, dtype=dtype)
    initialise_dense(config, SEED, dense_P)
    for slot, expert in enumerate(dispatcher.held):
        initialise_expert(config, SEED, expert, experts_EN[slot])
    bound = Bound(
        model=Transformer(config, seed=SEED, dispatcher=dispatcher, device=CPU, compute=compute),
        dense_P=dense_P,
        experts_EN=experts_EN,
        dense_grad_P=torch.zeros_like(dense_P),
        experts_grad_EN=torch.zeros_like(experts_EN),
    )
    bind(
        bound.model,
        config,
        dense_P=dense_P,
        experts_EN=experts_EN,
        dense_grad_P=bound.dense_grad_P,
        experts_grad_EN=bound.experts_grad_EN,
    )
    return bound


def random_windows(config: ModelConfig, sequences: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sequences, config.sequence_length + 1), generator=generator)
