"""The live picture at several widths and moments: what must be seen is seen, and no line is longer than the screen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.cells import cell_len

from orchestrator.cli.live import Aside, render
from orchestrator.cli.picture import svg
from protos import admin_pb2 as pb
from tests.unit.orchestrator.cli import views
from tests.unit.orchestrator.cli.drawing import lines

WIDTHS = (60, 80, 120, 200)
MOMENTS = (views.healthy, views.failing, views.degraded, views.finished)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_no_line_is_longer_than_the_screen(moment: Callable[[], pb.JobView], width: int) -> None:
    aside = Aside(notes=("a note " * 40,), hint="a hint " * 40, away_seconds=3.0)
    shown = lines(render(moment(), width, None, aside), width)
    assert max(map(cell_len, shown)) <= width
    # A line that Rich had to wrap would begin with what belongs to the line before.
    assert shown == lines(render(moment(), width, None, aside), width + 40)


@pytest.mark.parametrize("height", [8, 14, 24, 40])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_low_screen_is_not_overrun(moment: Callable[[], pb.JobView], height: int) -> None:
    assert len(lines(render(moment(), 80, height, Aside(hint="hint")), 80)) <= height


def test_the_header_tells_how_the_job_stands() -> None:
    text = "\n".join(lines(render(views.healthy(), 80), 80))
    for words in (
        "stdlib-moe  running",
        "generation 1",
        "step 61/200",
        "57 s left",
        "loss 2.4182",
        "6.12k tokens/s",
    ):
        assert words in text
    assert "goodput 97.3%" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_every_node_is_there_with_state_step_and_what_it_holds(width: int) -> None:
    shown = lines(render(views.healthy(), width), width)
    row = next(each for each in shown if "node-3" in each)
    for words in ("active", "61", "forward", "4+4"):
        assert words in row
    assert any("node-5 spare" in each for each in shown)


def test_a_dead_node_says_why() -> None:
    shown = lines(render(views.failing(), 80), 80)
    assert "■ node-2 dead      its stream broke and node-1/0 lost its peer" in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_a_missing_backup_is_a_cross_under_its_expert(width: int) -> None:
    shown = lines(render(views.failing(), width), width)
    title = next(each for each in shown if each.endswith("8 of 16 have all replicas ──"))
    backups = next(each for each in shown if "backup " in each)
    assert title and backups.count("✗") == 8
    assert "✗" not in "\n".join(lines(render(views.healthy(), width), width))


def test_replicas_stand_below_their_expert() -> None:
    shown = lines(render(views.healthy(), 80), 80)
    experts, primaries, backups = (
        next(each for each in shown if each.startswith(legend)) for legend in ("expert", "primary", "backup")
    )
    column = experts.index(" 13") + 2
    assert (primaries[column], backups[column]) == ("2", "3")


def test_nodes_and_experts_stand_side_by_side_where_there_is_room() -> None:
    assert any("node-1" in each and "primary" in each for each in lines(render(views.healthy(), 120), 120))
    assert not any("node-1" in each and "primary" in each for each in lines(render(views.healthy(), 80), 80))


def test_an_open_incident_is_told_with_its_phases_and_reasons() -> None:
    text = "\n".join(lines(render(views.failing(), 120), 120))
    assert "● incident-1 node-lost node-2 open" in text
    assert "detect 84 ms › decide 3 ms › regroup 41 ms › first commit … › redundant after …" in text
    assert "answer: fail over experts" in text
    for reason in views.REASONS:
        assert reason in text
    assert text.count(views.REASONS[0]) == 1, "a reason that an incident tells is not told again below"


def test_a_closed_incident_takes_one_line() -> None:
    shown = lines(render(views.finished(), 120), 120)
    expected = (
        "✓ incident-1 node-lost node-2  training after 0.65 s, redundant after 3.24 s, 0 steps lost, 1 redone"
    )
    assert expected in shown


def test_many_incidents_leave_room_for_the_rest() -> None:
    view = views.finished()
    for number in range(2, 40):
        later = views.closed_incident()
        later.id, later.first_sign_at = f"incident-{number}", views.incident("open").first_sign_at + number
        view.incidents.append(later)
    shown = lines(render(view, 100, 40), 100)
    assert len(shown) <= 40
    assert any("incident-39" in each for each in shown)
    assert any("earlier incidents: see `understudy incidents`" in each for each in shown)


def test_more_replicas_and_devices_get_rows_and_labels_of_their_own() -> None:
    view = views.healthy()
    for expert in view.experts:
        expert.backups.append("node-4/1")
        expert.primary = "node-1/0"
    text = "\n".join(lines(render(view, 200), 200))
    assert "backup 1" in text and "backup 2" in text
    assert "4.1" in text and "1.0" in text


def test_hundreds_of_experts_are_one_cell_each() -> None:
    view = views.healthy()
    for number in range(16, 512):
        view.experts.append(
            pb.Expert(id=number, primary="node-1/0", backups=["node-2/0"], redundant=number != 300)
        )
    shown = lines(render(view, 80), 80)
    assert any("lack a replica: 300" in each for each in shown)
    assert sum(each.count("●") for each in shown) == 511


def test_an_absent_controller_is_no_drama() -> None:
    text = "\n".join(lines(render(views.healthy(), 80, None, Aside(away_seconds=4.2)), 80))
    assert "controller away for 4.20 s: training goes on without it" in text


def test_before_the_first_step_there_is_a_picture_too() -> None:
    view = pb.JobView(job=views.job(state="pending", step=0, generation=0))
    view.nodes.append(pb.Node(id="node-1", state="requested"))
    text = "\n".join(lines(render(view, 60), 60))
    assert "no step committed yet" in text
    assert "experts are placed when enough nodes are ready" in text
    assert lines(render(pb.JobView(), 60), 60), "an empty view is drawn as well"


def test_a_loss_that_is_no_number_is_shown_as_such() -> None:
    view = views.healthy()
    view.loss = float("nan")
    view.recent_losses.append(float("inf"))
    assert any("loss nan" in each for each in lines(render(view, 80), 80))


def test_the_picture_can_be_saved() -> None:
    saved = svg(views.failing())
    assert saved.startswith("<svg") and "incident-1" in saved
