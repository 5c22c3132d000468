"""Entities of the core as rows of their tables, and rows as entities. Scalars are columns, tuples are JSON.

A new field of an entity is a column in `tables.py`, a migration, and a line here if its name or type differs: columns
and fields with the same name are copied as they are. Next: `repository.py`, which stores them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, assert_never

from sqlalchemy import Table

from orchestrator.core.state import Checkpoint, Entity, Generation, Health, Incident, Job, Node
from orchestrator.store import tables
from orchestrator.store.codec import decode, encode

E = TypeVar("E", Job, Node, Health, Generation, Incident, Checkpoint)

TABLES: Mapping[type[Entity], Table] = {
    Job: tables.jobs,
    Node: tables.nodes,
    Health: tables.node_health,
    Generation: tables.generations,
    Incident: tables.incidents,
    Checkpoint: tables.checkpoints,
}

DERIVED = {"jobs": {"name", "steps"}, "generations": {"world"}}
"""Columns that are not fields: repeated from JSON, for people."""

EMPTY: Mapping[str, Mapping[str, Any]] = {"generations": {"restore_shards": []}}
"""What an empty column means in a row that an older version has written."""


def row_of(entity: Entity) -> dict[str, Any]:
    """The columns of an entity."""
    row = {each.name: _column(getattr(entity, each.name)) for each in dataclasses.fields(entity)}
    match entity:
        case Job():
            row |= {"name": clean(entity.spec.name), "steps": entity.spec.steps}
        case Generation():
            row |= {"world": len(entity.members)}
        case Node() | Health() | Incident() | Checkpoint():
            pass
        case _:
            assert_never(entity)
    return row


def entity_of(wanted: type[E], row: Mapping[Any, Any]) -> E:
    """The entity in a row. Raises CodecError when the row cannot be one."""
    derived = DERIVED.get(TABLES[wanted].name, set())
    empty = EMPTY.get(TABLES[wanted].name, {})
    row = {name: empty.get(name) if value is None else value for name, value in row.items()}
    return decode(wanted, {name: value for name, value in row.items() if name not in derived})


def clean(text: str) -> str:
    """Text that every database takes: no NUL, no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _column(value: object) -> Any:
    if isinstance(value, float):
        return value
    plain = encode(value)
    return clean(plain) if isinstance(plain, str) else plain
