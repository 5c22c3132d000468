"""A Mixtral comes in and goes out again with equal bits; experts are scored; an adapter and its base make the model.

Shapes: B sequences; S positions; V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.integration.test_offline import SEALED, TEXT, answer, job, logits, refusal, theirs, write
from worker.checkpointing.manifest import from_json, to_json
from worker.checkpointing.names import expert_part
from worker.data.corpus import open_corpus
from worker.offline import commands
from worker.offline.affinity import Score, affinity
from worker.offline.opened import find, load
from worker.training.base_checkpoint import Base

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    transformers = pytest.importorskip("transformers")


def mixtral(folder: Path, **changes: Any) -> Any:
    """A model of theirs, with random weights, saved by them."""
    values = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        **changes,
    }
    torch.manual_seed(3)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**values)).eval()
    model.save_pretrained(folder)
    return model


def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"num_experts_per_tok": 3, "tie_word_embeddings": True}])
def test_an_imported_model_gives_equal_logits(
    changes: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = mixtral(tmp_path / "theirs", **changes)
    capfd.readouterr()
    made = answer(capfd, "import", str(tmp_path / "theirs"), str(tmp_path / "base"))
    assert made["model"]["vocabulary"] == 300 and Path(made["checkpoint"]).is_dir()
    with torch.no_grad():
        expected_BSV = model(tokens()).logits
    torch.testing.assert_close(logits(tmp_path / "base", tokens()), expected_BSV, rtol=2e-4, atol=2e-4)
    assert answer(capfd, "checkpoint", "verify", str(tmp_path / "base"))["sound"] is True


def test_in_and_out_again_not_a_bit_is_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is exported, imported and exported again is what was exported first; several files read like one."""
    first = write(tmp_path / "checkpoints", job())
    answer(capfd, "checkpoint", "export", str(first), str(tmp_path / "out"))
    answer(capfd, "import", str(tmp_path / "out"), str(tmp_path / "base"))
    answer(capfd, "checkpoint", "export", str(tmp_path / "base"), str(tmp_path / "again"))
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)
    model = theirs(tmp_path / "out")
    model.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    capfd.readouterr()
    answer(capfd, "import", str(tmp_path / "split"), str(tmp_path / "other"))
    assert torch.equal(logits(tmp_path / "other", tokens()), logits(tmp_path / "base", tokens()))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"head_dim": 16}, "head_dim"),
        ({"vocab_size": 100}, "vocabulary"),
        ({"num_hidden_layers": 3}, "no tensor"),
        ({"intermediate_size": 48}, "has shape"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_error(
    changes: dict[str, Any], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mixtral(tmp_path / "theirs")
    capfd.readouterr()
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert words in refusal(capfd, 2, "import", str(tmp_path / "theirs"), str(tmp_path / "base"))
    assert "config.json" in refusal(capfd, 2, "import", str(tmp_path), str(tmp_path / "base"))


def test_scores_are_those_of_the_router(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Against transformers' router logits, layer by layer."""
    folder, text = write(tmp_path / "checkpoints", job()), tmp_path / "text.txt"
    text.write_bytes(TEXT)
    found = answer(
        capfd,
        "affinity",
        "--checkpoint",
        str(folder),
        "--data",
        str(text),
        "--windows",
        "1000",
        "--threshold",
        "0.5",
    )
    assert sum(found["scores"]) == pytest.approx(1.0)
    assert sum(found["scores"][expert] for expert in found["experts"]) >= 0.5
    rest = sorted(found["scores"], reverse=True)[: len(found["experts"]) - 1]
    assert sum(rest) < 0.5, "one less would not do"
    answer(capfd, "checkpoint", "export", str(folder), str(tmp_path / "out"))
    windows = torch.tensor([list(TEXT[start : start + 8]) for start in range(len(TEXT) - 7)])
    with torch.no_grad():
        router_logits = theirs(tmp_path / "out")(windows, output_router_logits=True).router_logits
    for layer, each in enumerate(router_logits):
        weights, chosen = torch.softmax(each.float(), -1).topk(2, -1)
        gates = torch.zeros(len(each), 5).scatter_(1, chosen, weights / weights.sum(-1, keepdim=True))
        expected = gates.mean(0).tolist()
        assert found["scores_by_layer"][layer] == pytest.approx(expected, abs=1e-4)
    by_tokens = affinity(
        load(find(str(folder)), torch.device("cpu")),
        open_corpus(str(text)).read(0, text.stat().st_size),
        Score.TOKENS,
        windows=1000,
        windows_at_once=7,
    )
    assert by_tokens.scores_LE.sum(1).tolist() == pytest.approx([1.0, 1.0])


def trained_in(base: Path, root: Path) -> Path:
    """A checkpoint that holds expert 3 alone, changed, and names its base."""
    whole = write(root / "checkpoints", job(), ranks=6)
    entry = Base.open(str(base)).entry
    manifest = from_json((whole / "manifest.json").read_text())
    name = expert_part(3)
    shards = [shard for shard in manifest.shards if any(each.piece.part == name for each in shard.pieces)]
    assert [each.piece.part for each in shards[0].pieces] == [name], "the expert has a shard of its own"
    alone = dataclasses.replace(
        manifest,
        parts={name: manifest.parts[name]},
        shards=tuple(shards),
        base=entry,
    )
    (whole / "manifest.json").write_text(to_json(alone))
    return whole


def test_adapter_and_base_make_the_trained_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = write(tmp_path / "base" / "checkpoints", job(), seed=6)
    trained = trained_in(base, tmp_path / "task")
    assert answer(capfd, "checkpoint", "show", str(trained))["base"]["path"] == str(base)
    exported = answer(capfd, "checkpoint", "export", str(trained), str(tmp_path / "adapter"), "--adapter")
    assert exported["base"]["sha256"] == Base.open(str(base)).digest
    names = load_file(tmp_path / "adapter" / "adapter.safetensors").keys()
    assert len(names) == 2 * 3 and all(".experts.3." in name for name in names)
    answer(capfd, "checkpoint", "export", str(trained), str(tmp_path / "whole"))
    answer(capfd, "checkpoint", "merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "merged"))
    answer(capfd, "checkpoint", "export", str(base), str(tmp_path / "before"))
    whole, merged, before = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "merged", "before")
    )
    assert all(torch.equal(whole[name], merged[name]) for name in whole)
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert changed == set(names)
    other = write(tmp_path / "other" / "checkpoints", job(), seed=7)
    words = refusal(
        capfd, 2, "checkpoint", "merge", str(other), str(tmp_path / "adapter"), str(tmp_path / "no")
    )
    assert "belongs to the base" in words
    words = refusal(capfd, 2, "checkpoint", "export", str(base), str(tmp_path / "none"), "--adapter")
    assert "whole model was trained" in words
    shutil.rmtree(base)
    assert "put it back" in refusal(capfd, 2, "checkpoint", "export", str(trained), str(tmp_path / "late"))


def test_the_commands_are_on_the_command_line() -> None:
    assert commands.main(["checkpoint", "show", "/nowhere"]) == 2
    assert SEALED.folder == "step-00000012.g0003"
