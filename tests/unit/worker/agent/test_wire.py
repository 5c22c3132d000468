"""Everything that an agent can say is understood by the controller's converter, and the other way round.

The two programs share only the proto; here they are held against each other, field by field.
"""

from __future__ import annotations

import dataclasses
import typing
from enum import Enum

import pytest

from orchestrator.core import events
from orchestrator.core.ids import CauseId, NodeId
from orchestrator.service import checked
from orchestrator.service import wire as controller_wire
from protos import worker_pb2 as pb
from tests.unit.worker.agent.stories import FIRST, NODE, Story, committed, ended, failed, joined
from worker.agent import controller_messages as said
from worker.agent import messages, wire
from worker.agent.device import PHASES

ENVELOPE = checked.Envelope(node=NodeId(NODE), incarnation="i-1", at=1.0, cause_id=CauseId("cause-1"))
STATUS = said.TrainerStatus(
    trainer=FIRST,
    start=2,
    pid=77,
    ready=True,
    store_address="h:1",
    peer_address="h:2",
    device_name="cpu",
    generation=3,
    step=4,
    phase="vote",
    operation=5,
    waiting=True,
    silent_seconds=0.5,
    work_seconds=0.25,
)
REPORTS: tuple[said.PassedOn, ...] = (
    failed(3),
    joined(3),
    committed(9, generation=3),
    messages.Validated(
        step=8, generation=2, loss=2.5, bits_per_byte=3.6, tokens=176, windows=11, time=9.0, seconds=0.5
    ),
    messages.PartsAcquired(acquisition="a-1", version=9),
    messages.AcquisitionFailed(acquisition="a-1", reason="no route"),
    messages.CheckpointBegun(request="c-1", generation=3, step=9, name="n"),
    messages.ShardWritten(
        request="c-1", generation=3, step=9, name="n", rank=1, shard="{}", bytes=10, stall_seconds=0.5
    ),
    messages.CheckpointFailed(request="c-1", reason="disk full"),
    messages.CheckpointSealed(request="c-1", step=9, name="n", path="/n", bytes=10),
    messages.RestoreFailed(generation=3, name="n", shard="s", reason="hash", damaged=True),
    messages.StateRefused(generation=3, step=9, reason="loss is NaN", not_finite=True),
    messages.ReplicasDiffered(generation=3, step=9, findings=()),
    messages.StepRedone(generation=3, step=9, rank=2, seconds=0.5),
    ended(finished=True),
    messages.TrainerRefused(reason="no such file"),
    messages.PairChecked(
        check="chk-1",
        outcome="done",
        right=True,
        digest="ab12",
        compute_seconds=0.2,
        exchange_seconds=0.1,
        reason="",
    ),
)


def test_the_examples_are_complete() -> None:
    """A new report must be added above."""
    assert {type(report) for report in REPORTS} == set(typing.get_args(said.PassedOn))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_reaches_the_core_as_it_was_made(report: said.PassedOn) -> None:
    """Names and values, whatever the way between."""
    message = wire.outgoing(said.TrainerSaid(trainer=FIRST, start=2, report=report))
    event = controller_wire.event(pb.AgentMessage.FromString(message.SerializeToString()), ENVELOPE)
    assert type(event).__name__ == type(report).__name__
    assert (getattr(event, "trainer", ""), getattr(event, "start", 0)) == (FIRST, 2)
    body = event.record if isinstance(event, events.StepCommitted | events.Validated) else event
    for field in dataclasses.fields(report):
        value = getattr(body, field.name)
        assert (value.value if isinstance(value, Enum) else value) == getattr(report, field.name)


def test_a_status_reaches_the_core_as_it_was_made() -> None:
    """In heartbeats, registrations and when a trainer becomes ready."""
    ready = said.TrainerReady(trainer=FIRST, start=2, status=STATUS)
    event = controller_wire.event(wire.outgoing(ready), ENVELOPE)
    assert isinstance(event, events.TrainerBecameReady)
    shown = dataclasses.asdict(event.status) | {"phase": event.status.phase.value}
    assert shown == dataclasses.asdict(STATUS)
    heartbeat = controller_wire.event(wire.outgoing(said.Heartbeat(trainers=(STATUS,))), ENVELOPE)
    assert isinstance(heartbeat, events.HeartbeatReceived)
    assert heartbeat.trainers == (event.status,)


HELD = said.HeldShard(
    step=40, generation=3, rank=1, shards=4, bytes=4096, entry='{"file": "f"}', stall_seconds=0.02
)


def test_a_registration_reaches_the_core_as_it_was_made() -> None:
    """Labels are a map on the way."""
    registration = said.Registration(
        node=NODE,
        incarnation="i-1",
        labels=(("rack", "r1"), ("zone", "a")),
        agent_pid=77,
        generation=3,
        trainers=(STATUS,),
        memory_address="h:9",
        held=(HELD,),
    )
    event = controller_wire.registration(wire.outgoing(registration), 1.0, CauseId("cause-1"))
    assert (event.node, event.labels, event.agent_pid, event.generation) == (
        NODE,
        registration.labels,
        77,
        3,
    )
    assert event.memory_address == "h:9"
    assert [dataclasses.asdict(shard) for shard in event.held] == [dataclasses.asdict(HELD)]


def test_what_an_agent_holds_reaches_the_core_as_it_was_made() -> None:
    """All of it, each time."""
    event = controller_wire.event(wire.outgoing(said.SnapshotsHeld(held=(HELD,))), ENVELOPE)
    assert isinstance(event, events.SnapshotsHeld)
    assert [dataclasses.asdict(shard) for shard in event.held] == [dataclasses.asdict(HELD)]


@pytest.mark.parametrize("exit_code, signal", [(0, None), (7, None), (None, 9)])
def test_how_a_process_ended_is_told_apart(exit_code: int | None, signal: int | None) -> None:
    """Exit code 0 is not the same as none."""
    exited = said.TrainerExited(
        trainer=FIRST, start=2, exit_code=exit_code, signal=signal, will_restart=False
    )
    event = controller_wire.event(wire.outgoing(exited), ENVELOPE)
    assert isinstance(event, events.TrainerExited)
    assert (event.exit_code, event.signal, event.will_restart) == (exit_code, signal, False)


def test_silence_is_told_in_seconds() -> None:
    """A number of the agent's clock."""
    silent = said.TrainerFellSilent(trainer=FIRST, start=2, silent_seconds=3.5)
    event = controller_wire.event(wire.outgoing(silent), ENVELOPE)
    assert isinstance(event, events.TrainerFellSilent) and event.silent_seconds == 3.5


def test_the_words_for_phases_are_the_controllers() -> None:
    """An unknown one would end the stream of the whole node."""
    assert {phase.value for phase in events.TrainerPhase} == PHASES


def test_a_status_of_a_fresh_machine_is_understood() -> None:
    """Before a trainer has said anything."""
    story = Story()
    story.is_welcomed()
    assert story.machine.crew is not None
    heartbeat = said.Heartbeat(trainers=story.machine.crew.statuses(story.at))
    assert isinstance(controller_wire.event(wire.outgoing(heartbeat), ENVELOPE), events.HeartbeatReceived)


MEMBER = pb.Member(trainer=FIRST, start=2, rank=0, store_address="h:1", peer_address="h:2", stage=3)
GENERATION = pb.Generation(
    number=3,
    kind="restore",
    members=[MEMBER],
    placement=[pb.Ranks(ranks=[0, 1]), pb.Ranks(ranks=[1, 0])],
    deal=[pb.Microbatches(indices=[0, 2]), pb.Microbatches(indices=[])],
    restore_name="step-00000004.g0002",
    restore_step=4,
    reason="expert 3 lost its last replica",
    restore_shards=[pb.ShardSource(rank=1, entry="{}", addresses=["h:9", "h:8"])],
)


def test_an_assignment_is_read_whole() -> None:
    """Nested lists become nested tuples, empty ones stay empty."""
    message = wire.incoming(pb.ControllerMessage(assign=pb.Assign(generation=GENERATION, reported_through=9)))
    assert message == said.Assign(
        generation=said.Generation(
            number=3,
            kind="restore",
            members=(
                messages.Member(
                    trainer=FIRST, start=2, rank=0, store_address="h:1", peer_address="h:2", stage=3
                ),
            ),
            placement=((0, 1), (1, 0)),
            deal=((0, 2), ()),
            restore_name="step-00000004.g0002",
            restore_step=4,
            reason="expert 3 lost its last replica",
            restore_shards=(messages.ShardSource(rank=1, entry="{}", addresses=("h:9", "h:8")),),
        ),
        reported_through=9,
    )


DONOR = pb.Donor(trainer="node-2/0", peer_address="h:3", parts=["dense", "expert-00001"])


@pytest.mark.parametrize(
    "message, expected",
    [
        (
            pb.ControllerMessage(
                welcome=pb.Welcome(config="{}", reported_through=3, generation=2, copy_token="s3cret")
            ),
            said.Welcome(config="{}", reported_through=3, generation=2, copy_token="s3cret"),
        ),
        (
            pb.ControllerMessage(fence=pb.Fence(generation=4, reason="cut off")),
            said.Fence(generation=4, reason="cut off"),
        ),
        (
            pb.ControllerMessage(
                acquire=pb.Acquire(trainer=FIRST, acquisition="a-1", generation=4, donors=[DONOR])
            ),
            said.Acquire(
                trainer=FIRST,
                acquisition="a-1",
                generation=4,
                donors=(
                    messages.Donor(trainer="node-2/0", peer_address="h:3", parts=("dense", "expert-00001")),
                ),
            ),
        ),
        (
            pb.ControllerMessage(
                check_pair=pb.CheckPair(
                    trainer=FIRST, check="c", generation=3, rank=1, store_address="h:1", limit_seconds=2.5
                )
            ),
            said.CheckPair(
                trainer=FIRST, check="c", generation=3, rank=1, store_address="h:1", limit_seconds=2.5
            ),
        ),
        (
            pb.ControllerMessage(restart_trainer=pb.RestartTrainer(trainer=FIRST, reason="hangs", start=2)),
            said.RestartTrainer(trainer=FIRST, reason="hangs", start=2),
        ),
        (
            pb.ControllerMessage(take_checkpoint=pb.TakeCheckpoint(request="c-1", generation=4)),
            said.TakeCheckpoint(request="c-1", generation=4),
        ),
        (
            pb.ControllerMessage(
                take_snapshot=pb.TakeSnapshot(
                    request="s-1", generation=4, keep="k", buddy="node-2", buddy_address="h:5"
                )
            ),
            said.TakeSnapshot(request="s-1", generation=4, keep="k", buddy="node-2", buddy_address="h:5"),
        ),
        (
            pb.ControllerMessage(set_timeouts=pb.SetTimeouts(generation=4, hang_seconds=1.5)),
            said.SetTimeouts(generation=4, hang_seconds=1.5),
        ),
        (
            pb.ControllerMessage(drop_snapshots=pb.DropSnapshots(names=["a", "b"], reason="not sound")),
            said.DropSnapshots(names=("a", "b"), reason="not sound"),
        ),
        (
            pb.ControllerMessage(
                seal_checkpoint=pb.SealCheckpoint(
                    trainer=FIRST, request="c-1", generation=4, step=9, name="n", shards=["{}", "[]"]
                )
            ),
            said.SealCheckpoint(
                trainer=FIRST, request="c-1", generation=4, step=9, name="n", shards=("{}", "[]")
            ),
        ),
        (
            pb.ControllerMessage(delete_checkpoint=pb.DeleteCheckpoint(trainer=FIRST, name="n")),
            said.DeleteCheckpoint(trainer=FIRST, name="n"),
        ),
        (
            pb.ControllerMessage(stop_training=pb.StopTraining(request="s-1", generation=4)),
            said.StopTraining(request="s-1", generation=4),
        ),
        (
            pb.ControllerMessage(shutdown=pb.Shutdown(reason="done")),
            said.Shutdown(reason="done"),
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, pb.ControllerMessage) else "",
)
def test_every_order_is_read_whole(message: pb.ControllerMessage, expected: said.ControllerMessage) -> None:
    """All fields, over the bytes of the wire."""
    assert wire.incoming(pb.ControllerMessage.FromString(message.SerializeToString())) == expected


def test_every_kind_of_the_proto_can_be_read() -> None:
    """A new order needs a reader here; answers to heartbeats are about the stream, and end in the client."""
    orders = [each for each in pb.ControllerMessage.DESCRIPTOR.fields if each.name != "heartbeat_heard"]
    for field in orders:
        message = pb.ControllerMessage()
        getattr(message, field.name).SetInParent()
        wire.incoming(message)


def test_an_order_of_a_newer_controller_is_an_error_with_a_remedy() -> None:
    """One of the two must be updated."""
    with pytest.raises(wire.WireError, match="does not know"):
        wire.incoming(pb.ControllerMessage())
