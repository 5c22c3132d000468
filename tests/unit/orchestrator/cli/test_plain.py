"""The job as lines: only what is new is told, once, in a form that grep and cut can use."""

from __future__ import annotations

from orchestrator.cli.plain import Narrator, fields
from protos import admin_pb2 as pb
from tests.unit.orchestrator.cli import views


def _told(narrator: Narrator, view: pb.JobView) -> list[str]:
    """Lines without their time of day."""
    return [each.split(" ", 1)[1] for each in narrator.tell(view)]


def test_the_same_view_is_told_once() -> None:
    narrator = Narrator()
    assert narrator.tell(views.healthy())
    assert narrator.tell(views.healthy()) == []


def test_a_start_is_told_in_full() -> None:
    told = _told(Narrator(), views.healthy())
    assert "job job=stdlib-moe state=running step=61 steps=200" in told
    assert "generation generation=1 step=61 members=4" in told
    assert "node node=node-2 state=active agent_pid=1002 trainer_pids=2002" in told
    assert "redundancy experts=16 redundant=16" in told
    assert (
        "step step=61 steps=200 loss=2.4182 tokens_per_second=6123 step_seconds=0.410 goodput=0.9730 generation=1"
        in told
    )


def test_a_failure_is_told_from_cause_to_effect() -> None:
    narrator = Narrator()
    narrator.tell(views.healthy())
    told = _told(narrator, views.failing())
    assert [each.split()[0] for each in told] == (
        ["job", "generation", "node", "incident", *["phase"] * 3, *["why"] * 3, "redundancy"]
    )
    assert (
        'node node=node-2 state=dead agent_pid=1002 trainer_pids=2002 reason="its stream broke and' in told[2]
    )
    assert "phase incident=incident-1 phase=regroup seconds=0.041" in told
    assert "redundancy experts=16 redundant=8 missing=0,1,5,7,9,10,12,13" in told
    assert sum(views.REASONS[1] in each for each in told) == 1


def test_later_phases_are_told_when_they_come() -> None:
    narrator = Narrator()
    narrator.tell(views.failing())
    told = _told(narrator, views.degraded())
    assert "phase incident=incident-1 phase=first_commit seconds=0.52" in told
    assert not any(each.startswith("why") for each in told)


def test_one_line_in_ten_steps_and_one_at_the_end() -> None:
    narrator = Narrator()
    told = []
    for step in range(1, 36):
        view = views.healthy()
        view.job.step = step
        told += [each for each in _told(narrator, view) if each.startswith("step ")]
    assert [each.split()[1] for each in told] == ["step=1", "step=10", "step=20", "step=30"]
    assert any(each.startswith("step step=200 ") for each in _told(narrator, views.finished()))


def test_a_rollback_is_told_from_where_it_goes_on() -> None:
    narrator = Narrator()
    for step in (60, 20):
        view = views.healthy()
        view.job.step = step
        told = _told(narrator, view)
        assert any(each.startswith(f"step step={step} ") for each in told)


def test_reasons_slide_through_their_window_without_being_told_twice() -> None:
    narrator = Narrator()
    told = []
    sentences = [f"reason {number // 2}" for number in range(12)]
    for end in range(1, 13):
        view = views.healthy()
        del view.recent_reasons[:]
        view.recent_reasons.extend(sentences[max(0, end - 4) : end])
        told += [each for each in _told(narrator, view) if each.startswith("why")]
    assert [each.split('"')[1] for each in told] == sentences


def test_checkpoints_are_told_when_they_change() -> None:
    narrator = Narrator()
    narrator.tell(views.healthy())
    told = _told(narrator, views.finished())
    expected = (
        "checkpoint request=checkpoint-1 state=sealed step=200 bytes=24300000 seconds=0.31 path=/runs/a/c"
    )
    assert expected in told


def test_values_with_spaces_are_quoted_and_empty_ones_left_out() -> None:
    assert fields("word", a=1, b="two words", c="", d=None, e="x/y:1") == 'word a=1 b="two words" e=x/y:1'
    assert fields("word", a='say "so"\nnow') == r'word a="say \"so\" now"'
