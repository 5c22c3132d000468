"""What is in TensorBoard's files: the committed steps of the ledger, each once, whatever happened in between."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from orchestrator.loggers.logger import Unavailable
from orchestrator.loggers.tensorboard import TURN_LINES, TensorBoardSink
from tests.unit.orchestrator.loggers.stories import Workdir, incident, read_back, steps_of


def _told(workdir: Workdir) -> TensorBoardSink:
    """A controller's whole life: everything is told, and it has ended."""
    sink = TensorBoardSink(workdir.path / "tensorboard", workdir.told())
    while sink.turn():
        pass
    sink.close()
    return sink


def test_a_ledger_longer_than_one_turn_is_told_whole(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.commit(range(1, TURN_LINES + 51))
    _told(workdir)
    assert [step for step, _ in steps_of(tmp_path / "tensorboard/train")] == list(range(1, TURN_LINES + 51))


def test_a_step_says_all_that_its_line_knows(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.commit(range(1, 11))
    _told(workdir)
    found = read_back(tmp_path / "tensorboard/train")
    last = {tag: found.Scalars(tag)[-1].value for tag in found.Tags()["scalars"]}
    assert last == pytest.approx(
        {
            "loss": 0.5,
            "step_seconds": 0.5,
            "tokens_per_second": 768.0,
            "goodput": 10 * 0.5 / 9.5,
            "generation": 1.0,
            "learning_rate": 0.01,
            "gradient_norm": 1.5,
            "expert_load/layer_00": 1.0,
            "expert_load/layer_01": 2.0,
            "expert_utilisation/layer_00": 1.0,
            "expert_utilisation/layer_01": 0.5,
            "expert_utilisation/mean": 0.75,
        }
    )
    assert [event.step for event in found.Histograms("expert_tokens/layer_01")] == [10]
    assert found.Histograms("expert_tokens/layer_01")[0].histogram_value.bucket == [2, 0]


def test_a_restart_and_a_resumption_change_nothing_and_miss_nothing(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.commit(range(1, 5))
    _told(workdir)
    before = {file: file.read_bytes() for file in tmp_path.rglob("events*")}
    _told(workdir)
    assert {file: file.read_bytes() for file in tmp_path.rglob("events*")} == before
    workdir.commit(range(5, 9), generation=2)
    _told(workdir)
    assert [step for step, _ in steps_of(tmp_path / "tensorboard/train")] == list(range(1, 9))


@pytest.mark.parametrize("looks_meanwhile", [True, False])
def test_steps_that_were_rolled_back_are_nowhere(looks_meanwhile: bool, tmp_path: Path) -> None:
    """Whether a logger saw it happen, or there was none at that time."""
    workdir = Workdir(tmp_path)
    workdir.commit(range(1, 9))
    workdir.measure(4)
    workdir.measure(8)
    sink = TensorBoardSink(tmp_path / "tensorboard", workdir.told())
    sink.turn()
    if not looks_meanwhile:
        sink.close()
    workdir.roll_back(5, generation=2)
    workdir.commit([6, 7], generation=2)
    if looks_meanwhile:
        sink.turn()
        sink.close()
    else:
        _told(workdir)
    expected = [(step, 1100.0 + step) for step in range(1, 6)] + [(6, 1206.0), (7, 1207.0)]
    assert steps_of(tmp_path / "tensorboard/train") == expected
    assert [step for step, _ in steps_of(tmp_path / "tensorboard/validation")] == [4]


def test_validations_have_a_folder_of_their_own_once_there_is_one(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.commit([1])
    _told(workdir)
    assert not (tmp_path / "tensorboard/validation").exists()
    workdir.measure(1)
    _told(workdir)
    found = read_back(tmp_path / "tensorboard/validation")
    values = {tag: found.Scalars(tag)[0].value for tag in ("loss", "perplexity", "bits_per_byte")}
    assert values == pytest.approx({"loss": 2.0, "perplexity": math.exp(2.0), "bits_per_byte": 3.0})


def test_an_incident_is_told_once_when_it_is_closed_at_the_step_that_ended_it(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, incidents=[incident(1, restored_at=None)])
    workdir.commit([1, 2, 3])
    workdir.commit([4, 5], generation=2)
    _told(workdir)
    assert "incidents/text_summary" not in read_back(tmp_path / "tensorboard/job").Tags()["tensors"]
    workdir.incidents = [incident(2), incident(1)]
    _told(workdir)
    _told(workdir)
    found = read_back(tmp_path / "tensorboard/job")
    texts = [
        (each.step, each.tensor_proto.string_val[0].decode())
        for each in found.Tensors("incidents/text_summary")
    ]
    assert [(step, text[:12]) for step, text in texts] == [(4, "**inc-0001**"), (4, "**inc-0002**")]
    assert "fail over to backups" in texts[0][1] and "- every expert has a living replica" in texts[0][1]
    assert found.Scalars("incident/outage_seconds")[0].value == pytest.approx(0.5)
    assert found.Scalars("incident/vulnerability_seconds")[0].value == pytest.approx(1.5)
    assert b"name: curves" in found.Tensors("job/text_summary")[0].tensor_proto.string_val[0]


def test_two_controllers_do_not_write_the_same_files(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.commit([1, 2])
    first, second = (TensorBoardSink(tmp_path / "tensorboard", workdir.told()) for _ in range(2))
    first.turn()
    with pytest.raises(Unavailable, match="another process"):
        second.turn()
    workdir.commit([3])
    first.close()
    second.begin_again()
    second.turn()
    second.close()
    assert [step for step, _ in steps_of(tmp_path / "tensorboard/train")] == [1, 2, 3]
