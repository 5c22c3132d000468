"""Exactly what a trainer resumes: weights and AdamW moments of the parts it holds, at one version.

Where only some experts are trained (ESFT, arXiv 2407.01906) all other parts are frozen: weights, and neither moments
nor a gradient, the same at every version.

The dense part is one flat tensor, the experts' parts are the rows of another, in ascending expert order; gradients
lie in buffers of the same shapes. The model's parameters are views of them (`model/parts.py`), so copying a part,
hashing it, sending it or updating it is one operation on contiguous memory. Parameters are written only by
`commit`, `adopt` and `load`, never while a collective that carries them is running.

Shapes: P dense parameters, E local experts, T of them trained, N parameters of one expert over all layers. A part is
named by an integer here and in the handshake: 0 is dense, e + 1 is expert e. Next: `step.py`, `regroup.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from worker.checkpointing.names import DENSE as DENSE_NAME
from worker.checkpointing.names import expert_index, expert_part
from worker.checkpointing.parts import PartTensors
from worker.model.config import ModelConfig
from worker.model.initialise import initialise_dense, initialise_expert
from worker.model.parts import bind, bind_frozen, dense_layout, expert_layout
from worker.model.transformer import Transformer
from worker.parallel.dispatch import Dispatcher
from worker.parallel.handshake import ABSENT
from worker.training.optimizer import AdamW, PartState

DENSE = 0


def part_name(part: int) -> str:
    """The name of a part in checkpoints and on the wire between trainers."""
    return DENSE_NAME if part == DENSE else expert_part(part - 1)


def part_number(name: str) -> int:
    """The inverse of `part_name`."""
    expert = expert_index(name)
    assert expert is not None or name == DENSE_NAME, f"{name!r} names no part"
    return DENSE if expert is None else expert + 1


def copy_part(target: PartTensors, source: PartTensors) -> None:
    """Overwrite a part in place."""
    for mine, theirs in zip(target.in_order(), source.in_order(), strict=True):
        mine.copy_(theirs)


class TrainingState:
    """The parts of this trainer. `version` is the last committed step, `ready` the step whose gradients are held."""

    def __init__(
        self, config: ModelConfig, seed: int, device: torch.device, trainable: Sequence[int] = ()
    ) -> None:
        """`trainable` are the only experts that change; none stands for the whole model."""
        self._trainable = tuple(trainable)
        layouts = dense_layout(config), expert_layout(config)
        self.dense_length, self.expert_length = (layout.length for layout in layouts)
        self._dense_decay_length = layouts[0].decay_length
        self.layout_id = sha256(repr(layouts).encode()).hexdigest()[:16]
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
        return self._config.experts + 1

    def slot(self, expert: int) -> int:
        return self.held.index(expert)

    def frozen(self, part: int) -> bool:
        """Whether a part of the model, held or not, is the same at every version."""
        return bool(self._trainable) and part - 1 not in self._trainable

    def holds(self, part: int) -> bool:
        return part == DENSE or part - 1 in self.held

    def part(self, part: int) -> PartTensors:
        """Views of a held part."""
        if part == DENSE:
            return PartTensors(weights=self.dense_P, m=self.dense_m_P, v=self.dense_v_P)
        weights_N = self.experts_EN[self.slot(part - 1)]
        if self.frozen(part):
            return PartTensors.of([weights_N])
        row = self.trained.index(part - 1)
        return PartTensors(weights=weights_N, m=self.experts_m_TN[row], v=self.experts_v_TN[row])

    def empty_part(self, part: int) -> PartTensors:
        """Uninitialised state of a part of the model, held or not, to be filled."""
        length = self.length(part)
        return PartTensors.of([self.dense_P.new_empty(length) for _ in range(1 if self.frozen(part) else 3)])

    def gradient(self, part: int) -> Tensor:
        """View of a held part's gradient; without elements for a frozen part."""
        if part == DENSE:
            return self.dense_gradient_P
        if self.frozen(part):
            return self.experts_gradient_TN.new_empty(0)
        return self.experts_gradient_TN[self.trained.index(part - 1)]

    def length(self, part: int) -> int:
        """Number of parameters of a part."""
        return self.dense_length if part == DENSE else self.expert_length

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
        if not self.frozen(DENSE):
            dense = self.optimized(DENSE, self.part(DENSE))
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
            for part in (expert + 1 for expert in self.trained):
                state = self.optimized(part, self.part(part))
                optimizer.update(state, self.gradient(part), step=step, clip=clip)
        self.version = step

    def optimized(self, part: int, tensors: PartTensors) -> PartState:
        """The tensors of a part as the optimizer takes them."""
        decay = self._dense_decay_length if part == DENSE else self.expert_length
        return PartState(weight_P=tensors.weights, m_P=tensors.m, v_P=tensors.v, decay_length=decay)

    def initialise(self, experts: Sequence[int]) -> None:
        """Version 0 of the dense part and of `experts`: the same on every trainer, from the seed alone."""
        self._allocate(tuple(sorted(experts)), fresh_dense=True)
        initialise_dense(self._config, self._seed, self.dense_P)
        for row, expert in enumerate(self.held):
            initialise_expert(self._config, self._seed, expert, self.experts_EN[row])
        self._stand_at(0)

    def load(self, experts: Sequence[int], version: int) -> None:
        """Make room for `experts`; the caller fills every `part` and the state then stands at `version`."""
        self._allocate(tuple(sorted(experts)), fresh_dense=True)
        self._stand_at(version)

    def adopt(self, experts: Sequence[int], received: Mapping[int, PartTensors], version: int) -> None:
        """Hold exactly `experts` from now on; parts that are new, or were behind, come from `received`."""
        wanted = tuple(sorted(experts))
        if DENSE in received:
            copy_part(self.part(DENSE), received[DENSE])
        if wanted != self.held or any(part != DENSE for part in received):
            old = {part: self.part(part) for part in range(1, self.parts) if self.holds(part)}
            self._allocate(wanted, fresh_dense=False)
            for expert in wanted:
                source = received.get(expert + 1) or old[expert + 1]
                copy_part(self.part(expert + 1), source)
            self.ready = ABSENT
        self.version = version

    def attach(self, model: Transformer, dispatcher: Dispatcher) -> None:
        """Make the model compute with these parts, and gradients arrive in these buffers."""
        assert tuple(dispatcher.held) == self.held, "the dispatcher serves the experts that are held"
        model.use(dispatcher)
        if self._trainable:
            bind_frozen(
                model,
                self._config,
                dense_P=self.dense_P,
                experts_EN=self.experts_EN,
                trained_slots=[self.slot(expert) for expert in self.trained],
                experts_grad_TN=self.experts_gradient_TN,
            )
            return
        bind(
            model,
            self._config,
            dense_P=self.dense_P,
            experts_EN=self.experts_EN,
            dense_grad_P=self.dense_gradient_P,
            experts_grad_EN=self.experts_gradient_TN,
        )

    def _stand_at(self, version: int) -> None:
        self.version = version
        self.ready = self.tally_step = ABSENT
        self.tally = ()

    def _allocate(self, experts: tuple[int, ...], *, fresh_dense: bool) -> None:
        dtype = self._config.precision.parameter_dtype
        if fresh_dense:
            self.dense_P = torch.zeros(self.dense_length, dtype=dtype, device=self._device)
            trained = 0 if self.frozen(DENSE) else self.dense_length
            self.dense_m_P, self.dense_v_P, self.dense_gradient_P = (
                torch.zeros(trained, dtype=dtype, device=self._device) for _ in range(3)
            )
        self.held = experts
        self.trained = tuple(expert for expert in experts if not self.frozen(expert + 1))
        self.experts_EN = torch.zeros(len(experts), self.expert_length, dtype=dtype, device=self._device)
        shape = (len(self.trained), self.expert_length)
        self.experts_m_TN, self.experts_v_TN, self.experts_gradient_TN = (
            torch.zeros(shape, dtype=dtype, device=self._device) for _ in range(3)
        )
