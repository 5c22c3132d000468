"""The codec: every event, action and entity survives the way to JSON text and back; nothing else gets through."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.ids import NodeId
from orchestrator.core.state import Member, Node, NodeState
from orchestrator.store.codec import (
    ACTION_TYPES,
    ENTITY_TYPES,
    EVENT_TYPES,
    CodecError,
    decode,
    decode_action,
    decode_entity,
    decode_event,
    encode,
    encode_tagged,
)
from orchestrator.store.entity_rows import DERIVED, TABLES, entity_of, row_of


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Arbitrary values of a type hint, made without the codec's help."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if each is types.NoneType else _values(each) for each in parts])
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return st.lists(_values(parts[0]), max_size=3).map(tuple)
        return st.tuples(*[_values(each) for each in parts])
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _instances(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    return {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bool: st.booleans(),
    }[hint]


def _instances(wanted: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(wanted)
    return st.builds(wanted, **{each.name: _values(hints[each.name]) for each in dataclasses.fields(wanted)})


def _through_text(value: object) -> Any:
    return json.loads(json.dumps(encode_tagged(value), allow_nan=False))


@pytest.mark.parametrize("name", EVENT_TYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_event_survives(name: str, data: st.DataObject) -> None:
    event = data.draw(_instances(EVENT_TYPES[name]))
    assert decode_event(_through_text(event)) == event


@pytest.mark.parametrize("name", ACTION_TYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_action_survives(name: str, data: st.DataObject) -> None:
    action = data.draw(_instances(ACTION_TYPES[name]))
    assert decode_action(_through_text(action)) == action


@pytest.mark.parametrize("name", ENTITY_TYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_entity_survives(name: str, data: st.DataObject) -> None:
    entity = data.draw(_instances(ENTITY_TYPES[name]))
    assert decode_entity(_through_text(entity)) == entity


@pytest.mark.parametrize("name", ENTITY_TYPES)
def test_every_field_of_an_entity_has_its_column_and_every_column_its_field(name: str) -> None:
    wanted = ENTITY_TYPES[name]
    table = TABLES[wanted]
    fields = {each.name for each in dataclasses.fields(wanted)}
    assert set(table.columns.keys()) - DERIVED.get(table.name, set()) == fields


@pytest.mark.parametrize("name", ENTITY_TYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_row_of_an_entity_is_that_entity(name: str, data: st.DataObject) -> None:
    entity = data.draw(_instances(ENTITY_TYPES[name]))
    row = row_of(entity)
    cleaned = entity_of(ENTITY_TYPES[name], row)
    assert row_of(cleaned) == row, "what the database takes comes back as it is"
    assert set(row) == set(TABLES[ENTITY_TYPES[name]].columns.keys())


def test_text_that_a_database_refuses_is_made_harmless() -> None:
    row = row_of(_node(reason="zero \0 and half \ud800 a pair"))
    assert row["reason"] == "zero \ufffd and half ? a pair"


def test_floats_without_a_word_in_json_survive() -> None:
    for strange in (math.inf, -math.inf):
        assert decode(Node, encode(_node(changed_at=strange))).changed_at == strange
    assert math.isnan(decode(Node, encode(_node(changed_at=math.nan))).changed_at)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("changed_at", "late", "Node.changed_at: expected float, got 'late'"),
        ("changed_at", True, "Node.changed_at: expected float, got True"),
        ("agent_pid", 1.5, "Node.agent_pid: expected int, got 1.5"),
        ("agent_pid", True, "Node.agent_pid: expected int"),
        ("cordoned", 1, "Node.cordoned: expected bool, got 1"),
        ("reason", None, "Node.reason: expected str, got None"),
        ("state", "sleeping", "Node.state: 'sleeping' is not a valid NodeState"),
        ("labels", "rack", r"Node.labels: expected a list"),
        ("labels", [["rack"]], r"Node.labels\[0\]: expected 2 values, got 1"),
        ("labels", [["rack", 1]], r"Node.labels\[0\]\[1\]: expected str, got 1"),
        ("colour", "red", "Node: unknown fields colour"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field: str, value: object, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        decode(Node, encode(_node()) | {field: value})


def test_a_missing_field_takes_its_default_or_is_refused() -> None:
    data = encode_tagged(_node())
    del data["reason"]
    with pytest.raises(CodecError, match="Node: missing fields reason"):
        decode_entity(data)


@pytest.mark.parametrize("data", [None, [], {"type": "Rumour"}, {"type": 3}, {}])
def test_an_unknown_type_is_refused(data: object) -> None:
    with pytest.raises(CodecError):
        decode_event(data)


def test_what_is_no_core_value_is_refused() -> None:
    for strange in ([1], {"a": 1}, object(), b"bytes", Member):
        with pytest.raises(CodecError, match="is not a core value"):
            encode(strange)


def _node(reason: str = "registered", changed_at: float = 1.0) -> Node:
    return Node(
        id=NodeId("node-1"),
        state=NodeState.ACTIVE,
        cordoned=False,
        incarnation="i",
        labels=(("rack", "a"),),
        agent_pid=7,
        reason=reason,
        changed_at=changed_at,
    )
