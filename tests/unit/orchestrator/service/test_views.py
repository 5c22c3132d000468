"""What people see of a state: everything that is known, in natural order, and nothing that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.held import SaveCost
from orchestrator.core.ids import TrainerId
from orchestrator.core.spec import SnapshotSpec
from orchestrator.core.state import ClusterState, JobState
from orchestrator.service import snapshot, views
from orchestrator.service.ledger_view import LedgerView
from tests.cluster_states import NOW, ended, record, trainer_status, working

LEDGER = LedgerView(recent=(record(11, loss=5.5), record(12)), productive_seconds=250.0)
NOTHING = LedgerView()


def test_a_snapshot_does_not_change_with_the_state() -> None:
    """It is read on another thread while the core goes on."""
    state = working()
    taken = snapshot.take(state)
    state.views.clear()
    state.nodes.clear()
    state.joined.add(TrainerId("node-2/0"))
    assert len(taken.nodes) == 3
    assert len(taken.seen) == 2
    assert taken.joined == {"node-1/0"}


def test_nodes_come_in_natural_order_with_their_trainers() -> None:
    first, second, spare = views.nodes(snapshot.take(working()), NOW)
    assert [each.id for each in (first, second, spare)] == ["node-1", "node-2", "node-10"]
    assert (first.state, first.connected, first.step) == ("active", True, 13)
    assert first.heartbeat_age_seconds == pytest.approx(0.5)
    [trainer] = second.trainers
    assert (trainer.id, trainer.rank, trainer.phase, trainer.pid) == ("node-2/0", 1, "forward", 200)


def test_a_member_shows_how_fast_it_is_once_that_is_known() -> None:
    """A spare has nobody to be compared with."""
    state = working()
    state.memory.scores = {TrainerId("node-2/0"): 0.48}
    first, second, _ = views.nodes(snapshot.take(state), NOW)
    assert second.trainers[0].score == 0.48
    assert not first.trainers[0].HasField("score")


def test_a_node_that_was_never_heard_has_no_age() -> None:
    *_, spare = views.nodes(snapshot.take(working()), NOW)
    assert not spare.connected
    assert spare.heartbeat_age_seconds == 0.0
    assert not spare.trainers


def test_a_trainer_without_a_seat_has_no_rank() -> None:
    state = working()
    state.views[next(iter(state.nodes))].trainers = {
        TrainerId("node-1/1"): trainer_status(TrainerId("node-1/1"))
    }
    first, *_ = views.nodes(snapshot.take(state), NOW)
    assert not first.trainers[0].HasField("rank")


def test_experts_show_holders_load_and_redundancy() -> None:
    shown = views.experts(snapshot.take(working()), LEDGER, NOW)
    assert [(each.primary, list(each.backups)) for each in shown] == [
        ("node-1/0", ["node-2/0"]),
        ("node-2/0", ["node-1/0"]),
        ("node-1/0", []),
        ("node-2/0", ["node-1/0"]),
    ]
    assert [each.redundant for each in shown] == [True, True, False, True]
    assert [each.load_share for each in shown] == pytest.approx([0.5, 1.0, 1.5, 1.0])


def test_experts_without_a_step_have_no_load() -> None:
    assert {each.load_share for each in views.experts(snapshot.take(working()), NOTHING, NOW)} == {0.0}


def test_phases_are_what_lies_between_two_moments() -> None:
    closed, open_one = views.incidents(snapshot.take(working()), NOW)
    phases = closed.phases
    assert (phases.detect_seconds, phases.decide_seconds, phases.regroup_seconds) == (0.25, 0.25, 1.0)
    assert (phases.first_commit_seconds, phases.redundancy_restored_seconds) == (2.0, 10.0)
    assert (closed.state, open_one.state) == ("closed", "degraded")
    assert open_one.phases.HasField("detect_seconds")
    for unknown in (
        "decide_seconds",
        "regroup_seconds",
        "first_commit_seconds",
        "redundancy_restored_seconds",
    ):
        assert not open_one.phases.HasField(unknown)


def test_a_generation_is_shown_member_by_member() -> None:
    shown = views.generation(snapshot.take(working()))
    assert (shown.number, shown.kind, shown.planned) == (3, "immediate", 0)
    assert [(m.rank, m.trainer, list(m.experts), list(m.microbatches), m.joined) for m in shown.members] == [
        (0, "node-1/0", [0, 1, 2, 3], [0, 2], True),
        (1, "node-2/0", [0, 1, 3], [1], False),
    ]


def test_checkpoints_show_how_long_they_took() -> None:
    [shown] = views.checkpoints(snapshot.take(working()))
    assert (shown.state, shown.step, shown.bytes, shown.seconds) == ("sealed", 10, 4096, 1.5)


def test_a_job_says_how_often_state_is_saved_and_why() -> None:
    state = working()
    state.memory.snapshot_costs = (SaveCost(stall_seconds=0.5, work_seconds=2.0),)
    state.memory.snapshot_at = NOW - 5.0
    [shown] = views.jobs(snapshot.take(state), "/w", NOW)
    assert "as checkpoint.interval_seconds says" in shown.checkpoints.why
    assert shown.snapshots.why.startswith("a snapshot every ")
    assert shown.snapshots.next_at == pytest.approx(NOW - 5.0 + shown.snapshots.interval_seconds)
    assert state.job is not None
    off = replace(state.job.spec, snapshot=SnapshotSpec(enabled=False))
    state.job = replace(state.job, spec=off)
    [shown] = views.jobs(snapshot.take(state), "/w", NOW)
    assert not shown.HasField("snapshots")


def test_goodput_is_time_in_committed_steps_over_time_since_the_start() -> None:
    assert views.goodput(working().job, LEDGER, NOW) == pytest.approx(0.25)


def test_goodput_of_a_job_that_has_ended_does_not_fall_any_more() -> None:
    job = ended(JobState.FINISHED).job
    assert (
        views.goodput(job, LEDGER, NOW) == views.goodput(job, LEDGER, NOW + 1e6) == pytest.approx(250 / 900)
    )


def test_goodput_before_the_start_is_nothing() -> None:
    assert views.goodput(None, NOTHING, NOW) == 0.0


def test_the_live_view_has_speed_and_the_last_words() -> None:
    words = [f"reason {number}" for number in range(20)]
    shown = views.job_screen(snapshot.take(working()), LEDGER, words, "/w", NOW)
    assert (shown.job.step, shown.job.steps, shown.job.generation, shown.job.workdir) == (12, 50, 3, "/w")
    assert (shown.loss, shown.step_seconds, shown.tokens_per_second) == (5.0, 0.5, 160.0)
    assert list(shown.recent_losses) == [5.5, 5.0]
    assert list(shown.recent_reasons) == words[-views.RECENT_REASONS :]
    assert (len(shown.nodes), len(shown.experts), len(shown.incidents), len(shown.checkpoints)) == (
        3,
        4,
        2,
        1,
    )


def test_an_empty_controller_can_be_shown() -> None:
    empty = snapshot.take(ClusterState())
    shown = views.job_screen(empty, NOTHING, (), "/w", NOW)
    assert not shown.HasField("job")
    assert views.jobs(empty, "/w", NOW) == []
    assert views.generation(empty).number == 0


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    taken = snapshot.take(working())
    assert views.unknown_node(taken, "node-1") is None
    assert views.unknown_node(taken, "node-9") == "no node 'node-9': known nodes are node-1, node-2, node-10"
    assert (
        views.unknown_incident(snapshot.take(ClusterState()), "x")
        == "no incident 'x': there are no incidents yet"
    )


def test_an_expert_without_all_replicas_says_for_how_long() -> None:
    state = working()
    name, incident = next(iter(state.incidents.items()))
    state.incidents[name] = replace(incident, exposed_at=NOW - 4.0, covered_at=None)
    shown = views.experts(snapshot.take(state), LEDGER, NOW)
    for each in shown:
        assert each.HasField("window_seconds") is not each.redundant
    assert {each.window_seconds for each in shown if not each.redundant} == {4.0}
