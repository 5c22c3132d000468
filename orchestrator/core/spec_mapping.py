"""A job as a plain mapping and back, strictly: no unknown name, no wrong type, every problem at once.

The mapping holds what JSON holds (dictionaries, lists, strings, numbers, booleans) under the names of
`spec.JobSpec`, and goes to the workers, the database and back. Meaning is not checked here: `spec_rules.py`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache, lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from orchestrator.core.problems import Problem
from orchestrator.core.spec import JobSpec

Value = TypeVar("Value")


class SpecError(ValueError):
    """A mapping is not a job. `problems` holds all of it, in the order of the mapping."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def to_mapping(spec: JobSpec) -> dict[str, Any]:
    """The whole job with every default filled in, ready for JSON."""
    mapping = _plain(spec)
    assert isinstance(mapping, dict)
    return mapping


@lru_cache(maxsize=1)
def as_json(spec: JobSpec) -> str:
    """The same as text, made once for a job: thousands of agents are told it one after the other."""
    return json.dumps(to_mapping(spec))


def from_mapping(mapping: Mapping[str, Any]) -> JobSpec:
    """Read a job. Raises SpecError with every unknown name, missing name and wrong type."""
    return read(JobSpec, mapping)


def read(kind: type[Value], mapping: Mapping[str, Any]) -> Value:
    """Read any dataclass of plain values, enums, tuples and such dataclasses. Raises SpecError like `from_mapping`."""
    problems: list[Problem] = []
    value = _build(kind, mapping, "", problems)
    if problems:
        raise SpecError(tuple(problems))
    assert isinstance(value, kind)
    return value


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return types.MappingProxyType(get_type_hints(kind))


def _build(kind: type, value: object, path: str, problems: list[Problem]) -> object:
    """A dataclass from a mapping; what is wrong goes to `problems`, and the result is then of no use."""
    assert is_dataclass(kind)
    if not isinstance(value, Mapping):
        problems.append(Problem(field=path or "job", value=value, remedy="give a mapping of names to values"))
        return None
    known = {each.name: each for each in fields(kind)}
    for name in value:
        if name not in known:
            problems.append(_unknown(f"{path}{name}", name, value[name], tuple(known)))
    arguments: dict[str, object] = {}
    for name, each in known.items():
        if name in value:
            arguments[name] = _read(_hints(kind)[name], value[name], f"{path}{name}", problems)
        elif _required(each):
            problems.append(
                Problem(field=f"{path}{name}", value=None, remedy="is missing and has no default")
            )
    return None if problems else kind(**arguments)


def _required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _unknown(field: str, name: object, value: object, known: tuple[str, ...]) -> Problem:
    near = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names are {', '.join(known)}"
    return Problem(field=field, value=value, remedy=f"unknown name: {hint}")


def _read(kind: Any, value: object, field: str, problems: list[Problem]) -> object:
    """One value as its type asks for it. An int is taken for a float, a bool for neither."""
    if is_dataclass(kind) and isinstance(kind, type):
        return (
            _build(kind, value, f"{field}.", problems)
            if isinstance(value, Mapping)
            else _build(kind, value, field, problems)
        )
    if get_origin(kind) is tuple:
        return _sequence(get_args(kind)[0], value, field, problems)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(kind, value, field, problems)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
    remedy = f"expected {expected}, found {_name_of_type(value)}"
    problems.append(Problem(field=field, value=value, remedy=remedy))
    return None


def _sequence(kind: Any, value: object, field: str, problems: list[Problem]) -> object:
    if not isinstance(value, list | tuple):
        remedy = f"expected a list, found {_name_of_type(value)}"
        problems.append(Problem(field=field, value=value, remedy=remedy))
        return ()
    return tuple(_read(kind, each, f"{field}.{index}", problems) for index, each in enumerate(value))


def _choice(kind: type[Enum], value: object, field: str, problems: list[Problem]) -> object:
    choices = {member.value: member for member in kind}
    if isinstance(value, str) and value in choices:
        return choices[value]
    problems.append(Problem(field=field, value=value, remedy=f"choose one of {', '.join(choices)}"))
    return None


def _name_of_type(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "nothing",
    }
    if isinstance(value, Mapping):
        return "a mapping"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else type(value).__name__)
