"""Messages to bytes and back: nothing changes on the way, and nothing wrong gets in."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.agent.stories import committed, generation, seats
from worker.agent import messages
from worker.agent.codec import CodecError, decode_order, decode_report, encode
from worker.agent.messages import Order, Report
from worker.agent.seats import seat_of

ORDERS = typing.get_args(Order)
REPORTS = typing.get_args(Report)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) is tuple:
        return st.lists(_values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint):
        return _instances(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**62), 2**62),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=20),
        bool: st.booleans(),
    }
    return plain[hint]


def _instances(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(kind)})


@given(st.one_of([_instances(kind) for kind in ORDERS]))
def test_every_order_comes_back_as_it_went(order: Order) -> None:
    """Any values, nested and empty ones too."""
    assert decode_order(encode(order)) == order


@given(st.one_of([_instances(kind) for kind in REPORTS]))
def test_every_report_comes_back_as_it_went(report: Report) -> None:
    """Any values."""
    assert decode_report(encode(report)) == report


def test_a_loss_that_is_no_number_arrives_as_such() -> None:
    """NaN is what the controller must hear of."""
    record = dataclasses.replace(committed(1), loss=math.nan)
    back = decode_report(encode(record))
    assert isinstance(back, messages.StepCommitted) and math.isnan(back.loss)


def test_a_whole_number_serves_as_a_float() -> None:
    """Python writes 2.0 as 2.0, another writer may not."""
    body = json.loads(encode(committed(1)))
    body["loss"] = 2
    back = decode_report(json.dumps(body).encode())
    assert isinstance(back, messages.StepCommitted) and type(back.loss) is float


def test_orders_are_no_reports() -> None:
    """Each end knows only what it can be told."""
    with pytest.raises(CodecError, match="StepCommitted"):
        decode_order(encode(committed(1)))


SEAT = messages.TakeSeat(assignment=seat_of(generation(2, seats=seats(0)), 0))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda body: body.pop("kind"), "kind"),
        (lambda body: body.update(kind="Sit"), "'Sit'"),
        (lambda body: body.update(kind=["TakeSeat"]), "kind"),
        (lambda body: body.pop("assignment"), "missing fields \\['assignment'\\]"),
        (lambda body: body.update(more=1), "unknown fields \\['more'\\]"),
        (lambda body: body["assignment"].update(number="2"), "assignment.number"),
        (lambda body: body["assignment"].update(number=True), "assignment.number"),
        (lambda body: body["assignment"].update(deal=[[0, "1"]]), "assignment.deal\\[0\\]"),
        (lambda body: body["assignment"].update(members=7), "assignment.members"),
        (lambda body: body["assignment"]["members"].append({}), "assignment.members\\[2\\]"),
        (lambda body: body["assignment"]["members"].append(3), "assignment.members\\[2\\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Any, complaint: str) -> None:
    """A field too many, too few, of another type, at any depth."""
    body = json.loads(encode(SEAT))
    change(body)
    with pytest.raises(CodecError, match=complaint):
        decode_order(json.dumps(body).encode())


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    """Noise."""
    with pytest.raises(CodecError):
        decode_report(payload)
