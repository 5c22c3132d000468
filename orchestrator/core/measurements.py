"""What a committed step and a validation counted: values for the ledger. Next: `events.py`."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import GenerationNumber, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one committed step counted, the same on every rank."""

    step: Step
    generation: GenerationNumber
    loss: float
    tokens: int
    time: float
    step_seconds: float
    sample_ids: tuple[int, ...]
    expert_load: tuple[int, ...]
    """Token-expert pairs of each expert of each stage, over all layers."""
    layer_load: tuple[tuple[int, ...], ...] = ()
    """The same by layer and expert of the layer. Of an old ledger this is empty, and what follows is None."""
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Over all parts of all members, before clipping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """What the held-out windows gave with the state after a step, the same on every rank."""

    step: Step
    generation: GenerationNumber
    loss: float
    """Nats for each predicted token."""
    bits_per_byte: float
    tokens: int
    windows: int
    time: float
    seconds: float
    """That it took."""
