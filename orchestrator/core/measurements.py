"""What a validation counted: a value for the ledger, from which the core concludes nothing. Next: `events.py`."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import GenerationNumber, Step


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
