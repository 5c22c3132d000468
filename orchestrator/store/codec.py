"""Core values to and from JSON: a strict, typed codec for dataclasses. No pickle, no type names but the outermost.

`encode` gives plain mappings, lists and scalars; `decode` is driven by the type hints of the class that is asked for
and refuses whatever does not fit, naming the place. A field that is missing takes its default, so that a value stored
before the field existed can be read; a field that nobody knows is refused. Floats that JSON has no word for are
written as "nan", "inf" and "-inf". Next: `entity_rows.py` (entities as columns), `repository.py`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin

from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.state import Entity

T = TypeVar("T")

TYPE_KEY = "type"

EVENT_TYPES: dict[str, type[Any]] = {each.__name__: each for each in get_args(Event)}
ACTION_TYPES: dict[str, type[Any]] = {each.__name__: each for each in get_args(Action)}
ENTITY_TYPES: dict[str, type[Any]] = {each.__name__: each for each in get_args(Entity)}

_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class CodecError(Exception):
    """A value does not fit its type; says where and why."""


def encode(value: object) -> Any:
    """Plain JSON values of a core value: mappings for dataclasses, lists for tuples, `value` for enums."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [encode(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _shape(type(value)).hints}
    raise CodecError(f"{value!r} of type {type(value).__name__} is not a core value")


def encode_tagged(value: object) -> dict[str, Any]:
    """`encode` with the class name beside the fields."""
    return {TYPE_KEY: type(value).__name__, **encode(value)}


def decode_event(data: object) -> Event:
    """The event that `encode_tagged` made this of. Raises CodecError."""
    event: Event = _decode_tagged(EVENT_TYPES, data)
    return event


def decode_action(data: object) -> Action:
    """The action that `encode_tagged` made this of. Raises CodecError."""
    action: Action = _decode_tagged(ACTION_TYPES, data)
    return action


def decode_entity(data: object) -> Entity:
    """The entity that `encode_tagged` made this of. Raises CodecError."""
    entity: Entity = _decode_tagged(ENTITY_TYPES, data)
    return entity


def decode(wanted: type[T], data: object) -> T:
    """A value of the dataclass `wanted` from plain JSON values. Raises CodecError."""
    value: T = _decode(wanted, data, wanted.__name__)
    return value


def decode_as(hint: Any, data: object, place: str) -> Any:
    """A value of any supported type hint (a tuple type, for a column that holds one). Raises CodecError."""
    return _decode(hint, data, place)


def _decode_tagged(known: dict[str, type[Any]], data: object) -> Any:
    if not isinstance(data, dict):
        raise CodecError(f"expected a mapping, got {type(data).__name__}")
    name = data.get(TYPE_KEY)
    wanted = known.get(name) if isinstance(name, str) else None
    if wanted is None:
        raise CodecError(f"unknown type {name!r}; known are {', '.join(sorted(known))}")
    return _decode(wanted, {key: value for key, value in data.items() if key != TYPE_KEY}, wanted.__name__)


def _decode(hint: Any, data: object, place: str) -> Any:
    hint = _plain(hint)
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(hint, data, place)
    if origin is tuple:
        return _decode_tuple(get_args(hint), data, place)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type), hint
        return _decode_dataclass(hint, data, place)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(data)
        except ValueError as error:
            raise CodecError(f"{place}: {error}") from error
    return _decode_scalar(hint, data, place)


def _decode_scalar(hint: Any, data: object, place: str) -> Any:
    if hint is float:
        if isinstance(data, str) and data in _SPECIAL_FLOATS:
            return _SPECIAL_FLOATS[data]
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
    elif hint is int:
        if isinstance(data, int) and not isinstance(data, bool):
            return data
    elif (hint is str or hint is bool) and isinstance(data, hint):
        return data
    raise CodecError(f"{place}: expected {getattr(hint, '__name__', hint)}, got {data!r}")


def _decode_optional(hint: Any, data: object, place: str) -> Any:
    choices = [each for each in get_args(hint) if each is not types.NoneType]
    assert len(choices) == 1, f"{place}: only `X | None` is supported, not {hint}"
    return None if data is None else _decode(choices[0], data, place)


def _decode_tuple(parts: tuple[Any, ...], data: object, place: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise CodecError(f"{place}: expected a list, got {data!r}")
    if len(parts) == 2 and parts[1] is Ellipsis:
        return tuple(_decode(parts[0], each, f"{place}[{index}]") for index, each in enumerate(data))
    if len(parts) != len(data):
        raise CodecError(f"{place}: expected {len(parts)} values, got {len(data)}")
    both = zip(parts, data, strict=True)
    return tuple(_decode(part, each, f"{place}[{index}]") for index, (part, each) in enumerate(both))


def _decode_dataclass(wanted: type[Any], data: object, place: str) -> Any:
    if not isinstance(data, dict):
        raise CodecError(f"{place}: expected a mapping, got {data!r}")
    shape = _shape(wanted)
    hints = shape.hints
    unknown = sorted(data.keys() - hints.keys())
    if unknown:
        raise CodecError(
            f"{place}: unknown fields {', '.join(map(str, unknown))} (written by a newer version?)"
        )
    missing = sorted(shape.required - data.keys())
    if missing:
        raise CodecError(f"{place}: missing fields {', '.join(missing)}")
    return wanted(**{name: _decode(hints[name], value, f"{place}.{name}") for name, value in data.items()})


def _plain(hint: Any) -> Any:
    """The type behind a NewType."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    return hint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What the codec needs to know of a dataclass, found out once."""

    hints: dict[str, Any]
    """By field, in order."""
    required: frozenset[str]


_shapes: dict[type[Any], _Shape] = {}


def _shape(wanted: type[Any]) -> _Shape:
    shape = _shapes.get(wanted)
    if shape is None:
        hints = typing.get_type_hints(wanted)
        fields = dataclasses.fields(wanted)
        missing = dataclasses.MISSING
        shape = _Shape(
            hints={each.name: hints[each.name] for each in fields},
            required=frozenset(
                each.name for each in fields if each.default is missing and each.default_factory is missing
            ),
        )
        _shapes[wanted] = shape
    return shape
