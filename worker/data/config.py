"""The job's sections `data` and `validation` as the worker reads them. Next: `windows.py`, made from these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from worker.model.fields import FieldError, read_fields, require


class Documents(Enum):
    """What a window may see of the documents in it."""

    JOINED = "joined"
    """Everything: a window is a piece of the stream."""
    APART = "apart"
    """Each document only itself: attention and loss stop where one ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One source of a mixture."""

    path: str
    name: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    sources: tuple[SourceConfig, ...]
    documents: Documents

    @classmethod
    def from_mapping(cls, values: object) -> DataConfig:
        """Reads the job's `data` section, strictly: `path`, or `sources`. Raises FieldError."""
        require(isinstance(values, Mapping), "data", values, "a mapping of settings is needed here")
        assert isinstance(values, Mapping)
        known = ("path", "sources", "documents")
        for name in values:
            require(name in known, f"data.{name}", values[name], f"no such setting; known are {known}")
        path, listed = values.get("path", ""), values.get("sources", ())
        require(isinstance(path, str), "data.path", path, "a text is needed")
        require(isinstance(listed, list | tuple), "data.sources", listed, "a list is needed")
        require(bool(path) != bool(listed), "data.path", path, "either data.path or data.sources is needed")
        sources = tuple(
            read_fields(SourceConfig, each, f"data.sources.{number}") for number, each in enumerate(listed)
        )
        for number, each in enumerate(sources):
            field = f"data.sources.{number}.weight"
            require(each.weight > 0, field, each.weight, "more than 0 is needed")
        said = values.get("documents", Documents.JOINED.value)
        try:
            documents = Documents(said)
        except ValueError:
            raise FieldError("data.documents", said, "one of joined, apart is needed") from None
        only = SourceConfig(path=str(path), name="", weight=1.0)
        return cls(sources=sources or (only,), documents=documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """What is measured, how often."""

    path: str = ""
    """Of a corpus of its own; empty where there is none."""
    share: float = 0.0
    """Of the training data's windows, held out."""
    interval_steps: int = 100
    windows: int = 64
    """Measured each time; 0 for all."""

    @classmethod
    def from_mapping(cls, values: object) -> ValidationConfig:
        """Reads the job's `validation` section; nothing is the same as no validation. Raises FieldError."""
        return cls() if values is None else read_fields(cls, values, "validation")

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, "validation.share", self.share, "0 or more and less than 1 is needed")
        require(
            not (self.path and self.share),
            "validation.share",
            self.share,
            "either validation.path or validation.share, not both",
        )
        field = "validation.interval_steps"
        require(self.interval_steps >= 1, field, self.interval_steps, "1 or more is needed")
        require(self.windows >= 0, "validation.windows", self.windows, "0 or more is needed")

    @property
    def wanted(self) -> bool:
        return bool(self.path) or self.share > 0

    def due(self, step: int, steps: int) -> bool:
        """After this committed step of so many."""
        return self.wanted and step >= 1 and (step % self.interval_steps == 0 or step == steps)
