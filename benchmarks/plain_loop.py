"""The same model trained the plain way: default process group, blocking collectives, no fault tolerance.

This is what the full step is compared with (`overhead.py`), and what the restart baseline trains
(`baseline_torchrun.py`). It is meant to be hard to beat: gradients lie in flat buffers, so that there is one
all-reduce for the dense weights and one for the experts; norm and loss travel together; the optimizer is torch's fused
AdamW over three flat tensors. Experts are laid out the classical way, expert parallel times data parallel: rank r holds
the experts of its index in the expert-parallel group, and the groups are copies of each other.

What must not live here: clocks, and anything that survives a failure.

Shapes: P dense parameters, E local experts, N parameters of one expert (all layers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from worker.data.config import DataConfig, ValidationConfig
from worker.data.windows import Windows, open_dataset
from worker.model.config import ModelConfig
from worker.model.initialise import initialise_dense, initialise_expert
from worker.model.objective import microbatch_loss
from worker.model.parts import bind, dense_layout, expert_layout
from worker.model.router import ForwardContext
from worker.model.transformer import Transformer
from worker.parallel.dispatch import AllToAllDispatcher, Dispatcher, Exchange
from worker.parallel.routing import Route, held_experts
from worker.training.batch import BatchConfig
from worker.training.optimizer import OptimizerConfig, clip_coefficient

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainJob:
    """What the loop needs of a job."""

    model: ModelConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    seed: int
    steps: int
    data: DataConfig
    validation: ValidationConfig

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> PlainJob:
        """From the whole job as a mapping. Raises FieldError."""
        return cls(
            model=ModelConfig.from_mapping(config["model"], config["precision"]),
            optimizer=OptimizerConfig.from_mapping(config["optimizer"]),
            batch=BatchConfig.from_mapping(config["batch"]),
            seed=int(config["seed"]),
            steps=int(config["steps"]),
            data=DataConfig.from_mapping(config["data"]),
            validation=ValidationConfig.from_mapping(config.get("validation")),
        )

    def windows(self) -> Windows:
        """The text that is trained on. Raises DataError."""
        return open_dataset(
            self.data,
            self.validation,
            sequence_length=self.model.sequence_length,
            vocabulary=self.model.vocabulary,
            seed=self.seed,
        ).windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where this rank stands among `world` ranks, `expert_parallel` of which share one copy of all experts."""

    rank: int
    world: int
    expert_parallel: int

    @property
    def copies(self) -> int:
        """Live copies of each expert."""
        return self.world // self.expert_parallel

    @property
    def copy(self) -> int:
        return self.rank // self.expert_parallel

    @property
    def index(self) -> int:
        """Which share of the experts this rank holds."""
        return self.rank % self.expert_parallel

    def exchange_ranks(self) -> list[list[int]]:
        """Groups that tokens are exchanged in."""
        size = self.expert_parallel
        return [list(range(first, first + size)) for first in range(0, self.world, size)]

    def copy_ranks(self) -> list[list[int]]:
        """Groups that hold the same experts."""
        return [list(range(index, self.world, self.expert_parallel)) for index in range(self.expert_parallel)]

    def placement(self, experts: int) -> tuple[tuple[int, ...], ...]:
        """Expert -> its one rank inside an exchange group: contiguous shares."""
        return tuple((expert * self.expert_parallel // experts,) for expert in range(experts))


class PlainExchange:
    """The dispatcher's all-to-all over a registered group: one blocking call."""

    def __init__(self, group: Any, grid: Grid) -> None:
        self._group = group  # a ProcessGroup; new_group is typed loosely
        self._grid = grid

    @property
    def rank(self) -> int:
        return self._grid.index

    @property
    def world(self) -> int:
        return self._grid.expert_parallel

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """Rows of `input` (split by destination) to rows of `output` (split by source)."""
        dist.all_to_all_single(output, input, list(output_splits), list(input_splits), group=self._group)

    def settle(self) -> None:
        """Nothing: the call above has waited."""


class PlainModel:
    """Model, flat state and optimizer of one process; no communication of its own."""

    def __init__(self, job: PlainJob, dispatcher: Dispatcher) -> None:
        self._job = job
        self.held = tuple(dispatcher.held)
        dtype = job.model.precision.parameter_dtype
        dense_length = dense_layout(job.model).length
        shape = (len(self.held), expert_layout(job.model).length)
        self.dense_P, self.dense_gradient_P = (torch.zeros(dense_length, dtype=dtype) for _ in range(2))
        self.experts_EN, self.experts_gradient_EN = (torch.zeros(shape, dtype=dtype) for _ in range(2))
        initialise_dense(job.model, job.seed, self.dense_P)
        for row, expert in enumerate(self.held):
            initialise_expert(job.model, job.seed, expert, self.experts_EN[row])
        self._transformer = Transformer(job.model, seed=job.seed, dispatcher=dispatcher, device=_CPU)
        self.use(dispatcher)
        self._optimizer = self._make_optimizer()
        self.loss = torch.zeros((), dtype=torch.float64)
        """Cross entropy of this process's tokens, summed since `zero`."""

    def use(self, dispatcher: Dispatcher) -> None:
        """Send tokens through `dispatcher`, which serves the same experts."""
        self._transformer.use(dispatcher)
        bind(
            self._transformer,
            self._job.model,
            dense_P=self.dense_P,
            experts_EN=self.experts_EN,
            dense_grad_P=self.dense_gradient_P,
            experts_grad_EN=self.experts_gradient_EN,
        )

    def _make_optimizer(self) -> torch.optim.AdamW:
        config, cut = self._job.optimizer, dense_layout(self._job.model).decay_length
        decayed = [
            _parameter(self.dense_P[:cut], self.dense_gradient_P[:cut]),
            _parameter(self.experts_EN, self.experts_gradient_EN),
        ]
        exempt = [_parameter(self.dense_P[cut:], self.dense_gradient_P[cut:])]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": exempt, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,
        )
        for parameter in (*decayed, *exempt):  # now, so that a checkpoint has somewhere to be read to
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    def tensors(self, share: int) -> dict[str, Tensor]:
        """All state by name, for a checkpoint; `share` names which experts these are."""
        named: dict[str, Tensor] = {}
        for name, state in zip(("dense", f"experts-{share}", "exempt"), self._states(), strict=True):
            named |= {f"{name}.{key}": value for key, value in state.items()}
        return named

    def _states(self) -> Iterator[dict[str, Tensor]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield {"weight": parameter.detach(), **self._optimizer.state[parameter]}

    def zero(self) -> None:
        """Begin a step."""
        self.dense_gradient_P.zero_()
        self.experts_gradient_EN.zero_()
        self.loss.zero_()

    def compute(self, step: int, microbatch: int, windows: Windows) -> None:
        """Forward and backward over one microbatch; gradients accumulate."""
        shape = self._job.batch
        batch = windows.batch(shape.microbatch_ids(step, microbatch))
        out = microbatch_loss(
            self._transformer,
            batch.window_BC,
            ForwardContext(step=step, microbatch=microbatch, document_BC=batch.document_BC),
            step_tokens=windows.targets(shape.step_ids(step)),
            step_microbatches=shape.microbatches,
        )
        self.loss += out.cross_entropy_sum
        out.objective.backward()

    def nats_of(self, window_BC: Tensor) -> float:
        """Cross entropy of some windows, summed, as the model is now; without noise."""
        self._transformer.eval()
        prediction = self._transformer(window_BC[:, :-1], ForwardContext(step=0, microbatch=0))
        self._transformer.train()
        target_T = window_BC[:, 1:].reshape(-1)
        return float(functional.cross_entropy(prediction.logits_BSV.flatten(0, 1), target_T, reduction="sum"))

    def dense_norm_squared(self) -> float:
        """Of the gradient as it is now."""
        return float(torch.linalg.vector_norm(self.dense_gradient_P, dtype=torch.float64).square())

    def experts_norm_squared(self) -> float:
        """Likewise."""
        return float(torch.linalg.vector_norm(self.experts_gradient_EN, dtype=torch.float64).square())

    def update(self, step: int, norm: float) -> None:
        """Clip by the global norm and apply AdamW."""
        config = self._job.optimizer
        clip = clip_coefficient(norm, config.clip_norm)
        self.dense_gradient_P.mul_(clip)
        self.experts_gradient_EN.mul_(clip)
        rate = config.rate(self._job.steps).at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()


class PlainTrainer:
    """One rank of the plain loop, in a default process group that stands already."""

    def __init__(self, job: PlainJob, grid: Grid, windows: Windows) -> None:
        self._job, self._grid, self._windows = job, grid, windows
        self._step_tokens = 0
        self.exchange = PlainExchange(_my_group(grid.exchange_ranks(), grid.rank), grid)
        self._copies = _my_group(grid.copy_ranks(), grid.rank) if grid.copies > 1 else None
        self.model = PlainModel(job, self._dispatcher(self.exchange))

    def use(self, exchange: Exchange) -> None:
        """Exchange tokens through `exchange` (one that measures, for example)."""
        self.model.use(self._dispatcher(exchange))

    def _dispatcher(self, exchange: Exchange) -> AllToAllDispatcher:
        placement = self._grid.placement(self._job.model.experts)
        ranks = range(self._grid.expert_parallel)
        route = Route(
            group=tuple(ranks),
            held=held_experts(placement, self._grid.index),
            target_E=tuple(rank for (rank,) in placement),
        )
        return AllToAllDispatcher(exchange, route, _CPU)

    def run_step(self, step: int) -> float:
        """One optimizer step; gives the loss."""
        self.compute(step)
        self.reduce()
        norm, loss = self.totals()
        self.model.update(step, norm)
        return loss

    def compute(self, step: int) -> None:
        """Forward and backward over this rank's microbatches."""
        self.model.zero()
        self._step_tokens = self._windows.targets(self._job.batch.step_ids(step))
        for microbatch in range(self._grid.rank, self._job.batch.microbatches, self._grid.world):
            self.model.compute(step, microbatch, self._windows)

    def reduce(self) -> None:
        """Sum gradients over those who share the weights."""
        dist.all_reduce(self.model.dense_gradient_P)
        if self._copies is not None:
            dist.all_reduce(self.model.experts_gradient_EN, group=self._copies)

    def totals(self) -> tuple[float, float]:
        """Global gradient norm and mean loss, in one small all-reduce."""
        totals = torch.zeros(2, dtype=torch.float64)
        if self._grid.copy == 0:
            totals[0] = self.model.experts_norm_squared()
        totals[1] = self.model.loss / self._step_tokens
        dist.all_reduce(totals)
        experts_squared, loss = totals.tolist()
        return (experts_squared + self.model.dense_norm_squared()) ** 0.5, loss


def _my_group(rank_lists: list[list[int]], rank: int) -> Any:
    """Makes all groups (every rank must), gives the one that `rank` is in."""
    groups = [(ranks, dist.new_group(ranks)) for ranks in rank_lists]
    return next(group for ranks, group in groups if rank in ranks)


def _parameter(values: Tensor, gradient: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(values)
    parameter.grad = gradient
    return parameter
