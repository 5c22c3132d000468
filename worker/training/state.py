"""Exactly what a trainer resumes: weights and AdamW moments of the parts it holds, at one version.

Where only some experts are trained (ESFT, arXiv 2407.01906) all other parts are frozen: weights, and neither moments
nor a gradient, the same at every version.

The dense part is one flat tensor, the experts' parts are the rows of another, in ascending expert order; gradients
lie in buffers of the same shapes. In a pipeline a trainer holds parts of one stage, and may hold another's later. The
model's parameters are views of them (`model/parts.py`), so copying a part,
hashing it, sending it or updating it is one operation on contiguous memory. Parameters are written only by
`commit`, `adopt` and `load`, never while a collective that carries them is running.

Shapes: P dense parameters, E local experts, T of them trained, N parameters of one expert over all layers of the
stage. A part is named by an integer here and in the handshake (`checkpointing/numbering.py`). Next: `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from worker.checkpointing.numbering import PartNumbers
from worker.checkpointing.parts import PartTensors
from worker.model.config import ModelConfig
from worker.model.initialise import initialise_dense, initialise_expert
from worker.model.parts import bind, bind_frozen, dense_layout, expert_layout
from worker.model.stages import Stages
from worker.model.transformer import Transformer
from worker.parallel.dispatch import Dispatcher
from worker.parallel.handshake import ABSENT
from worker.training.optimizer import AdamW, PartState


def copy_part(target: PartTensors, source: PartTensors) -> None:
    """Overwrite a part in place."""
    for mine, theirs in zip(target.in_order(), source.in_order(), strict=True):
        mine.copy_(theirs)


class TrainingState:
    """The parts of this trainer. `version` is the last committed step, `ready` the step whose gradients are held."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        device: torch.device,
        trainable: Sequence[int] = (),
        stages: Stages | None = None,
    ) -> None:
        """`trainable` are the only experts that change; none stands for the whole model."""
        self._trainable = tuple(trainable)
        self.stages = stages or Stages(layers=config.layers)
        self.numbers = PartNumbers(stages=self.stages.count, experts=config.experts)
        self.layouts = tuple(
            (dense_layout(config, share), expert_layout(config, share))
            for share in map(self.stages.share, range(self.stages.count))
        )
        """Of the dense part and of an expert, by stage."""
        text = repr(self.layouts[0] if len(self.layouts) == 1 else self.layouts)
        self.layout_id = sha256(text.encode()).hexdigest()[:16]
        """Names which weights lie where: a checkpoint of another layout is refused."""
        self.ready_seconds = 0.0
        """From the beginning of step `ready` to its vote."""
        self.version = ABSENT
        self.ready = ABSENT
        self.tally_step = ABSENT
        self.tally: tuple[float, ...] = ()
        self._seed = seed
        self._config = config
        self._device = device
        self.stage = 0
        """Whose parts are held."""
        self.held: tuple[int, ...] = ()
        """Global ids of the local experts, ascending; slot = position."""
        self.trained: tuple[int, ...] = ()
        """Those that change, ascending; the rows of moments and gradients are theirs."""
        self.dense_gradient_P: Tensor
        """Without elements where the dense part is frozen."""
        self.experts_gradient_TN: Tensor
        self._allocate((), fresh_dense=True)

    @property
    def parts(self) -> int:
        """Number of parts of the whole model."""
        return self.numbers.count

    @property
    def dense(self) -> int:
        """The dense part that is held."""
        return self.numbers.dense(self.stage)

    @property
    def dense_length(self) -> int:
        """Of the dense part that is held."""
        return self.length(self.dense)

    @property
    def expert_length(self) -> int:
        """Of each expert that is held."""
        return self.layouts[self.stage][1].length

    def slot(self, expert: int) -> int:
        return self.held.index(expert)

    def frozen(self, part: int) -> bool:
        """Whether a part of the model, held or not, is the same at every version."""
        return bool(self._trainable) and self.numbers.expert_of(part) not in self._trainable

    def holds(self, part: int) -> bool:
        if self.numbers.is_dense(part):
            return part == self.dense
        return self.numbers.expert_of(part) in self.held

    def part(self, part: int) -> PartTensors:
        """Views of a held part."""
        assert self.holds(part), f"{self.numbers.name(part)} is not held"
        if part == self.dense:
            return PartTensors(weights=self.dense_P, m=self.dense_m_P, v=self.dense_v_P)
        expert = self.numbers.expert_of(part)
        weights_N = self.experts_EN[self.slot(expert)]
        if self.frozen(part):
            return PartTensors.of([weights_N])
        row = self.trained.index(expert)
        return PartTensors(weights=weights_N, m=self.experts_m_TN[row], v=self.experts_v_TN[row])

    def empty_part(self, part: int) -> PartTensors:
        """Uninitialised state of a part of the model, held or not, to be filled."""
        length = self.length(part)
        return PartTensors.of([self.dense_P.new_empty(length) for _ in range(1 if self.frozen(part) else 3)])

    def gradient(self, part: int) -> Tensor:
        """View of a held part's gradient; without elements for a frozen part."""
        if part == self.dense:
            return self.dense_gradient_P
        if self.frozen(part):
            return self.experts_gradient_TN.new_empty(0)
        return self.experts_gradient_TN[self.trained.index(self.numbers.expert_of(part))]

    def length(self, part: int) -> int:
        """Number of parameters of a part, held or not."""
        dense, expert = self.layouts[self.numbers.stage_of(part)]
        return dense.length if self.numbers.is_dense(part) else expert.length

    def versions(self) -> tuple[int, ...]:
        """By part; `ABSENT` for what this trainer does not hold."""
        return tuple(self.version if self.holds(part) else ABSENT for part in range(self.parts))

    def zero_gradients(self) -> None:
        """Begin a step: what was held for completing the last one is given up."""
        self.ready = ABSENT
        self.dense_gradient_P.zero_()
        self.experts_gradient_TN.zero_()

    def renew_gradients(self) -> None:
        """Take new buffers: what was held is given up, and abandoned collectives may keep writing to the old ones.

        The model must be attached again.
        """
        self.ready = ABSENT
        self.dense_gradient_P = torch.zeros_like(self.dense_gradient_P)
        self.experts_gradient_TN = torch.zeros_like(self.experts_gradient_TN)

    def commit(self, optimizer: AdamW, step: int, clip: float, halfway: Callable[[], None]) -> None:
        """Write the parameters of `step` from the reduced gradients. Local; interrupted only by death.

        `halfway` is called when the dense part is written and the experts are not (fault injection).
        """
        assert self.ready == step == self.version + 1, "a commit follows the vote of the next step"
        if not self.frozen(self.dense):
            dense = self.optimized(self.dense, self.part(self.dense))
            optimizer.update(dense, self.dense_gradient_P, step=step, clip=clip)
        halfway()
        if self.trained == self.held:
            experts = PartState(
                weight_P=self.experts_EN.view(-1),
                m_P=self.experts_m_TN.view(-1),
                v_P=self.experts_v_TN.view(-1),
                decay_length=self.experts_EN.numel(),
            )
            optimizer.update(experts, self.experts_gradient_TN.view(-1), step=step, clip=clip)
        else:
            for part in map(self.numbers.expert, self.trained):
                state = self.optimized(part, self.part(part))
                optimizer.update(state, self.gradient(part), step=step, clip=clip)
        self.version = step

    def optimized(self, part: int, tensors: PartTensors) -> PartState:
        """The tensors of a part as the optimizer takes them."""
        dense, expert = self.layouts[self.numbers.stage_of(part)]
        decay = dense.decay_length if self.numbers.is_dense(part) else expert.length
        return PartState(weight_P=tensors.weights, m_P=tensors.m, v_P=tensors.v, decay_length=decay)

    def initialise(self, experts: Sequence[int], *, stage: int = 0) -> None:
        """Version 0 of a stage's dense part and of `experts`: the same on every trainer, from the seed alone."""
        self.stage = stage
        share = self.stages.share(stage)
        self._allocate(tuple(sorted(experts)), fresh_dense=True)
        initialise_dense(self._config, self._seed, self.dense_P, share)
        for row, expert in enumerate(self.held):
            within = expert - self.numbers.experts_of(stage).start
            initialise_expert(self._config, self._seed, within, self.experts_EN[row], share)
        self._stand_at(0)

    def load(self, experts: Sequence[int], version: int, *, stage: int = 0) -> None:
        """Make room for `experts`; the caller fills every `part` and the state then stands at `version`."""
        self.stage = stage
        self._allocate(tuple(sorted(experts)), fresh_dense=True)
        self._stand_at(version)

    def adopt(
        self, experts: Sequence[int], received: Mapping[int, PartTensors], version: int, *, stage: int = 0
    ) -> None:
        """Hold exactly these experts of a stage from now on; what is new, or was behind, comes from `received`."""
        wanted = tuple(sorted(experts))
        numbers, dense = self.numbers, self.numbers.dense(stage)
        moves = stage != self.stage
        assert not moves or dense in received, "who takes a seat in another stage has copied its part"
        if moves or wanted != self.held or any(not numbers.is_dense(part) for part in received):
            old = {numbers.expert(expert): self.part(numbers.expert(expert)) for expert in self.held}
            self.stage = stage
            self._allocate(wanted, fresh_dense=moves)
            for part in map(numbers.expert, wanted):
                copy_part(self.part(part), received.get(part) or old[part])
            self.ready = ABSENT
        if dense in received:
            copy_part(self.part(dense), received[dense])
        self.version = version

    def attach(self, model: Transformer, dispatcher: Dispatcher) -> None:
        """Make the model compute with these parts, and gradients arrive in these buffers."""
        first = self.numbers.experts_of(self.stage).start
        held = tuple(first + expert for expert in dispatcher.held)
        assert held == self.held, "the dispatcher serves the experts that are held"
        model.use(dispatcher)
        if self._trainable:
            bind_frozen(
                model,
                self._config,
                dense_P=self.dense_P,
                experts_EN=self.experts_EN,
                trained_slots=[self.slot(expert) for expert in self.trained],
                experts_grad_TN=self.experts_gradient_TN,
                share=self.stages.share(self.stage),
            )
            return
        bind(
            model,
            self._config,
            dense_P=self.dense_P,
            experts_EN=self.experts_EN,
            dense_grad_P=self.dense_gradient_P,
            experts_grad_EN=self.experts_gradient_TN,
            share=self.stages.share(self.stage),
        )

    def _stand_at(self, version: int) -> None:
        self.version = version
        self.ready = self.tally_step = ABSENT
        self.tally = ()

    def _allocate(self, experts: tuple[int, ...], *, fresh_dense: bool) -> None:
        dtype = self._config.precision.parameter_dtype
        if fresh_dense:
            self.dense_P = torch.zeros(self.dense_length, dtype=dtype, device=self._device)
            trained = 0 if self.frozen(self.dense) else self.dense_length
            self.dense_m_P, self.dense_v_P, self.dense_gradient_P = (
                torch.zeros(trained, dtype=dtype, device=self._device) for _ in range(3)
            )
        self.held = experts
        self.trained = tuple(expert for expert in experts if not self.frozen(self.numbers.expert(expert)))
        self.experts_EN = torch.zeros(len(experts), self.expert_length, dtype=dtype, device=self._device)
        shape = (len(self.trained), self.expert_length)
        self.experts_m_TN, self.experts_v_TN, self.experts_gradient_TN = (
            torch.zeros(shape, dtype=dtype, device=self._device) for _ in range(3)
        )
