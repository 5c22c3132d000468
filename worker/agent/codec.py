"""Messages of agent and trainer as bytes: one JSON object per message, its class named by `kind`.

Strict on the way in: an unknown kind, a field too many, too few or of another type is a CodecError that names it.
Numbers that JSON has no word for (NaN, infinities: a loss can be one) use Python's spelling on both ends. Pure; no
sockets here. Next: `channel.py`.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from worker.agent.messages import Order, Report

_Check = Callable[[Any, str], Any]
_Plain = TypeVar("_Plain", int, str, bool)


class CodecError(Exception):
    """Bytes that are no message of ours, or a message that does not fit its fields."""


def encode(message: Order | Report) -> bytes:
    """A message as UTF-8 JSON."""
    kind: type = type(message)
    body: dict[str, Any] = {"kind": kind.__name__}
    for name in _names(kind):
        body[name] = getattr(message, name)
    return _ENCODER.encode(body).encode()


def decode_order(payload: bytes) -> Order:
    """What an agent told its trainer. Raises CodecError."""
    return cast("Order", _decode(payload, _ORDERS))


def decode_report(payload: bytes) -> Report:
    """What a trainer told its agent. Raises CodecError."""
    return cast("Report", _decode(payload, _REPORTS))


def _decode(payload: bytes, kinds: Mapping[str, type]) -> object:
    try:
        body = json.loads(payload)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CodecError(f"a JSON {type(body).__name__}, not an object")
    name = body.pop("kind", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CodecError(f"kind: {name!r} is none of: {', '.join(kinds)}")
    return _build(kind, body, kind.__name__)


def _build(kind: type, body: Any, path: str) -> object:
    if not isinstance(body, dict):
        raise CodecError(f"{path}: a JSON {type(body).__name__}, not an object")
    checks = _checks(kind)
    if body.keys() != checks.keys():
        missing, surplus = sorted(checks.keys() - body.keys()), sorted(body.keys() - checks.keys())
        raise CodecError(f"{path}: missing fields {missing}, unknown fields {surplus}")
    return kind(**{name: check(body[name], f"{path}.{name}") for name, check in checks.items()})


def _nested(value: object) -> dict[str, Any]:
    if not is_dataclass(value):
        raise CodecError(f"{type(value).__name__} cannot be sent")
    kind: type = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_nested, check_circular=False)


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@functools.cache
def _checks(kind: type) -> dict[str, _Check]:
    hints = typing.get_type_hints(kind)
    return {name: _check_of(hints[name]) for name in _names(kind)}


def _check_of(hint: Any) -> _Check:
    """How a value of a field's type is read from JSON."""
    if hint is float:
        return _float
    if hint in (int, str, bool):
        return functools.partial(_exact, hint)
    if typing.get_origin(hint) is tuple:
        item, ellipsis = typing.get_args(hint)
        assert ellipsis is ..., f"{hint}: only tuples of one type and any length travel"
        if item in (int, str):
            return functools.partial(_plain_tuple, item)
        return functools.partial(_tuple, _check_of(item))
    assert is_dataclass(hint), f"{hint} has no form on the wire"
    return functools.partial(_build, cast("type", hint))


def _exact(kind: type[_Plain], value: Any, path: str) -> _Plain:
    if type(value) is not kind:
        raise CodecError(f"{path}: {value!r} is not of type {kind.__name__}")
    return value


def _float(value: Any, path: str) -> float:
    if type(value) is float:
        return value
    return float(_exact(int, value, path))


def _plain_tuple(kind: type[_Plain], values: Any, path: str) -> tuple[_Plain, ...]:
    """The many sample ids of a step: checked all at once."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise CodecError(f"{path}: not a list of {kind.__name__}")
    return tuple(values)


def _tuple(check: _Check, values: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise CodecError(f"{path}: a JSON {type(values).__name__}, not a list")
    return tuple(check(value, f"{path}[{index}]") for index, value in enumerate(values))


def _by_name(union: types.UnionType) -> dict[str, type]:
    return {kind.__name__: kind for kind in typing.get_args(union)}


_ORDERS = _by_name(Order)
_REPORTS = _by_name(Report)
