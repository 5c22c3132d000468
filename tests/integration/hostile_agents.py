"""Peers that mean harm, from a seed: bytes that are no message, messages that cannot be, and more than anybody may say.

`attack` plays one stream of raw bytes against a real server and tells how it ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor

from orchestrator.service.access import SESSION
from protos import worker_pb2 as pb

WAIT_SECONDS = 20.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
_KINDS = [field for field in pb.AgentMessage.DESCRIPTOR.fields if field.name != "registration"]
_WORDS = (
    "",
    "node-1/0",
    "node-66/0",
    "node-66/00",
    "../../etc",
    "\x1b[2J\x00",
    "ready",
    "x" * 5000,
    "\u202e\U0001f525",
)
_WHOLE = (0, 1, 2, -1, 2**31 - 1, -(2**31))
_LONG = (*_WHOLE, 2**53 - 1, 2**53, 2**63 - 1, -(2**63))
_REAL = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 3.0)


def attack(
    address: str, payloads: Sequence[bytes], *, token: str = "", compression: grpc.Compression | None = None
) -> tuple[grpc.StatusCode, str]:
    """One stream that says this and then closes its end; how the server ended it.

    With gRPC's threaded client: the asyncio one makes up a status of its own when a write meets the end of the stream.
    """
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        untyped: Any = channel  # without serializers: bytes go out as they are
        call = untyped.stream_stream(SESSION)(
            iter(payloads), metadata=metadata, compression=compression, timeout=WAIT_SECONDS
        )
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass  # how it ended is asked for next
        return call.code(), call.details()


def registration(node: str, **changed: Any) -> bytes:
    said = {"node": node, "incarnation": "evil", "agent_pid": 1, **changed}
    return pb.AgentMessage(registration=pb.Registration(**said)).SerializeToString()


def wild(random: Random, node: str) -> bytes:
    """One message: a report with extreme values, or a sound one that was bent, or noise."""
    match random.randrange(4):
        case 0:
            return random.randbytes(random.randrange(1, 200))
        case 1:
            data = bytearray(extreme(random, node))
            for _ in range(random.randrange(1, 5)):
                data[random.randrange(len(data))] = random.randrange(256)
            return bytes(data[: random.randrange(1, len(data) + 1)])
        case _:
            return extreme(random, node)


def extreme(random: Random, node: str) -> bytes:
    """A report of a random kind whose every field is drawn from the edges of its type."""
    message = pb.AgentMessage()
    field = random.choice(_KINDS)
    body = getattr(message, field.name)
    body.SetInParent()
    _fill(random, body)
    if random.random() < 0.8 and "source" in body.DESCRIPTOR.fields_by_name:
        body.source.trainer, body.source.start = f"{node}/0", 1
    for status in [getattr(body, "status", None), *getattr(body, "trainers", ())]:
        if status is not None and random.random() < 0.8:
            status.trainer, status.phase = f"{node}/0", "ready"
    return message.SerializeToString()


def _fill(random: Random, body: Any) -> None:
    for field in body.DESCRIPTOR.fields:
        if field.is_repeated and field.message_type is None:
            values = [_value(random, field) for _ in range(random.choice((0, 1, 3, 100)))]
            getattr(body, field.name).extend(values)
        elif field.is_repeated:
            for _ in range(random.choice((0, 1, 2, 70))):
                _fill(random, getattr(body, field.name).add())
        elif field.message_type is not None:
            _fill(random, getattr(body, field.name))
        else:
            setattr(body, field.name, _value(random, field))


def _value(random: Random, field: FieldDescriptor) -> Any:
    choices: dict[int, Sequence[Any]] = {
        FieldDescriptor.CPPTYPE_STRING: _WORDS,
        FieldDescriptor.CPPTYPE_INT32: _WHOLE,
        FieldDescriptor.CPPTYPE_INT64: _LONG,
        FieldDescriptor.CPPTYPE_UINT64: [abs(value) for value in _LONG],
        FieldDescriptor.CPPTYPE_DOUBLE: _REAL,
        FieldDescriptor.CPPTYPE_BOOL: (False, True),
    }
    return random.choice(choices[field.cpp_type])
