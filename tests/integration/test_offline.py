"""A checkpoint where nothing runs: shown, verified, exported, sampled, measured; against transformers and by hand.

Shapes: B sequences; S positions; V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.worker.checkpointing.states import LIMITS, save_shard
from tests.unit.worker.model.models import model_mapping
from worker.checkpointing.manifest import Manifest, PartEntry, Piece
from worker.checkpointing.names import DENSE, CheckpointId, expert_part
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import CheckpointWriter, SaveRequest, ShardSaved
from worker.model.config import ModelConfig
from worker.model.parts import dense_layout, expert_layout
from worker.model.router import ForwardContext
from worker.offline import commands
from worker.offline.mixtral import export
from worker.offline.opened import find, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
TEXT = b"The quick brown fox jumps over the lazy dog, and back again.\n" * 3
SEALED = CheckpointId(step=12, generation=3)


def job(**model: object) -> Mapping[str, object]:
    return {
        "name": "tiny",
        "seed": 7,
        "precision": "float32",
        "model": model_mapping(**model),
        "batch": {"microbatches": 4, "microbatch_size": 2},
    }


def write(root: Path, config: Mapping[str, Any], *, seed: int = 5, ranks: int = 2) -> Path:
    """A sealed checkpoint in `root` as some ranks write it, with weights that a trained model might have."""
    model = ModelConfig.from_mapping(config["model"], config["precision"])
    generator = torch.Generator().manual_seed(seed)
    lengths = {DENSE: dense_layout(model).length}
    lengths |= {expert_part(expert): expert_layout(model).length for expert in range(model.experts)}
    states = {}
    for part, length in lengths.items():
        weights = torch.randn(length, generator=generator) * 0.3
        states[part] = PartTensors(weights=weights, m=torch.zeros(length), v=torch.ones(length))
    storage = FileStorage(root)
    writer = CheckpointWriter(storage=storage, buffer=SnapshotBuffer(), limits=LIMITS)
    shards = []
    for rank in range(ranks):
        pieces = tuple(
            Piece(part=part, start=0, stop=length)
            for number, (part, length) in enumerate(lengths.items())
            if number % ranks == rank
        )
        saved = save_shard(writer, SaveRequest(checkpoint=SEALED, rank=rank, pieces=pieces), states)
        assert isinstance(saved, ShardSaved)
        shards.append(saved.shard)
    assert writer.close(60.0)
    manifest = Manifest(
        job="tiny",
        step=SEALED.step,
        generation=SEALED.generation,
        created=1_700_000_000.0,
        config=config,
        data_fingerprint="data",
        layout="layout",
        precision="float32",
        parts={part: PartEntry(version=SEALED.step, length=length) for part, length in lengths.items()},
        shards=tuple(shards),
    )
    seal(storage, manifest)
    return root / SEALED.folder


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    write(tmp_path / "run" / "checkpoints", job())
    return tmp_path / "run"


def answer(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints as JSON."""
    assert commands.main([*arguments, "-o", "json"]) == 0
    return json.loads(capfd.readouterr().out)


def refusal(capfd: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line of a command that fails."""
    assert commands.main(arguments) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_show_tells_what_is_inside(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = answer(capfd, "checkpoint", "show", str(workdir))
    assert (shown["job"], shown["step"], shown["generation"], shown["experts"]) == ("tiny", 12, 3, 5)
    folder = workdir / "checkpoints" / SEALED.folder
    assert {shard["file"]: shard["bytes"] for shard in shown["shards"]} == {
        file.name: file.stat().st_size for file in folder.glob("*.safetensors")
    }
    assert commands.main(["checkpoint", "show", str(folder)]) == 0
    assert "step        12 (the next sample has id 96)" in capfd.readouterr().out


def test_the_newest_checkpoint_of_a_workdir_is_meant(workdir: Path) -> None:
    newer = workdir / "checkpoints" / "step-00000400.g0001"
    (workdir / "checkpoints" / SEALED.folder).rename(newer)
    write(workdir / "checkpoints", job())
    assert find(str(workdir)).checkpoint.step == 400
    assert find(str(newer.parent)).folder == newer


def test_a_flipped_byte_is_found_and_named(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert answer(capfd, "checkpoint", "verify", str(workdir))["sound"] is True
    shard = workdir / "checkpoints" / SEALED.folder / "rank-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    for command in (
        ["checkpoint", "verify", str(workdir)],
        ["evaluate", "--data", __file__, "--checkpoint", str(workdir)],
    ):
        assert "rank-00001.safetensors" in refusal(capfd, 1, *command)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router_temperature": 1.7},
        {"heads": 3, "kv_heads": 3, "top_k": 3, "layers": 1, "rope_theta": 1e6},
    ],
)
def test_the_export_is_a_mixtral_with_equal_logits(
    changes: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "checkpoints", job(**changes))
    answer(capfd, "checkpoint", "export", str(folder), str(tmp_path / "out"))
    tokens_BS = torch.randint(0, 256, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BSV = theirs(tmp_path / "out")(tokens_BS).logits
    torch.testing.assert_close(logits(folder, tokens_BS), expected_BSV, rtol=2e-4, atol=2e-4)
    written = [file.stat().st_mode for file in (tmp_path / "out").iterdir()]
    assert len(set(written)) == 1, "who may read one file may read them all"


def logits(folder: Path, tokens_BS: Tensor) -> Tensor:
    loaded = load(find(str(folder)), CPU)
    with torch.no_grad():
        found: Tensor = loaded.model(tokens_BS, ForwardContext(step=0, microbatch=0)).logits_BSV
    return found


def test_an_export_in_several_files_and_another_dtype_loads_too(workdir: Path, tmp_path: Path) -> None:
    loaded = load(find(str(workdir)), CPU)
    out = tmp_path / "out"
    out.mkdir()
    written: list[int] = []
    ours = dict(loaded.model.named_parameters())
    files = export(
        loaded.config, ours, out, dtype=torch.bfloat16, after_tensor=written.append, shard_bytes=9000
    )
    assert len([file for file in files if file.suffix == ".safetensors"]) > 3
    assert sum(written) == 2 * sum(tensor.numel() for tensor in ours.values())
    model = theirs(out)
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(model.lm_head.weight.float(), ours["head_VD"], rtol=1e-2, atol=1e-2)


def test_the_exported_tokenizer_is_bytes(
    workdir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(capfd, "checkpoint", "export", str(workdir), str(tmp_path / "out"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def größe(x):\n\treturn  x  # 100 % 漢\n"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_export_overwrites_nothing(
    workdir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    assert "not an empty folder" in refusal(
        capfd, 2, "checkpoint", "export", str(workdir), str(tmp_path / "out")
    )
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_evaluate_is_the_mean_over_every_byte_but_the_first(
    workdir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By hand, through transformers: windows of 8 that do not overlap, the last one short."""
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    found = answer(
        capfd, "evaluate", "--checkpoint", str(workdir), "--data", str(text), "--windows-at-once", "3"
    )
    answer(capfd, "checkpoint", "export", str(workdir), str(tmp_path / "out"))
    model, nats = theirs(tmp_path / "out"), 0.0
    for start in range(0, len(TEXT) - 1, 8):
        window = torch.tensor([list(TEXT[start : start + 9])])
        with torch.no_grad():
            logits_BSV = model(window[:, :-1]).logits
        nats += float(functional.cross_entropy(logits_BSV[0], window[0, 1:], reduction="sum"))
    assert (found["tokens"], found["context"]) == (len(TEXT) - 1, 8)
    assert found["loss"] == pytest.approx(nats / (len(TEXT) - 1), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / 0.6931471805599453)


def test_generate_repeats_itself_for_the_same_seed(
    workdir: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def sampled(*more: str) -> bytes:
        assert (
            commands.main(
                ["generate", "--checkpoint", str(workdir), "--prompt", "ab", "--tokens", "30", *more]
            )
            == 0
        )
        return capfdbinary.readouterr().out

    first = sampled()
    assert first.startswith(b"ab") and len(first) == 2 + 30 + 1
    assert sampled() == first
    assert sampled("--seed", "1") != first
    assert sampled("--temperature", "0") == sampled("--top-k", "1")


def test_greedy_bytes_are_the_likeliest_after_what_is_seen(
    workdir: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Also once more has been written than the model sees at a time."""
    arguments = [
        "generate",
        "--checkpoint",
        str(workdir),
        "--prompt",
        "ab",
        "--tokens",
        "14",
        "--temperature",
        "0",
    ]
    assert commands.main(arguments) == 0
    text = capfdbinary.readouterr().out[:-1]
    for end in range(2, len(text)):
        seen = torch.tensor([list(text[max(0, end - 8) : end])])
        assert int(logits(workdir, seen)[0, -1].argmax()) == text[end]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["checkpoint", "show", "/nowhere"], "there is no such folder"),
        (["checkpoint", "verify", "{empty}"], "no sealed checkpoint is in it"),
        (["evaluate", "--checkpoint", "{run}", "--data", "{empty}/*.txt"], "no file is there"),
        (["generate", "--checkpoint", "{run}", "--prompt", ""], "--prompt is ''"),
        (["generate", "--checkpoint", "{run}", "--tokens", "0"], "--tokens must be 1 or more"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, workdir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [each.format(run=workdir, empty=tmp_path / "empty") for each in arguments]
    assert message in refusal(capfd, 2, *given)


def test_understudy_hands_the_commands_on(workdir: Path) -> None:
    """The installed program: options, exit code and output are the worker's."""
    program = [sys.executable, "-m", "orchestrator.cli.main"]
    shown = subprocess.run(
        [*program, "checkpoint", "show", str(workdir), "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["step"] == 12
    helped = subprocess.run([*program, "evaluate", "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: understudy evaluate")
    failed = subprocess.run(
        [*program, "checkpoint", "verify", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2 and failed.stderr.startswith("error: CHECKPOINT is '/nowhere'")
