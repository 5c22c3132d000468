"""The sizes and numbers that define the model, and what follows from them by arithmetic.

What lives here: `ModelConfig`, `Precision`, parameter counts. What must not: tensors, defaults (the controller fills
them in and sends them). Next: `transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

import torch

from worker.model.fields import read_fields, require

BYTE_VALUES = 256


class Precision(Enum):
    """How numbers are held and computed."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """float32 parameters, cast to bfloat16 where they are used; softmax, norm statistics, logits, loss in float32."""
    FLOAT64 = "float64"
    """Everything in float64: for proofs that two runs follow the same trajectory."""

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Of parameters, their gradients, the optimizer's moments, softmax, logits and loss."""
        return torch.float64 if self is Precision.FLOAT64 else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and matrix products."""
        return torch.bfloat16 if self is Precision.BFLOAT16 else self.parameter_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A byte-level decoder with a mixture of experts in every layer (after Mixtral, arXiv 2401.04088)."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    top_k: int
    expert_width: int
    sequence_length: int
    rope_theta: float
    norm_eps: float
    aux_loss: float
    """Coefficient of the load-balance loss (Switch, arXiv 2101.03961), summed over layers; 0 turns it off."""
    router_temperature: float
    """Router probabilities are softmax(logits / temperature)."""
    router_noise: float
    """In training, this much uniform(0, 1) noise is added to the probabilities that experts are chosen by."""
    precision: Precision

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], precision: object) -> ModelConfig:
        """Reads the job's `model` section and its `precision`, strictly. Raises FieldError."""
        require(
            "precision" not in values, "model.precision", values.get("precision"), "it belongs to the job"
        )
        return read_fields(cls, {**values, "precision": precision}, "model")

    def __post_init__(self) -> None:
        whole = [field.name for field in fields(self) if field.type == "int"]
        for name in whole:
            value = getattr(self, name)
            require(value >= 1, f"model.{name}", value, "1 or more is needed")
        for name in ("rope_theta", "norm_eps", "router_temperature"):
            value = getattr(self, name)
            require(value > 0, f"model.{name}", value, "more than 0 is needed")
        for name in ("aux_loss", "router_noise"):
            value = getattr(self, name)
            require(value >= 0, f"model.{name}", value, "0 or more is needed")
        require(
            self.vocabulary >= BYTE_VALUES, "model.vocabulary", self.vocabulary, "all 256 bytes need a place"
        )
        require(self.top_k <= self.experts, "model.top_k", self.top_k, f"at most {self.experts}, the experts")
        require(
            self.heads % self.kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            f"a divisor of heads, {self.heads}",
        )
        require(
            self.width % (2 * self.heads) == 0,
            "model.width",
            self.width,
            f"a multiple of twice the heads, {2 * self.heads}, is needed (rotary positions turn pairs)",
        )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def expert_parameters(self) -> int:
        """Of one expert, over all layers."""
        return self.layers * 3 * self.width * self.expert_width

    def dense_parameters(self) -> int:
        """Of everything that is not an expert: embedding, attention, routers, norms, output."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_width
        router = self.experts * self.width
        norms = 2 * self.width
        ends = 2 * self.vocabulary * self.width + self.width
        return self.layers * (attention + router + norms) + ends

    def total_parameters(self) -> int:
        return self.dense_parameters() + self.experts * self.expert_parameters()

    def active_parameters(self) -> int:
        """Those that one token meets."""
        return self.dense_parameters() + self.top_k * self.expert_parameters()
