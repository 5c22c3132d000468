"""Strict reading of one frozen dataclass from a mapping that arrived from elsewhere (JSON, YAML).

What lives here: the only conversion of untyped values into settings on the worker's side, and its error. What must
not: defaults (the controller sends every field) and rules about values (each dataclass checks its own, through
`require`). Next: `config.py`, which is read this way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)


class FieldError(ValueError):
    """A setting that cannot be used: says which one, what it was, and what would be accepted."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field} is {value!r}: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted


def require(condition: bool, field: str, value: object, accepted: str) -> None:
    """Raises FieldError unless the condition holds."""
    if not condition:
        raise FieldError(field, value, accepted)


def read_fields(kind: type[Settings], values: object, path: str) -> Settings:
    """An instance of the dataclass `kind`: every field present, of its exact type, and none that it does not know.

    `path` is where the mapping sits in the whole configuration ("model"); errors name `path.field`.
    """
    if not isinstance(values, Mapping):
        raise FieldError(path, values, "a mapping of settings is needed here")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in values:
        if name not in names:
            raise FieldError(f"{path}.{name}", values[name], f"no such setting; known are {', '.join(names)}")
    for name in names:
        if name not in values:
            raise FieldError(f"{path}.{name}", None, "it is missing; the controller sends every setting")
    return kind(**{name: _convert(hints[name], values[name], f"{path}.{name}") for name in names})


def _convert(hint: object, value: object, field: str) -> object:
    if hint is bool:
        require(isinstance(value, bool), field, value, "true or false is needed")
        return value
    if hint is int:
        require(
            isinstance(value, int) and not isinstance(value, bool), field, value, "a whole number is needed"
        )
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FieldError(field, value, "a finite number is needed")
        return float(value)
    if hint is str:
        require(isinstance(value, str), field, value, "a text is needed")
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        if isinstance(value, hint):
            return value
        try:
            return hint(value)
        except ValueError:
            accepted = ", ".join(str(member.value) for member in hint)
            raise FieldError(field, value, f"one of {accepted} is needed") from None
    raise AssertionError(f"{field}: no rule for settings of type {hint}")
