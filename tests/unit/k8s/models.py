"""Checks an object against the models of the Kubernetes client, which know the fields of a recent server.

Every field must be one that the model has, and every value of a type that it admits, at any depth.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes.client as models
from pydantic import BaseModel, TypeAdapter, ValidationError

GROUPS = {
    "v1": "V1",
    "apps/v1": "V1",
    "rbac.authorization.k8s.io/v1": "V1",
    "networking.k8s.io/v1": "V1",
    "scheduling.k8s.io/v1": "V1",
    "policy/v1": "V1",
    "apiextensions.k8s.io/v1": "V1",
}
IRREGULAR = {"Event": "CoreV1Event", "ServiceAccount": "V1ServiceAccount"}


def problems(item: Mapping[str, Any]) -> list[str]:
    """What a recent server would refuse or drop; empty for an object that is as it should be."""
    group, kind = item["apiVersion"], item["kind"]
    model = getattr(models, IRREGULAR.get(kind, f"{GROUPS[group]}{kind}"))
    return list(_of_model(model, item, kind))


def _of_model(model: type[BaseModel], value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place}: {value!r} is not an object"
        return
    fields = {_called(model, name): each.annotation for name, each in model.model_fields.items()}
    for key, inner in value.items():
        if key not in fields:
            yield f"{place}.{key}: there is no such field"
        else:
            yield from _of_type(fields[key], inner, f"{place}.{key}")
    for name, each in model.model_fields.items():
        if each.is_required() and _called(model, name) not in value:
            yield f"{place}.{_called(model, name)}: is missing"


def _called(model: type[BaseModel], name: str) -> str:
    """The name of a field in JSON."""
    table: Mapping[str, str] = getattr(model, "attribute_map")  # noqa: B009 (the client's own, on no base class)
    word = name.removeprefix(
        "var_"
    )  # names that Python keeps for itself are dodged in one way there, in another here
    return next(table[each] for each in (name, word, f"_{word}") if each in table)


def _of_type(kind: Any, value: Any, place: str) -> Iterator[str]:
    """A value against a type of a model."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        tried = [list(_of_type(each, value, place)) for each in inner if each is not type(None)]
        yield from min(tried, key=len)
    elif origin is list and isinstance(value, list):
        for index, each in enumerate(value):
            yield from _of_type(inner[0], each, f"{place}[{index}]")
    elif origin is dict and isinstance(value, Mapping):
        for key, each in value.items():
            yield from _of_type(inner[1], each, f"{place}.{key}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        if "actual_instance" not in kind.model_fields:  # a number or a string, such as a port
            yield from _of_model(kind, value, place)
    else:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            yield f"{place}: {error.errors()[0]['msg']}: {value!r}"
