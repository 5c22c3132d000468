"""How weights lie in flat buffers, and the hand that points a model's parameters into them.

The state of a job consists of parts: "dense" (all that is not an expert), and for each expert its weights in all
layers; where the layers are divided over stages (`stages.py`), each stage has such parts of its own layers. A part is
one flat run of numbers, so that reduction, optimizer, snapshots, replay and copies between ranks know nothing of
layers. What lives here: the layout of a part (pure arithmetic) and `bind`. What must not: values (`initialise.py`),
and who holds which part.

Every tensor starts at a multiple of ALIGNMENT elements and every part is a multiple of it long; the gaps are zero and
stay zero (zero weight, zero gradient). Rows of a [experts, N] buffer are thereby aligned like the first.

Shapes: P elements of the dense part; N elements of one expert's part; E experts held here, T of them trained; D width;
F expert width; V vocabulary; A query, key and value heads together, times head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from worker.model.config import ModelConfig
from worker.model.experts import Experts
from worker.model.stages import Share, whole

ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a part. In an expert's part it is that expert's slice of the parameter of this name."""

    name: str
    shape: tuple[int, ...]
    offset: int
    std: float | None
    """Of its values at version 0; None for ones (norms)."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        """Where it lies in its part."""
        return slice(self.offset, self.offset + self.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLayout:
    """Where everything of a part lies."""

    entries: tuple[Entry, ...]
    length: int
    """Elements of the part, gaps included."""
    decay_length: int
    """Weight decay applies to [0, decay_length). The tail (norms, routers) is exempt: it is tiny, and decay would
    pull a router towards choosing at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    name: str
    shape: tuple[int, ...]
    std: float | None


def dense_layout(config: ModelConfig, share: Share | None = None) -> PartLayout:
    """The dense part of a stage, or of everything: embedding, attention, output; then, exempt from decay, routers and
    norms."""
    share = share or whole(config.layers)
    return _lay_out(list(_decayed(config, share)), list(_exempt(config, share)))


def expert_layout(config: ModelConfig, share: Share | None = None) -> PartLayout:
    """The part of one expert, whichever it is: its three matrices in every layer of its stage, or of everything."""
    share = share or whole(config.layers)
    D, F = config.width, config.expert_width
    wanted = []
    for layer in share.layers:
        name = f"layers.{layer}.moe.experts"
        wanted += [
            _Wanted(name=f"{name}.w1_EFD", shape=(F, D), std=D**-0.5),
            _Wanted(name=f"{name}.w3_EFD", shape=(F, D), std=D**-0.5),
            _Wanted(name=f"{name}.w2_EDF", shape=(D, F), std=_into_residual(F, config)),
        ]
    return _lay_out(wanted, [])


def _into_residual(inputs: int, config: ModelConfig) -> float:
    """Of matrices that write to the residual stream, two in each layer: their sum should not grow with depth."""
    return float((2 * config.layers * inputs) ** -0.5)


def _decayed(config: ModelConfig, share: Share) -> Iterator[_Wanted]:
    D, V = config.width, config.vocabulary
    A = (config.heads + 2 * config.kv_heads) * config.head_width
    if share.first:
        yield _Wanted(name="embedding_VD", shape=(V, D), std=1.0)
    for layer in share.layers:
        name = f"layers.{layer}.attention"
        yield _Wanted(name=f"{name}.qkv_AD", shape=(A, D), std=D**-0.5)
        yield _Wanted(name=f"{name}.out_DD", shape=(D, D), std=_into_residual(D, config))
    if share.last:
        # Small: before the first step all bytes should look about equally likely.
        yield _Wanted(name="head_VD", shape=(V, D), std=1.0 / D)


def _exempt(config: ModelConfig, share: Share) -> Iterator[_Wanted]:
    D, E = config.width, config.experts
    for layer in share.layers:
        yield _Wanted(name=f"layers.{layer}.moe.router.weight_ED", shape=(E, D), std=D**-0.5)
        yield _Wanted(name=f"layers.{layer}.attention_norm.scale_D", shape=(D,), std=None)
        yield _Wanted(name=f"layers.{layer}.moe_norm.scale_D", shape=(D,), std=None)
    if share.last:
        yield _Wanted(name="norm.scale_D", shape=(D,), std=None)


def _lay_out(decayed: Sequence[_Wanted], exempt: Sequence[_Wanted]) -> PartLayout:
    entries: list[Entry] = []
    offset = 0
    for wanted in [*decayed, *exempt]:
        entries.append(Entry(name=wanted.name, shape=wanted.shape, offset=offset, std=wanted.std))
        offset += -(-math.prod(wanted.shape) // ALIGNMENT) * ALIGNMENT
    decay_length = entries[len(decayed)].offset if exempt else offset
    return PartLayout(entries=tuple(entries), length=offset, decay_length=decay_length)


def bind(
    model: nn.Module,
    config: ModelConfig,
    *,
    dense_P: Tensor,
    experts_EN: Tensor,
    dense_grad_P: Tensor,
    experts_grad_EN: Tensor,
    share: Share | None = None,
) -> None:
    """Makes every parameter of the model, and its gradient, a view of these buffers. Row e is the e-th expert held.

    `share` is what the model has of the layers: all, unless it is one stage's.

    The parameters become new objects (frozen ones stay frozen): a backward pass that was abandoned can then no longer
    reach the gradients of the new ones.
    """
    dense, expert = dense_layout(config, share), expert_layout(config, share)
    _expect("dense_P", dense_P, dense.length)
    _expect("dense_grad_P", dense_grad_P, dense.length)
    _expect("experts_EN", experts_EN[0] if len(experts_EN) else None, expert.length)
    assert experts_grad_EN.shape == experts_EN.shape, "each expert's weights need room for their gradient"
    for entry in dense.entries:
        value = _point(model, entry.name, dense_P[entry.span].view(entry.shape))
        value.grad = dense_grad_P[entry.span].view(entry.shape)
    held = experts_EN.shape[0]
    for entry in expert.entries:
        shape = (held, *entry.shape)
        value = _point(model, entry.name, experts_EN[:, entry.span].view(shape))
        value.grad = experts_grad_EN[:, entry.span].view(shape)


def bind_frozen(
    model: nn.Module,
    config: ModelConfig,
    *,
    dense_P: Tensor,
    experts_EN: Tensor,
    trained_slots: Sequence[int],
    experts_grad_TN: Tensor,
    share: Share | None = None,
) -> None:
    """As `bind`, where only some experts are trained: only they have room for a gradient, row t for `trained_slots[t]`.

    All other parameters want no gradient. Those of the experts lie together, so a gradient goes to its row by way of
    `Experts.sinks`, and no parameter has a `.grad`.
    """
    dense, expert = dense_layout(config, share), expert_layout(config, share)
    _expect("dense_P", dense_P, dense.length)
    _expect("experts_EN", experts_EN[0] if len(experts_EN) else None, expert.length)
    assert experts_grad_TN.shape == (len(trained_slots), expert.length), "each trained expert needs its row"
    row_of = {slot: row for row, slot in enumerate(trained_slots)}
    for entry in dense.entries:
        _point(model, entry.name, dense_P[entry.span].view(entry.shape)).requires_grad_(False)
    held = experts_EN.shape[0]
    for entry in expert.entries:
        value = _point(model, entry.name, experts_EN[:, entry.span].view(held, *entry.shape))
        value.requires_grad_(bool(trained_slots))
        path, _, leaf = entry.name.rpartition(".")
        module = model.get_submodule(path)
        assert isinstance(module, Experts), f"{path} holds experts"
        module.sinks[leaf] = tuple(
            experts_grad_TN[row_of[slot], entry.span].view(entry.shape) if slot in row_of else None
            for slot in range(held)
        )


def _expect(name: str, row: Tensor | None, length: int) -> None:
    assert row is None or row.shape == (length,), f"{name} has rows of {row.shape}, the layout has {length}"


def _point(model: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    """The new parameter of this name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    former = getattr(module, leaf)
    assert isinstance(former, nn.Parameter), f"{name} is not a parameter"
    assert former.shape == value.shape, (
        f"{name}: the model wants {tuple(former.shape)}, not {tuple(value.shape)}"
    )
    parameter = nn.Parameter(value, requires_grad=former.requires_grad)
    setattr(module, leaf, parameter)
    return parameter
