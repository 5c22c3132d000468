"""The converter: what an agent reports arrives whole, what the core orders leaves whole, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import actions, events
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import ActionId, CauseId, GenerationNumber, NodeId, Rank, Step, TrainerId
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.state import Generation, GenerationKind, Member
from orchestrator.service import checked, wire
from protos import worker_pb2 as pb
from tests.agent_messages import message_of

AT = 1700000000.5
CAUSE = CauseId("test-1")
NODE = NodeId("node-1")
TRAINER = TrainerId("node-1/0")
ENVELOPE = checked.Envelope(node=NODE, incarnation="i-1", at=AT, cause_id=CAUSE)

counts = st.integers(min_value=0, max_value=2**31 - 1)
steps = st.integers(min_value=0, max_value=checked.NUMBER_LIMIT - 1)
seconds = st.floats(min_value=0.0, max_value=checked.SECONDS_LIMIT)
_printable = st.characters(codec="utf-8").filter(str.isprintable)
words = st.text(_printable, max_size=20)
names = st.text(_printable, min_size=1, max_size=20)
folders = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
statuses = st.builds(
    events.TrainerStatus,
    trainer=st.just(TRAINER),
    start=counts,
    pid=counts,
    ready=st.booleans(),
    store_address=words,
    peer_address=words,
    device_name=words,
    generation=steps,
    step=steps,
    phase=st.sampled_from(events.TrainerPhase),
    operation=steps,
    waiting=st.booleans(),
    silent_seconds=seconds,
    work_seconds=seconds,
)
records = st.builds(
    StepRecord,
    step=steps,
    generation=steps,
    loss=st.floats(allow_nan=False),
    tokens=steps,
    time=seconds,
    step_seconds=seconds,
    sample_ids=st.lists(steps, max_size=5).map(tuple),
    expert_load=st.lists(steps, max_size=5).map(tuple),
    layer_load=st.lists(st.lists(steps, max_size=3).map(tuple), max_size=3).map(tuple),
    learning_rate=st.floats(allow_nan=False),
    gradient_norm=st.floats(allow_nan=False),
)
validations = st.builds(
    ValidationRecord,
    step=steps,
    generation=steps,
    loss=st.floats(allow_nan=False),
    bits_per_byte=st.floats(allow_nan=False),
    tokens=steps,
    windows=steps,
    time=seconds,
    seconds=seconds,
)
findings = st.builds(events.ReplicaFinding, part=names, rank=counts, checksum=names, changed=st.booleans())
stream = {"at": st.just(AT), "cause_id": st.just(CAUSE), "incarnation": st.just("i-1")}
source = {**stream, "trainer": st.just(TRAINER), "start": counts, "age_seconds": seconds}
place = {"generation": steps, "step": steps}

held = st.builds(
    HeldShard,
    step=steps,
    generation=steps,
    rank=counts,
    shards=counts,
    bytes=steps,
    entry=st.just('{"file": "rank-00000.safetensors"}'),
    stall_seconds=seconds,
)

REPORTS: dict[Callable[..., events.Event], dict[str, st.SearchStrategy[Any]]] = {
    events.HeartbeatReceived: {**stream, "node": st.just(NODE), "trainers": st.lists(statuses, max_size=3).map(tuple)},
    events.SnapshotsHeld: {**stream, "node": st.just(NODE), "held": st.lists(held, max_size=3).map(tuple)},
    events.TrainerBecameReady: {**source, "status": statuses},
    events.TrainerExited: {
        **source,
        "exit_code": st.none() | st.integers(-255, 255),
        "signal": st.none() | st.integers(1, 64),
        "will_restart": st.booleans(),
    },
    events.TrainerFellSilent: {**source, "silent_seconds": seconds},
    events.CommunicationFailed: {**source, **place, "detail": words},
    events.GenerationJoined: {
        **source,
        "generation": steps,
        "committed": steps,
        "completed_held": st.booleans(),
        "redoes": st.booleans(),
        "copied_parts": counts,
    },
    events.StepCommitted: {**source, "record": records},
    events.Validated: {**source, "record": validations},
    events.PartsAcquired: {**source, "acquisition": names, "version": steps},
    events.AcquisitionFailed: {**source, "acquisition": names, "reason": words},
    events.CheckpointBegun: {**source, **place, "request": names, "name": folders},
    events.ShardWritten: {
        **source, **place, "request": names, "name": folders, "rank": counts, "bytes": steps,
        "shard": st.just("") | names,  # empty: nothing to write
    },
    events.CheckpointFailed: {**source, "request": names, "reason": words},
    events.CheckpointSealed: {
        **source, "request": names, "step": steps, "name": folders, "path": words, "bytes": steps,
    },
    events.RestoreFailed: {
        **source, "generation": steps, "name": words, "shard": words, "reason": words, "damaged": st.booleans(),
    },
    events.StateRefused: {**source, **place, "reason": words, "not_finite": st.booleans()},
    events.ReplicasDiffered: {**source, **place, "findings": st.lists(findings, max_size=4).map(tuple)},
    events.StepRedone: {**source, **place, "rank": st.none() | counts, "seconds": seconds},
    events.TrainingEnded: {**source, **place, "finished": st.booleans()},
    events.TrainerRefused: {**source, "reason": words},
    events.PairChecked: {
        **source,
        "check": names,
        "outcome": st.sampled_from(events.CheckOutcome),
        "right": st.booleans(),
        "digest": words,
        "compute_seconds": seconds,
        "exchange_seconds": seconds,
        "reason": words,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", REPORTS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_a_report_arrives_as_the_event_it_stands_for(
    kind: Callable[..., events.Event], data: st.DataObject
) -> None:
    """Through real bytes, so that what protobuf cannot hold shows as well."""
    said = data.draw(st.builds(kind, **REPORTS[kind]))
    message = pb.AgentMessage.FromString(message_of(said).SerializeToString())
    assert wire.event(message, ENVELOPE) == said


KINDS = [field.name for field in pb.AgentMessage.DESCRIPTOR.oneofs_by_name["kind"].fields]


def test_every_kind_of_report_is_tried_above() -> None:
    assert len(REPORTS) == len(KINDS) - 1, "all but the registration"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"registration", "heartbeat", "snapshots_held"}))
def test_every_kind_of_report_has_a_reader(kind: str) -> None:
    """A message added to the proto without a reader would end the stream of the first agent that sends it."""
    message = pb.AgentMessage()
    getattr(message, kind).SetInParent()
    with pytest.raises(checked.WireError) as refused:
        wire.event(message, ENVELOPE)
    assert refused.value.field == f"{kind}.source.trainer"


@given(
    labels=st.dictionaries(words, words, max_size=4),
    trainers=st.lists(statuses, max_size=3).map(tuple),
    pid=counts,
    generation=steps,
)
def test_a_registration_arrives_whole(
    labels: dict[str, str], trainers: tuple[events.TrainerStatus, ...], pid: int, generation: int
) -> None:
    said = events.NodeRegistered(
        at=AT,
        cause_id=CAUSE,
        node=NODE,
        incarnation="i-1",
        labels=tuple(sorted(labels.items())),
        agent_pid=pid,
        generation=GenerationNumber(generation),
        trainers=trainers,
    )
    message = pb.AgentMessage.FromString(message_of(said).SerializeToString())
    assert wire.registration(message, AT, CAUSE) == said


# ---- what is refused, and by which name ----


def _registration(**changed: object) -> pb.AgentMessage:
    values: dict[str, object] = {"node": "node-1", "incarnation": "i-1", "agent_pid": 7}
    return pb.AgentMessage(registration=pb.Registration(**(values | changed)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message,field",
    [
        (pb.AgentMessage(), "kind"),
        (pb.AgentMessage(heartbeat=pb.Heartbeat()), "kind"),
        (_registration(node=""), "registration.node"),
        (_registration(node="../etc"), "registration.node"),
        (_registration(node="a" * 64), "registration.node"),
        (_registration(node="node 1"), "registration.node"),
        (_registration(incarnation=""), "registration.incarnation"),
        (_registration(agent_pid=-1), "registration.agent_pid"),
        (_registration(generation=-1), "registration.generation"),
        (_registration(labels={str(number): "" for number in range(65)}), "registration.labels"),
        (
            _registration(trainers=[pb.TrainerStatus(trainer="node-1/0", phase="dreaming")]),
            "registration.trainers[0].phase",
        ),
        (
            _registration(trainers=[pb.TrainerStatus(trainer="node-2/0", phase="ready")]),
            "registration.trainers[0].trainer",
        ),
    ],
)
def test_an_unsound_registration_is_refused_by_field(message: pb.AgentMessage, field: str) -> None:
    with pytest.raises(checked.WireError) as refused:
        wire.registration(message, AT, CAUSE)
    assert refused.value.field == field


def _of(trainer: str) -> pb.Source:
    return pb.Source(trainer=trainer, start=1)


@pytest.mark.parametrize(
    "message,field",
    [
        (pb.AgentMessage(), "kind"),
        (_registration(), "kind"),
        (pb.AgentMessage(trainer_exited=pb.TrainerExited()), "trainer_exited.source.trainer"),
        (
            pb.AgentMessage(trainer_exited=pb.TrainerExited(source=_of("node-2/0"))),
            "trainer_exited.source.trainer",
        ),
        (
            pb.AgentMessage(trainer_exited=pb.TrainerExited(source=_of("node-1/00"))),
            "trainer_exited.source.trainer",
        ),
        (
            pb.AgentMessage(trainer_exited=pb.TrainerExited(source=_of("node-1/64"))),
            "trainer_exited.source.trainer",
        ),
        (
            pb.AgentMessage(trainer_fell_silent=pb.TrainerFellSilent(source=_of(TRAINER), silent_seconds=-1)),
            "trainer_fell_silent.silent_seconds",
        ),
        (
            pb.AgentMessage(step_committed=pb.StepCommitted(source=_of(TRAINER), step_seconds=float("nan"))),
            "step_committed.step_seconds",
        ),
        (
            pb.AgentMessage(training_ended=pb.TrainingEnded(source=_of(TRAINER), step=-1)),
            "training_ended.step",
        ),
        (pb.AgentMessage(parts_acquired=pb.PartsAcquired(source=_of(TRAINER))), "parts_acquired.acquisition"),
        (
            pb.AgentMessage(
                heartbeat=pb.Heartbeat(trainers=[pb.TrainerStatus(trainer=TRAINER, phase="ready")] * 65)
            ),
            "heartbeat.trainers",
        ),
    ],
)
def test_an_unsound_report_is_refused_by_field(message: pb.AgentMessage, field: str) -> None:
    with pytest.raises(checked.WireError) as refused:
        wire.event(message, ENVELOPE)
    assert refused.value.field == field


def test_an_unknown_word_is_answered_with_the_known_ones() -> None:
    status = pb.TrainerStatus(trainer=TRAINER, phase="dreaming")
    with pytest.raises(checked.WireError, match=r"'dreaming' is none of: starting, ready"):
        wire.event(pb.AgentMessage(heartbeat=pb.Heartbeat(trainers=[status])), ENVELOPE)


# ---- orders ----

_HEAD: dict[str, Any] = {"id": ActionId("a-1"), "generation": GenerationNumber(7), "node": NODE}
_ASSIGNMENT = Generation(
    number=GenerationNumber(7),
    kind=GenerationKind.PLANNED,
    members=(
        Member(trainer=TRAINER, start=2, rank=Rank(0), store_address="h:1", peer_address="h:2"),
        Member(
            trainer=TrainerId("node-2/0"),
            start=1,
            rank=Rank(1),
            store_address="h:3",
            peer_address="h:4",
            stage=1,
        ),
    ),
    placement=((Rank(0), Rank(1)), (Rank(1), Rank(0))),
    deal=((0, 2), (1,)),
    restore_name="step-00000120.g0004",
    restore_step=Step(120),
    incident=None,
    reason="a seat is filled",
    created_at=AT,
)
ORDERS: list[wire.ToNode] = [
    actions.Welcome(**_HEAD, config='{"name": "x"}', reported_through=Step(5)),
    actions.Assign(**_HEAD, assignment=_ASSIGNMENT, reported_through=Step(6)),
    actions.Fence(**_HEAD, reason="its seat is taken"),
    actions.Acquire(
        **_HEAD,
        trainer=TRAINER,
        acquisition="q-1",
        donors=(
            actions.Donor(trainer=TrainerId("node-2/0"), peer_address="h:4", parts=("dense", "expert-00007")),
        ),
    ),
    actions.RestartTrainer(**_HEAD, trainer=TRAINER, start=3, reason="silent"),
    actions.SetTimeouts(**_HEAD, hang_seconds=1.5),
    actions.CheckPair(
        **_HEAD, trainer=TRAINER, check="chk-1", rank=1, store_address="h:3", limit_seconds=10.0
    ),
    actions.TakeCheckpoint(**_HEAD, request="c-1"),
    actions.TakeSnapshot(
        **_HEAD,
        request="snap-1-0001",
        keep="snapshot-00000009.g0002",
        buddy=NodeId("node-2"),
        buddy_address="h:5",
    ),
    actions.DropSnapshots(**_HEAD, names=("snapshot-00000009.g0002",), reason="it is not sound"),
    actions.SealCheckpoint(
        **_HEAD, trainer=TRAINER, request="c-1", step=Step(9), name="step-9", shards=("{}", '{"a": 1}')
    ),
    actions.DeleteCheckpoint(**_HEAD, trainer=TRAINER, name="step-1"),
    actions.StopTraining(**_HEAD, request="s-1"),
]


WITHOUT_GENERATION = {"restart_trainer", "delete_checkpoint", "drop_snapshots"}


def test_every_action_for_a_node_is_tried_below() -> None:
    assert {type(order) for order in ORDERS} == set(get_args(wire.ToNode))


@pytest.mark.parametrize("action", ORDERS, ids=lambda action: type(action).__name__)
def test_an_order_leaves_whole(action: wire.ToNode) -> None:
    """Every field of the message that has a namesake in the action holds its value; the node is the stream's own."""
    message = pb.ControllerMessage.FromString(wire.order(action).SerializeToString())
    kind = message.WhichOneof("kind")
    assert kind is not None
    assert kind.replace("_", "") == type(action).__name__.lower()
    body = getattr(message, kind)
    names = {field.name for field in body.DESCRIPTOR.fields}
    carried = {field.name for field in fields(action)} - {"id", "node", "assignment", "donors"}
    if isinstance(action, actions.Assign):
        carried.remove("generation")
        assert body.generation.number == action.assignment.number
    assert carried - names <= ({"generation"} if kind in WITHOUT_GENERATION else set())
    for name in sorted(carried & names):
        said = getattr(body, name)
        assert (tuple(said) if name in {"shards", "names"} else said) == getattr(action, name)


def test_an_assignment_leaves_whole() -> None:
    order = wire.order(actions.Assign(**_HEAD, assignment=_ASSIGNMENT, reported_through=Step(6)))
    said = order.assign.generation
    assert said.kind == "planned"
    assert [(m.trainer, m.start, m.rank, m.store_address, m.peer_address) for m in said.members] == [
        ("node-1/0", 2, 0, "h:1", "h:2"),
        ("node-2/0", 1, 1, "h:3", "h:4"),
    ]
    assert [tuple(each.ranks) for each in said.placement] == [(0, 1), (1, 0)]
    assert [tuple(each.indices) for each in said.deal] == [(0, 2), (1,)]
    assert (said.restore_name, said.restore_step, said.reason) == (
        "step-00000120.g0004",
        120,
        "a seat is filled",
    )


def test_a_donor_leaves_whole() -> None:
    [donor] = wire.order(ORDERS[3]).acquire.donors
    assert (donor.trainer, donor.peer_address, list(donor.parts)) == (
        "node-2/0",
        "h:4",
        ["dense", "expert-00007"],
    )
