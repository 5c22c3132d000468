"""The repository on real databases: what is stored comes back, all of it or nothing, and only what is worth storing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import event, func, select

from orchestrator.controller.ports import StoreError
from orchestrator.core.actions import Assign, EndJob
from orchestrator.core.events import (
    CheckpointDue,
    Event,
    HeartbeatReceived,
    LeasesDue,
    NodeDisconnected,
    RedundancyScanDue,
    RetentionDue,
    ShardWritten,
    StepCommitted,
)
from orchestrator.core.ids import ActionId, CauseId, GenerationNumber, NodeId, Step, TrainerId
from orchestrator.core.measurements import StepRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import (
    Checkpoint,
    CheckpointState,
    ClusterState,
    GenerationKind,
    Incident,
    JobState,
    Reason,
)
from orchestrator.store import repository as limits
from orchestrator.store.engine import reading
from orchestrator.store.repository import Repository
from orchestrator.store.tables import checkpoint_shards, events, outbox
from tests.integration.databases import (
    Opened,
    checkpoint,
    disconnected,
    fence,
    generation,
    incident,
    job,
    node,
    outcome,
)


def _count(opened: Opened, table: object) -> int:
    assert table in (events, outbox)
    chosen = events if table is events else outbox
    with reading(opened.engine) as connection:
        return connection.execute(select(func.count()).select_from(chosen)).scalar_one()


def test_an_empty_database_is_an_empty_state(opened: Opened) -> None:
    assert opened.repository.load() == ClusterState()


def test_everything_that_was_committed_is_loaded(opened: Opened) -> None:
    changes = (
        job(),
        node("node-1"),
        node("node-2"),
        generation(2),
        generation(3, GenerationKind.PLANNED, began_at=None),
        incident(1),
        incident(2, restored_at=60.0),
        checkpoint(1),
        checkpoint(2, CheckpointState.WRITING),
    )
    opened.repository.commit(disconnected(), outcome(1, *changes))
    loaded = opened.reopened().load()
    assert loaded == ClusterState(
        job=job(),
        nodes={each.id: each for each in (node("node-1"), node("node-2"))},
        generation=generation(2),
        planned=generation(3, GenerationKind.PLANNED, began_at=None),
        incidents={each.id: each for each in (incident(1), incident(2, restored_at=60.0))},
        checkpoints={each.request: each for each in (checkpoint(1), checkpoint(2, CheckpointState.WRITING))},
    )


def test_an_entity_is_replaced_whole(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), outcome(1, job(), node(reason="first")))
    opened.repository.commit(disconnected(2), outcome(2, job(JobState.FAILED, "why"), node(reason="second")))
    loaded = opened.repository.load()
    assert loaded.job == job(JobState.FAILED, "why")
    assert list(loaded.nodes.values()) == [node(reason="second")]


def test_text_and_numbers_keep_their_value(opened: Opened) -> None:
    """Quotes, line ends, letters of all kinds, 64-bit numbers and times with microseconds."""
    strange = node(reason='it\'s "gone";\n-- Überraschung 你好 🎭 %s :x', changed_at=1753347000.123456)
    opened.repository.commit(disconnected(), outcome(1, strange))
    assert opened.repository.load().nodes == {strange.id: strange}


def test_a_zero_byte_in_a_message_does_not_stop_the_controller(opened: Opened) -> None:
    said = NodeDisconnected(
        at=1.0, cause_id=CauseId("c"), node=NodeId("node-1"), incarnation="i", reason="\0 broken"
    )
    opened.repository.commit(said, outcome(1, node(reason="\0 broken")))
    assert opened.repository.load().nodes[NodeId("node-1")].reason == "\ufffd broken"
    assert [each.kind for each in opened.queries.events()] == ["NodeDisconnected"]


@pytest.mark.parametrize(
    "numbers, in_force, planned",
    [
        ([(1, 5.0)], 1, None),
        ([(1, 5.0), (2, None)], 1, 2),
        ([(1, 5.0), (2, 6.0)], 2, None),
        ([(1, 5.0), (2, None), (3, 7.0)], 3, None),
        ([(2, None)], None, 2),
    ],
)
def test_the_generation_in_force_is_told_from_one_that_waits_or_was_overtaken(
    opened: Opened, numbers: list[tuple[int, float | None]], in_force: int | None, planned: int | None
) -> None:
    for number, began_at in numbers:
        kind = GenerationKind.PLANNED if number > 1 else GenerationKind.INITIAL
        opened.repository.commit(disconnected(number), outcome(number, generation(number, kind, began_at)))
    loaded = opened.repository.load()
    assert (loaded.generation.number if loaded.generation else None) == in_force
    assert (loaded.planned.number if loaded.planned else None) == planned


def _written(rank: int) -> ShardWritten:
    return ShardWritten(
        at=50.0 + rank, cause_id=CauseId(f"shard-{rank}"), trainer=TrainerId(f"node-{rank}/0"), incarnation="i",
        start=1, request="request-1", generation=GenerationNumber(1), step=Step(10), name="step-10", rank=rank,
        shard=f'{{"rank": {rank}}}', bytes=7, stall_seconds=None,
    )  # fmt: skip


def _with_shards(ranks: int, of: int) -> Checkpoint:
    entries = tuple(f'{{"rank": {rank}}}' if rank < ranks else "" for rank in range(of))
    return replace(checkpoint(1, CheckpointState.WRITING), shards=entries, bytes=7 * ranks, sealed_at=None)


def test_a_checkpoint_that_is_being_written_comes_back_with_every_shard(opened: Opened) -> None:
    """Whenever the controller dies; and each shard is stored once, not again with all that follow."""
    statements: list[tuple[str, object]] = []

    def remember(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    asked = replace(checkpoint(1, CheckpointState.REQUESTED), shards=("",) * 4, sealed_at=None)
    opened.repository.commit(disconnected(), outcome(1, asked))
    event.listen(opened.engine, "before_cursor_execute", remember)
    for rank in range(3):
        written = _with_shards(rank + 1, of=4)
        statements.clear()
        opened.repository.commit(_written(rank), outcome(rank + 2, written))
        assert Repository(opened.engine, epoch=1).load().checkpoints == {"request-1": written}
        stored = [parameters for statement, parameters in statements if "checkpoint" in statement]
        assert sum(str(parameters).count('"rank"') for parameters in stored) == 1
    event.remove(opened.engine, "before_cursor_execute", remember)
    opened.repository.commit(_written(3), outcome(5, _with_shards(4, of=4)))
    assert opened.repository.load().checkpoints == {"request-1": _with_shards(4, of=4)}
    with reading(opened.engine) as connection:
        assert connection.execute(select(func.count()).select_from(checkpoint_shards)).scalar_one() == 0


def test_a_checkpoint_that_ends_early_keeps_the_shards_that_were_written(opened: Opened) -> None:
    asked = replace(checkpoint(1, CheckpointState.REQUESTED), shards=("",) * 4, sealed_at=None)
    opened.repository.commit(disconnected(), outcome(1, asked))
    opened.repository.commit(_written(0), outcome(2, _with_shards(1, of=4)))
    failed = replace(_with_shards(1, of=4), state=CheckpointState.FAILED, reason="a member died")
    opened.repository.commit(disconnected(), outcome(3, failed))
    assert opened.repository.load().checkpoints == {"request-1": failed}
    assert opened.queries.checkpoints() == (failed,)


def test_deleted_checkpoints_are_kept_for_people_only(opened: Opened) -> None:
    opened.repository.commit(
        disconnected(), outcome(1, checkpoint(1, CheckpointState.DELETED), checkpoint(2))
    )
    assert list(opened.repository.load().checkpoints) == ["request-2"]
    assert [each.request for each in opened.queries.checkpoints()] == ["request-2", "request-1"]


# ---- what is not stored ----


def _routine() -> list[Event]:
    at, cause = 1.0, CauseId("c")
    record = StepRecord(
        step=Step(1),
        generation=GenerationNumber(1),
        loss=1.0,
        tokens=1,
        time=1.0,
        step_seconds=1.0,
        sample_ids=(1,),
        expert_load=(1,),
    )
    beat = HeartbeatReceived(at=at, cause_id=cause, node=NodeId("node-1"), incarnation="i", trainers=())
    trainer = TrainerId("node-1/0")
    step = StepCommitted(at=at, cause_id=cause, trainer=trainer, incarnation="i", start=1, record=record)
    timers = [
        each(at=at, cause_id=cause) for each in (LeasesDue, CheckpointDue, RedundancyScanDue, RetentionDue)
    ]
    return [beat, step, *timers]


def test_routine_without_an_outcome_never_touches_the_database(opened: Opened) -> None:
    """Not a connection is asked for, let alone a statement sent."""
    taken: list[object] = []
    event.listen(opened.engine, "checkout", lambda *arguments: taken.append(arguments))
    for routine in _routine():
        opened.repository.commit(routine, Outcome())
    opened.repository.flush()
    assert taken == []
    opened.repository.commit(disconnected(), outcome(1))
    assert len(taken) == 1


def test_routine_with_an_outcome_is_stored(opened: Opened) -> None:
    for number, routine in enumerate(_routine(), start=1):
        opened.repository.commit(routine, outcome(number))
    assert [each.kind for each in opened.queries.events()] == [type(each).__name__ for each in _routine()]


def test_facts_without_an_outcome_are_written_with_the_next_transaction_and_in_order(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), Outcome())
    opened.repository.commit(disconnected(2), Outcome())
    assert _count(opened, events) == 0
    opened.repository.commit(disconnected(3), outcome(3))
    opened.repository.commit(disconnected(4), Outcome())
    opened.repository.flush()
    opened.repository.flush()
    assert [each.cause_id for each in opened.queries.events()] == [
        f"cause-{number}" for number in (1, 2, 3, 4)
    ]


def test_facts_that_wait_are_bounded(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_LIMIT", 3)
    for number in range(1, 5):
        opened.repository.commit(disconnected(number), Outcome())
    assert _count(opened, events) == 3


# ---- the outbox ----


def test_actions_are_unfinished_until_they_are_ticked_off(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), outcome(1))
    two = Outcome(actions=(fence(2), fence(3)))
    opened.repository.commit(disconnected(2), two)
    assert opened.repository.unfinished() == (fence(1), fence(2), fence(3))
    opened.repository.mark_done((fence(2).id,))
    assert opened.repository.unfinished() == (fence(1), fence(3))


def test_a_generation_is_stored_once_however_many_nodes_are_told(opened: Opened) -> None:
    """A thousand nodes: the transaction holds one generation and a thousand short rows."""
    new = generation(7)
    orders = tuple(
        Assign(
            id=ActionId(f"a-1-{number}"),
            generation=new.number,
            node=NodeId(f"node-{number}"),
            assignment=new,
            reported_through=Step(3),
        )
        for number in range(1, 4)
    )
    opened.repository.commit(disconnected(1), Outcome(changes=(new,), actions=orders))
    assert opened.repository.unfinished() == orders
    with reading(opened.engine) as connection:
        bodies = connection.execute(select(outbox.c.body)).scalars().all()
    assert all(len(str(body)) < 200 for body in bodies)


def test_a_crash_between_commit_and_tick_brings_the_actions_back(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), outcome(1))
    opened.repository.mark_done((fence(1).id,))
    assert opened.reopened().unfinished() == (fence(1),), (
        "the tick was not written yet: it is performed again"
    )
    second = opened.reopened()
    second.mark_done((fence(1).id,))
    second.flush()
    assert opened.reopened().unfinished() == ()


def test_ticks_ride_with_the_next_commit(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), outcome(1))
    opened.repository.mark_done((fence(1).id,))
    opened.repository.commit(disconnected(2), outcome(2))
    assert opened.reopened().unfinished() == (fence(2),)
    assert [(each.action_id, each.done_at) for each in opened.queries.actions()] == [
        ("a-1-1", 102.0),
        ("a-1-2", None),
    ]


def test_an_action_id_that_repeats_is_refused_and_nothing_of_its_event_is_stored(opened: Opened) -> None:
    opened.repository.commit(disconnected(1), outcome(1, node(reason="first")))
    with pytest.raises(StoreError):
        opened.repository.commit(disconnected(2), outcome(1, node(reason="second")))
    assert opened.repository.load().nodes[NodeId("node-1")].reason == "first"
    assert len(opened.queries.events()) == 1


def test_the_log_and_the_outbox_are_bounded(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENT_LOG_LIMIT", 3)
    monkeypatch.setattr(limits, "DONE_ACTIONS_LIMIT", 3)
    for number in range(1, 11):
        linked = Outcome(changes=(incident(1),), actions=(fence(number),))
        opened.repository.commit(disconnected(number), linked)
    opened.repository.mark_done(tuple(fence(number).id for number in range(2, 11)))
    opened.repository.flush()
    opened.repository.trim()
    assert [each.cause_id for each in opened.queries.events()] == ["cause-8", "cause-9", "cause-10"]
    kept = [each.action_id for each in opened.queries.actions()]
    assert kept == ["a-1-1", "a-1-8", "a-1-9", "a-1-10"], "what is unfinished stays"


# ---- what people ask ----


def test_events_are_read_after_a_sequence_and_by_kind(opened: Opened) -> None:
    end = EndJob(id=ActionId("a-1-9"), generation=GenerationNumber(1), succeeded=True, reason="done")
    for number in range(1, 6):
        opened.repository.commit(disconnected(number), outcome(number))
    opened.repository.commit(LeasesDue(at=9.0, cause_id=CauseId("c")), Outcome(actions=(end,)))
    first = opened.queries.events(limit=2)
    assert [each.sequence for each in first] == [1, 2]
    assert first[0].detail == {"node": "node-1", "incarnation": "i", "reason": "broken"}
    assert first[0].reasons == ("reason 1",)
    assert [each.sequence for each in opened.queries.events(after=2)] == [3, 4, 5, 6]
    assert [each.sequence for each in opened.queries.events(kind="LeasesDue")] == [6]
    assert [each.sequence for each in opened.queries.newest_events(limit=2)] == [5, 6]
    assert opened.queries.last_sequence() == 6


def test_the_story_of_an_incident_is_every_event_that_belongs_to_it(opened: Opened) -> None:
    mine, other = incident(1), incident(2)
    opened.repository.commit(disconnected(1), Outcome(changes=(mine,)))
    opened.repository.commit(disconnected(2), Outcome(changes=(other,)))
    explained = Outcome(reasons=(Reason(text="no spare", incident=mine.id),))
    opened.repository.commit(disconnected(3), explained)
    same_cause = NodeDisconnected(
        at=200.0, cause_id=CauseId("cause-1"), node=NodeId("node-9"), incarnation="i", reason="broken"
    )
    opened.repository.commit(same_cause, Outcome())
    opened.repository.commit(disconnected(5), outcome(5))
    told = [(each.cause_id, each.at) for each in opened.queries.events_of(mine.id)]
    assert told == [("cause-1", 101.0), ("cause-3", 103.0), ("cause-1", 200.0)]


def test_entities_are_read_newest_first(opened: Opened) -> None:
    changes: tuple[Incident, ...] = (incident(1), incident(2, restored_at=60.0))
    opened.repository.commit(
        disconnected(1), outcome(1, job(), node(), generation(1), generation(2), *changes)
    )
    assert opened.queries.jobs() == (job(),)
    assert opened.queries.nodes() == (node(),)
    assert opened.queries.generations() == (generation(2), generation(1))
    assert opened.queries.generation(GenerationNumber(1)) == generation(1)
    assert opened.queries.generation(GenerationNumber(7)) is None
    assert opened.queries.incidents() == (changes[1], changes[0])
    assert opened.queries.incident(changes[0].id) == changes[0]
