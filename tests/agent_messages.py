"""What an agent would send for an event: the way back of `orchestrator/service/wire.py`, written by reflection.

Fields are matched by name alone, so a field that the converter forgets, swaps or renames shows as a difference.
Used by the converter's own tests and by the agents that tests of the service play.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from google.protobuf.message import Message

from orchestrator.core.events import Event, NodeRegistered, StepCommitted, TrainerBecameReady, Validated
from protos import worker_pb2 as pb

_OF_THE_STREAM = {"at", "cause_id", "incarnation"}
_KIND = {
    "node_registered": "registration",
    "heartbeat_received": "heartbeat",
    "trainer_became_ready": "trainer_ready",
}
_ABOUT_A_TRAINER = {
    field.name
    for field in pb.AgentMessage.DESCRIPTOR.fields
    if field.name not in {"registration", "heartbeat", "snapshots_held"}
}


def message_of(event: Event) -> pb.AgentMessage:
    """The message from which the converter should make `event` again."""
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    kind = _KIND.get(snake, snake)
    message = pb.AgentMessage()
    body = getattr(message, kind)
    body.SetInParent()
    if isinstance(event, NodeRegistered):
        body.incarnation = event.incarnation
        body.labels.update(dict(event.labels))
        _fill(body, event, without={*_OF_THE_STREAM, "labels"})
    elif kind in _ABOUT_A_TRAINER:
        _fill(body.source, event, without=set(), only={"trainer", "start", "age_seconds"})
        _fill(body, event, without={*_OF_THE_STREAM, "trainer", "start", "age_seconds", "record", "status"})
        if isinstance(event, StepCommitted | Validated):
            _fill(body, event.record, without=set())
        if isinstance(event, TrainerBecameReady):
            _fill(body.status, event.status, without=set())
    else:
        _fill(body, event, without={*_OF_THE_STREAM, "node"})
    return message


def _fill(body: Message, value: Any, without: set[str], only: set[str] | None = None) -> None:
    for field in fields(value):
        if field.name in without or (only is not None and field.name not in only):
            continue
        content = getattr(value, field.name)
        if isinstance(content, tuple):
            place = getattr(body, field.name)
            for each in content:
                if is_dataclass(each):
                    _fill(place.add(), each, without=set())
                elif isinstance(each, tuple):
                    place.add().counts.extend(each)
                else:
                    place.append(each)
        elif isinstance(content, Enum):
            setattr(body, field.name, content.value)
        elif content is not None:
            setattr(body, field.name, content)
