"""The game: what the core decides on a coarse cluster, and what the cluster makes of it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from orchestrator.core.invariants import check
from simulation.planning.failures import Failure, FailureKind, draw
from simulation.planning.picture import draw_svg
from simulation.planning.play import Game
from tests.unit.simulation.planning.small import plan, play, report

HOUR = 3600.0


def crash(
    hours: float, *nodes: int, kind: FailureKind = FailureKind.NODE_CRASH, back: float = 2.0
) -> Failure:
    """Nodes that fail at a given hour, counted from 0, and are back some hours later."""
    at = hours * HOUR
    returns = (at + back * HOUR,) * len(nodes) if kind.takes_node else ()
    return Failure(at=at, kind=kind, nodes=nodes, device=1, back_at=returns)


def test_the_invariants_of_the_core_hold_after_every_event(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "days=2",
        "failures.count=40",
        "failures.kinds.rack_crash=0.4",
        "failures.kinds.process_crash=0.5",
        "failures.kinds.process_hang=0.5",
        "cluster.spare_nodes=1",
    )
    game = Game(found.scenario, found.costs, draw(found.scenario, tmp_path, 5))
    handle = game.machine.handle

    def handle_and_check(event: object) -> object:
        outcome = handle(event)  # type: ignore[arg-type]  # whatever the game tells
        check(game.state)
        return outcome

    game.machine.handle = handle_and_check  # type: ignore[method-assign,assignment]  # to look over its shoulder
    played = game.play()
    assert len(played.incidents) > 30
    assert not played.ended


def test_a_dead_node_costs_a_regroup_and_no_step(tmp_path: Path) -> None:
    played = play(tmp_path, failures=(crash(10, 0),))
    [incident] = played.incidents
    assert (incident.kind.value, incident.action) == ("node-lost", "fail over to backups")
    assert played.steps_lost == 0
    assert played.steps_redone == 1
    assert incident.closed
    assert played.generations == 3, "the first, the one without the node, the one with the spare"


def test_both_replicas_at_once_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    """Replicas lie in groups of four nodes: expert 0 is on the first node and the fifth."""
    without = ("snapshot.enabled=false", "checkpoint.interval_seconds=600")
    played = play(tmp_path, *without, failures=(crash(10.1, 0, 4),))
    assert played.restores == 1 and played.snapshots == 0
    lost = 6 * 60  # the checkpoint at the tenth hour is on disk when the nodes fail six minutes later
    assert played.steps_lost == pytest.approx(lost / 6, abs=5)
    assert {each.steps_lost for each in played.incidents} == {played.steps_lost}


def test_both_replicas_at_once_cost_the_steps_since_the_last_snapshot(tmp_path: Path) -> None:
    """A checkpoint every hour would cost six minutes; agents hold a snapshot that is half a minute old at most."""
    often = ("snapshot.interval=fixed", "snapshot.interval_seconds=60", "checkpoint.interval_seconds=3600")
    played = play(tmp_path, *often, failures=(crash(10.1, 0, 4),))
    assert played.restores == 1
    assert 0 < played.steps_lost <= (60 + 32) / 6 + 2, "an interval, and the time until the buddies hold it"
    assert played.memory_gigabytes > 0


def test_a_snapshot_dies_with_both_who_hold_it(tmp_path: Path) -> None:
    """Everybody: only storage outlives that."""
    often = ("snapshot.interval=fixed", "snapshot.interval_seconds=60", "checkpoint.interval_seconds=3600")
    played = play(tmp_path, *often, failures=(crash(10.5, *range(10), back=0.01),))
    assert played.restores == 1
    assert played.steps_lost > 200


def test_a_third_replica_outlives_two(tmp_path: Path) -> None:
    played = play(tmp_path, "cluster.replicas=3", failures=(crash(10.1, 0, 4),))
    assert played.steps_lost == 0


def test_everybody_gone_waits_for_nodes_and_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    played = play(tmp_path, failures=(crash(10, *range(10), back=0.01),))
    assert not played.ended
    assert played.restores == 1
    assert played.steps > 40_000


def test_a_silent_node_costs_its_lease(tmp_path: Path) -> None:
    loud = play(tmp_path, failures=(crash(10, 1),))
    silent = play(tmp_path, failures=(crash(10, 1, kind=FailureKind.NODE_SILENT),))
    waited = [(each.decided_at or 0.0) - each.first_sign_at for each in (*loud.incidents, *silent.incidents)]
    assert waited[0] == pytest.approx(0.03, abs=0.01)
    assert waited[1] == pytest.approx(3.1, abs=0.2)


def test_a_process_that_dies_is_seated_again_on_its_node(tmp_path: Path) -> None:
    played = play(tmp_path, "cluster.spare_nodes=0", failures=(crash(10, 1, kind=FailureKind.PROCESS_CRASH),))
    [incident] = played.incidents
    assert incident.kind.value == "trainer-lost"
    assert incident.closed
    assert played.generations == 4, "its node starts it for longer than the others leave its replicas to it"


def test_checkpoints_in_a_quiet_stretch_are_counted_though_not_played(tmp_path: Path) -> None:
    played = play(tmp_path, "failures.count=0", "checkpoint.interval_seconds=600")
    assert played.checkpoints == pytest.approx(4 * 24 * 6, abs=1)
    assert played.events < 500


def test_the_derived_interval_is_longer_where_replicas_make_restores_rare(tmp_path: Path) -> None:
    overrides = ("checkpoint.interval=auto", "checkpoint.interval_seconds=7200", "failures.count=60")
    alone, doubled = (play(tmp_path, f"cluster.replicas={replicas}", *overrides) for replicas in (1, 2))
    assert alone.restores > 10 > doubled.restores
    assert alone.checkpoints > 1.5 * doubled.checkpoints


def test_the_picture_is_whole_and_marks_every_failure(tmp_path: Path) -> None:
    found = report(tmp_path)
    picture = ET.fromstring(draw_svg(found))
    marks = [each for each in picture.iter() if each.get("class") == "mark"]
    assert len(marks) == sum(found["failures"].values()) == 20
    assert "prefers-color-scheme: dark" in draw_svg(found)


def test_runs_are_compared(tmp_path: Path) -> None:
    found = report(tmp_path, runs=3)
    assert found["runs"]["seeds"] == [1, 2, 3]
    spread = found["runs"]["goodput"]
    assert spread["lowest"] <= spread["median"] <= spread["highest"]
    assert found["goodput"] == report(tmp_path)["goodput"]
