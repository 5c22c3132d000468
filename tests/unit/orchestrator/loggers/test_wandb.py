"""Weights & Biases: the real process over a real pipe. Their library is played by one that writes down what it is told.

With their library installed, `test_the_real_library_offline` reads back the file that it leaves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.spec import LoggingSpec, WandbMode, WandbSpec
from orchestrator.core.spec_rules import problems
from orchestrator.loggers import wandb_logger
from orchestrator.loggers.logger import Unavailable
from orchestrator.loggers.wandb_logger import TURN_LINES, WandbSink
from orchestrator.settings import SettingsError
from tests.unit.orchestrator.loggers.stories import SPEC, Workdir, incident

SPEC_WITH = replace(
    SPEC,
    logging=LoggingSpec(wandb=WandbSpec(project="moe", tags=("a",), mode=WandbMode.OFFLINE)),
)
PLAYED = """
import json, os
class Settings:
    def __init__(self, **given): self.given = given
class Histogram:
    def __init__(self, np_histogram): self.counts = np_histogram[0]
class Summary(dict):
    def __init__(self, say): self.say = say
    def __setitem__(self, name, words): self.say({"summary": name, "words": words})
class Run:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.summary = Summary(self.say)
    def say(self, what): self.file.write(json.dumps(what, default=lambda each: each.counts) + "\\n")
    def define_metric(self, name, step_metric=None): pass
    def log(self, row): self.say({"row": row})
    def finish(self): self.say({"finished": True})
def init(**given):
    if os.environ.get("PLAYED_FAILS"): raise RuntimeError("no api key")
    run = Run(os.path.join(given["dir"], given["id"] + ".played"))
    settings = given.pop("settings").given
    run.say({"begun": {**given, "settings": settings}})
    return run
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    library = tmp_path / "library" / "wandb"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(textwrap.dedent(PLAYED))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(library.parent), str(Path.cwd()))))
    return Workdir(tmp_path / "job", spec=SPEC_WITH)


def _life(workdir: Workdir) -> None:
    sink = WandbSink(workdir.path, workdir.told())
    while sink.turn():
        pass
    sink.close()


def _heard(workdir: Workdir, number: int = 1) -> list[dict[str, Any]]:
    position = json.loads((workdir.path / "wandb" / "position.json").read_text())
    path = workdir.path / f"{position['run']}-{number}.played"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _steps(heard: list[dict[str, Any]], curve: str = "train/loss") -> list[int]:
    return [each["row"]["step"] for each in heard if curve in each.get("row", {})]


def test_all_that_is_committed_is_told_once_over_restarts(workdir: Workdir) -> None:
    workdir.path.mkdir()
    workdir.commit(range(1, TURN_LINES + 11))
    workdir.measure(4)
    _life(workdir)
    workdir.commit(range(TURN_LINES + 11, TURN_LINES + 15), generation=2)
    workdir.measure(8, generation=2)
    workdir.incidents = [incident(1)]
    _life(workdir)
    _life(workdir)
    heard = _heard(workdir)
    assert _steps(heard) == list(range(1, TURN_LINES + 15))
    assert _steps(heard, "validation/perplexity") == [4, 8]
    assert _steps(heard, "incident/outage_seconds") == [TURN_LINES + 11]
    assert [each["words"][:12] for each in heard if "summary" in each] == ["**inc-0001**"]
    begun = [each["begun"] for each in heard if "begun" in each]
    assert len(begun) == 3 and len({each["id"] for each in begun}) == 1
    assert (begun[0]["project"], begun[0]["group"], begun[0]["mode"]) == ("moe", "curves", "offline")
    assert begun[0]["config"]["name"] == "curves"
    assert heard[-1] == {"finished": True}


@pytest.mark.parametrize("looks_meanwhile", [True, False])
def test_after_a_roll_back_a_new_run_is_told_the_history_that_holds(
    looks_meanwhile: bool, workdir: Workdir
) -> None:
    workdir.path.mkdir()
    workdir.commit(range(1, 9))
    sink = WandbSink(workdir.path, workdir.told())
    sink.turn()
    if not looks_meanwhile:
        sink.close()
    workdir.roll_back(5, generation=2)
    workdir.commit([6, 7], generation=2)
    workdir.now += 3600
    if looks_meanwhile:
        sink.turn()
        sink.close()
    else:
        _life(workdir)
    rows = {each["row"]["step"]: each["row"] for each in _heard(workdir, number=2) if "row" in each}
    assert list(rows) == list(range(1, 8))
    assert [rows[step]["train/generation"] for step in (5, 6, 7)] == [1, 2, 2]


def test_a_process_that_does_not_stay_is_started_ever_more_rarely(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It cannot log in: what it says is heard, and it is tried again after 10, then 20 seconds, until it can."""
    monkeypatch.setenv("PLAYED_FAILS", "yes")
    workdir.path.mkdir()
    workdir.commit(range(1, 4))
    sink = WandbSink(workdir.path, workdir.told())

    def starts(after_seconds: float) -> bool:
        workdir.now += after_seconds
        try:
            sink.turn()
        except Unavailable as error:
            if "is started again after a pause" in str(error):
                return False
        finally:
            sink.begin_again()  # waits for the end of the process
        return True

    assert starts(0)
    assert not starts(9)
    assert starts(2)
    assert not starts(11)
    assert starts(10)
    assert "W&B: RuntimeError: no api key" in capfd.readouterr().err
    monkeypatch.delenv("PLAYED_FAILS")
    workdir.now += 41
    sink.turn()
    sink.close()
    assert _steps(_heard(workdir)) == [1, 2, 3]


def test_a_machine_without_the_library_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.loggers.wandb_logger.importlib.util.find_spec", lambda name: None)
    wandb_logger.check(SPEC, "job.yaml")
    with pytest.raises(
        SettingsError, match=r"logging\.wandb\.project: moe: .*pip install 'understudy\[wandb\]'"
    ):
        wandb_logger.check(SPEC_WITH, "job.yaml")


def test_settings_of_a_service_that_is_not_used_are_a_mistake() -> None:
    spec = replace(SPEC, logging=LoggingSpec(wandb=WandbSpec(entity="team", tags=("a",))))
    assert [each.field for each in problems(spec)] == ["logging.wandb.entity", "logging.wandb.tags"]


def _records(path: Path) -> Iterator[bytes]:
    """What is in a file of their library: seven bytes, then LevelDB's log (blocks of 32 KiB, pieces of records)."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            yield whole
            whole = b""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_the_real_library_offline(tmp_path: Path) -> None:
    """Its own files: each step once, in one run, over a restart."""
    from wandb.proto import wandb_internal_pb2

    workdir = Workdir(tmp_path, spec=SPEC_WITH)
    workdir.commit(range(1, 4))
    _life(workdir)
    workdir.commit(range(4, 11), generation=2)
    workdir.incidents = [incident(1)]
    _life(workdir)
    steps, runs, words = [], set(), []
    for path in sorted(tmp_path.rglob("*.wandb")):
        for each in map(wandb_internal_pb2.Record.FromString, _records(path)):
            if each.HasField("run"):
                runs.add(each.run.run_id)
            row = {item.key or item.nested_key[0]: item.value_json for item in each.history.item}
            if "train/loss" in row:
                steps.append(int(row["step"]))
            words += [item.value_json for item in each.summary.update if item.key == "incidents/inc-0001"]
    assert steps == list(range(1, 11))
    assert len(runs) == 1
    assert len(words) == 1 and "fail over to backups" in words[0]
