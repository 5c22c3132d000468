"""Injected failures strike once, at their moment, and only their victim. Signals are really sent, by a child."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.model.config import ModelConfig
from worker.training.fault_effects import EXIT_CODE, Victim, flip_bit
from worker.training.faults import ORDERS_FOLDER, Clock, Faults
from worker.training.state import TrainingState

TINY = ModelConfig.from_mapping(
    {
        "width": 8,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "experts": 4,
        "top_k": 2,
        "expert_width": 8,
        "sequence_length": 8,
        "vocabulary": 256,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "aux_loss": 0.01,
        "router_temperature": 1.0,
        "router_noise": 0.0,
    },
    "float32",
)

CHILD = """
import sys
from pathlib import Path
from tests.unit.worker.training.test_faults import fault, faults_of
faults = faults_of(fault(kind=sys.argv[3], step=3, phase="reduce", target="trainer"), Path(sys.argv[2]), sys.argv[1])
for step in (1, 2, 3, 4):
    for phase in ("forward", "reduce"):
        faults.strike(step, phase)
        print(step, phase, flush=True)
"""


def fault(**changes: object) -> dict[str, Any]:
    """A fault as the job has it, of node-1/0 unless told otherwise."""
    usual = {"kind": "sigkill", "node": "node-1", "device": 0, "step": 1, "phase": "", "target": ""}
    own = {"part": "", "tensor": "weights", "bit": -1, "factor": 3.0, "duration_steps": 20}
    return {**usual, **own, **changes}


def victim_in(folder: Path) -> Victim:
    """A trainer that holds experts 1 and 3."""
    state = TrainingState(TINY, 5, torch.device("cpu"))
    state.initialise((1, 3))
    return Victim(state=state, checkpoints=folder / "checkpoints")


def faults_of(one: dict[str, Any], folder: Path, trainer: str = "node-1/0") -> Faults:
    return Faults([one], trainer, folder, victim_in(folder))


def run(trainer: str, markers: Path, kind: str = "sigkill") -> tuple[int, list[str]]:
    """Exit code and what the child got to."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, trainer, str(markers), kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.split("\n")[:-1]


def test_the_victim_dies_at_its_moment_and_is_spared_the_next_time(tmp_path: Path) -> None:
    code, reached = run("node-1/0", tmp_path)
    assert code == -signal.SIGKILL
    assert reached[-1] == "3 forward"
    code, reached = run("node-1/0", tmp_path)
    assert code == 0
    assert reached[-1] == "4 reduce"


def test_another_trainer_is_not_concerned(tmp_path: Path) -> None:
    code, _ = run("node-1/1", tmp_path)
    assert code == 0
    assert not list(tmp_path.iterdir())


def test_an_exit_has_a_status_and_no_signal(tmp_path: Path) -> None:
    code, reached = run("node-1/0", tmp_path, "exit")
    assert code == EXIT_CODE
    assert reached[-1] == "3 forward"


def test_a_kind_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        faults_of(fault(kind="sigsegv"), tmp_path)


def test_one_element_of_one_gradient_is_no_number(tmp_path: Path) -> None:
    victim = victim_in(tmp_path)
    faults = Faults([fault(kind="nan", step=4, part="expert-00003")], "node-1/0", tmp_path, victim)
    victim.state.zero_gradients()
    for step, phase in itertools.product((3, 4, 5), ("forward", "backward", "vote")):
        faults.strike(step, phase)
    assert not victim.state.experts_gradient_TN.isnan().any()
    faults.strike(5, "reduce")
    assert victim.state.experts_gradient_TN.isnan().nonzero().tolist() == [
        [1, victim.state.expert_length // 2]
    ]
    victim.state.zero_gradients()
    faults.strike(5, "reduce")
    assert not victim.state.experts_gradient_TN.isnan().any()


@pytest.mark.parametrize("tensor, row", [("weights", 0), ("m", 1), ("v", 2)])
def test_one_bit_of_one_tensor_is_flipped(tmp_path: Path, tensor: str, row: int) -> None:
    """Without a part it is the first expert that the victim holds; nothing else changes."""
    victim = victim_in(tmp_path)
    before = [value.clone() for part in (0, 2, 4) for value in victim.state.part(part).in_order()]
    Faults([fault(kind="bitflip", tensor=tensor)], "node-1/0", tmp_path, victim).strike(1, "forward")
    after = [value for part in (0, 2, 4) for value in victim.state.part(part).in_order()]
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if not old.equal(new)]
    assert changed == [3 + row]
    patterns = before[3 + row].view(torch.int32) ^ after[3 + row].view(torch.int32)
    assert [hex(value) for value in patterns[patterns != 0].tolist()] == ["0x400000"]


@pytest.mark.parametrize("dtype, bits", [(torch.float32, 32), (torch.float64, 64)])
def test_any_bit_can_be_flipped_and_flipped_back(dtype: torch.dtype, bits: int) -> None:
    """The sign too."""
    tensor = torch.arange(5, dtype=dtype)
    for bit in range(bits):
        flip_bit(tensor, bit, index=3)
        assert tensor[3].item() != 3.0 or tensor[3].isnan()
        flip_bit(tensor, bit, index=3)
    assert tensor.equal(torch.arange(5, dtype=dtype))


def test_a_part_that_the_victim_does_not_hold_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = faults_of(fault(kind="bitflip", part="expert-00002"), tmp_path)
    faults.strike(1, "forward")
    faults.strike(2, "forward")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "does not hold expert-00002; it holds dense, expert-00001, expert-00003" in said[0]


def test_a_full_disk_is_the_kernels_own(tmp_path: Path) -> None:
    """One file cannot be written, the ones after it can."""
    faults = faults_of(fault(kind="disk-full", step=7), tmp_path / "markers")
    file = tmp_path / "partial" / ".rank-00000.safetensors.tmp"
    faults.shard_begins(6, file)
    assert not file.parent.exists()
    faults.shard_begins(8, file)
    with file.open("wb", buffering=0) as opened, pytest.raises(OSError, match="No space left") as caught:
        opened.write(b"x")
    assert caught.value.errno == errno.ENOSPC
    file.unlink()
    faults.shard_begins(9, file)
    assert not file.exists()


def test_half_a_shard_is_gone_once_there_is_one(tmp_path: Path) -> None:
    """Of the newest sealed checkpoint; until then the fault waits."""
    faults = faults_of(fault(kind="torn-shard"), tmp_path)
    root = tmp_path / "checkpoints"
    faults.strike(1, "boundary")
    for name in ("step-00000002.g0001", "step-00000004.g0001", "step-00000006.g0001.partial"):
        (root / name).mkdir(parents=True)
        for file in ("manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"):
            (root / name / file).write_bytes(bytes(100))
    faults.strike(5, "boundary")
    short = [
        path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.stat().st_size < 100
    ]
    assert short == [Path("step-00000004.g0001/rank-00000.safetensors")]


class _Clock(Clock):
    """Each look at it shows one more second of work."""

    def __init__(self) -> None:
        self.paused: list[float] = []
        self._worked = 0.0

    def worked(self) -> float:
        self._worked += 1.0
        return self._worked

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)


def test_a_slow_trainer_computes_longer_for_its_steps(tmp_path: Path) -> None:
    """Three times as long means to pause for twice what was computed."""
    clock = _Clock()
    slow = fault(kind="slow", step=2, duration_steps=2)
    faults = Faults([slow], "node-1/0", tmp_path, victim_in(tmp_path), clock)
    for step in (1, 2, 3, 4):
        faults.strike(step, "forward")
    assert clock.paused == [2.0, 2.0]


def test_an_order_to_a_running_job_strikes_the_next_time(tmp_path: Path) -> None:
    """It is found without a restart, by its victim only, and strikes once."""
    orders = tmp_path / ORDERS_FOLDER
    orders.mkdir()
    victim = victim_in(tmp_path)
    faults = Faults([], "node-1/0", tmp_path, victim)
    other = Faults([], "node-2/0", tmp_path, victim)
    victim.state.zero_gradients()
    faults.strike(1, "reduce")
    assert not victim.state.experts_gradient_TN.isnan().any()
    (orders / "now.json").write_text(json.dumps(fault(kind="nan")))
    other.strike(2, "reduce")
    assert not victim.state.experts_gradient_TN.isnan().any()
    faults.strike(2, "reduce")
    assert victim.state.experts_gradient_TN.isnan().any()
    victim.state.zero_gradients()
    Faults([], "node-1/0", tmp_path, victim).strike(3, "reduce")
    assert not victim.state.experts_gradient_TN.isnan().any()


def test_orders_are_looked_for_only_where_their_folder_was_there_first(tmp_path: Path) -> None:
    """A job that nobody means to break does not look."""
    faults = Faults([], "node-1/0", tmp_path, victim_in(tmp_path))
    (tmp_path / ORDERS_FOLDER).mkdir()
    (tmp_path / ORDERS_FOLDER / "now.json").write_text(json.dumps(fault(kind="sigkill")))
    faults.strike(1, "forward")
