"""A Mixtral from Hugging Face becomes a sealed checkpoint of ours: to be fine-tuned, evaluated, sampled, exported.

Weights are read tensor by tensor and written part by part, so that the model need not fit into memory. Moments are
zero: training from such a checkpoint begins at step 1 (`init.checkpoint`). What must not live here: names and shapes
(`mixtral.py` has them, for the way back).

Shapes: as in `mixtral.py`; N elements of one part.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.checkpointing.manifest import Manifest, PartEntry, Piece, Shard
from worker.checkpointing.names import DENSE, CheckpointId, expert_part
from worker.checkpointing.parts import PartTensors, precision_of
from worker.checkpointing.sealing import seal
from worker.checkpointing.snapshot import Busy, SnapshotBuffer
from worker.checkpointing.storage import FileStorage
from worker.checkpointing.writer import (
    Accepted,
    CheckpointWriter,
    Outcome,
    SaveRequest,
    ShardSaved,
    WriteLimits,
)
from worker.model.config import ModelConfig, Precision
from worker.model.fields import FieldError
from worker.model.parts import Entry, PartLayout, dense_layout, expert_layout
from worker.offline.opened import CHECKPOINTS_FOLDER, OfflineError
from worker.training.state import TrainingState

BEGINNING = CheckpointId(step=0, generation=0)
_WRITE_SECONDS = 1800.0
_FIXED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("mixtral",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "attention_dropout": (0.0, 0, None),
}
"""What a config may say of things that our model has no choice in; a missing one is taken as usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was made."""

    folder: Path
    model: Mapping[str, object]
    """The `model` section for a job that goes on from it."""
    parameters: int


def import_mixtral(source: Path, workdir: Path, *, wrote: Callable[[int, int], None]) -> Imported:
    """Make `workdir/checkpoints/step-00000000.g0000` of a folder with config.json and safetensors files.

    `wrote` hears how many of how many parts are done. Raises OfflineError for a model that ours cannot be.
    """
    given = _read_json(source / "config.json")
    config = _config(given)
    root = workdir / CHECKPOINTS_FOLDER
    if (root / BEGINNING.folder).exists():
        raise OfflineError(
            f"OUT is {str(workdir)!r}: it has a checkpoint of step 0 already; name a new folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        tensors = _Tensors(source, stack)
        tied = bool(given.get("tie_word_embeddings"))
        parts = list(_parts(config))
        writer = CheckpointWriter(storage=FileStorage(root), buffer=SnapshotBuffer(), limits=WriteLimits())
        shards = []
        for number, (name, layout, expert) in enumerate(parts):
            weights_N = torch.zeros(layout.length)
            for entry in layout.entries:
                weights_N[entry.span].view(entry.shape).copy_(_value(config, entry, expert, tensors, tied))
            shards.append(_write(writer, number, name, weights_N))
            wrote(number + 1, len(parts))
        writer.close(_WRITE_SECONDS)
    manifest = _manifest(workdir.resolve().name, config, parts, tuple(shards))
    seal(FileStorage(root), manifest)
    return Imported(
        folder=root / BEGINNING.folder,
        model=_section(config),
        parameters=config.total_parameters(),
    )


def _parts(config: ModelConfig) -> Iterator[tuple[str, PartLayout, int | None]]:
    """Name, layout and expert of every part."""
    yield DENSE, dense_layout(config), None
    for expert in range(config.experts):
        yield expert_part(expert), expert_layout(config), expert


def _value(config: ModelConfig, entry: Entry, expert: int | None, tensors: _Tensors, tied: bool) -> Tensor:
    """One of our tensors, from theirs."""
    ends = {
        "embedding_VD": "model.embed_tokens.weight",
        "head_VD": "model.embed_tokens.weight" if tied else "lm_head.weight",
        "norm.scale_D": "model.norm.weight",
    }
    if entry.name in ends:
        return tensors.get(ends[entry.name], entry.shape)
    _, layer, rest = entry.name.split(".", 2)
    theirs = f"model.layers.{layer}"
    if expert is not None:
        matrix = rest.rpartition(".")[2].partition("_")[0]
        return tensors.get(f"{theirs}.block_sparse_moe.experts.{expert}.{matrix}.weight", entry.shape)
    if rest == "attention.qkv_AD":
        widths = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        return torch.cat(
            [
                tensors.get(
                    f"{theirs}.self_attn.{name}_proj.weight", (heads * config.head_width, config.width)
                )
                for name, heads in widths.items()
            ]
        )
    names = {
        "attention.out_DD": "self_attn.o_proj.weight",
        "attention_norm.scale_D": "input_layernorm.weight",
        "moe_norm.scale_D": "post_attention_layernorm.weight",
        "moe.router.weight_ED": "block_sparse_moe.gate.weight",
    }
    return tensors.get(f"{theirs}.{names[rest]}", entry.shape)


class _Tensors:
    """Tensors of a folder of safetensors files, by name, whichever file they are in."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        index = folder / "model.safetensors.index.json"
        self._file_of: dict[str, str] = {}
        self._open: dict[str, Any] = {}  # safetensors has no types for its files
        if index.exists():
            self._file_of = dict(_read_json(index)["weight_map"])
        elif (folder / "model.safetensors").exists():
            self._file_of = dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")
        else:
            raise OfflineError(
                f"MODEL is {str(folder)!r}: it has no model.safetensors and no index of several; "
                "name the folder of a Mixtral in safetensors files"
            )

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """In float32. Raises OfflineError where it is missing or of another shape."""
        if name not in self._file_of:
            raise OfflineError(f"MODEL is {str(self._folder)!r}: it has no tensor {name}")
        try:
            found: Tensor = self._file(self._file_of[name]).get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise OfflineError(f"MODEL is {str(self._folder)!r}: {name} cannot be read: {error}") from error
        if tuple(found.shape) != shape:
            raise OfflineError(
                f"MODEL is {str(self._folder)!r}: {name} has shape {tuple(found.shape)}, its config says {shape}"
            )
        return found.to(torch.float32)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self._folder / name
            try:
                self._open[name] = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise OfflineError(f"{path} cannot be read: {error}") from error
        return self._open[name]


def _config(given: Mapping[str, Any]) -> ModelConfig:
    for name, accepted in _FIXED.items():
        if given.get(name, accepted[0]) not in accepted:
            raise OfflineError(
                f"config.json: {name} is {given[name]!r}, and only {accepted[0]!r} can be imported"
            )
    rope = given.get("rope_parameters") or {}
    scaling = given.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default" or scaling.get("rope_type", "default") != "default":
        raise OfflineError("config.json: its rotary positions are scaled, which this model does not know")
    length = given.get("max_position_embeddings", 4096)
    window = given.get("sliding_window")
    if window is not None and window < length:
        raise OfflineError(
            f"config.json: sliding_window is {window!r}; attention here reaches everything before"
        )
    try:
        config = ModelConfig(
            vocabulary=given["vocab_size"],
            width=given["hidden_size"],
            layers=given["num_hidden_layers"],
            heads=given["num_attention_heads"],
            kv_heads=given["num_key_value_heads"],
            experts=given["num_local_experts"],
            top_k=given["num_experts_per_tok"],
            expert_width=given["intermediate_size"],
            sequence_length=length,
            rope_theta=float(given.get("rope_theta") or rope.get("rope_theta") or 1e6),
            norm_eps=float(given["rms_norm_eps"]),
            aux_loss=float(given.get("router_aux_loss_coef", 0.001)),
            router_temperature=1.0,
            router_noise=0.0,
            precision=Precision.FLOAT32,
        )
    except KeyError as error:
        raise OfflineError(f"config.json: {error.args[0]} is missing") from error
    except FieldError as error:
        raise OfflineError(f"config.json: {error}") from error
    if given.get("head_dim") not in (None, config.head_width):
        raise OfflineError(
            f"config.json: head_dim is {given['head_dim']!r}; here it is hidden_size / heads, {config.head_width}"
        )
    return config


def _section(config: ModelConfig) -> dict[str, object]:
    values = asdict(config)
    del values["precision"]
    return values


def _write(writer: CheckpointWriter, number: int, name: str, weights_N: Tensor) -> Shard:
    """One part as one shard, durable. Raises CheckpointWriteError."""
    nothing_N = torch.zeros_like(weights_N)
    piece = Piece(part=name, start=0, stop=len(weights_N))
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    answer = writer.save(
        SaveRequest(checkpoint=BEGINNING, rank=number, pieces=(piece,)),
        {name: PartTensors(weights=weights_N, m=nothing_N, v=nothing_N)},
        outcomes.put,
    )
    outcome = outcomes.get(timeout=_WRITE_SECONDS) if isinstance(answer, Accepted) else answer
    if isinstance(outcome, ShardSaved):
        return outcome.shard
    assert not isinstance(outcome, Busy), "one part is written after the other"
    raise outcome.error


def _manifest(
    job: str,
    config: ModelConfig,
    parts: list[tuple[str, PartLayout, int | None]],
    shards: tuple[Shard, ...],
) -> Manifest:
    model = _section(config)
    return Manifest(
        job=job,
        step=BEGINNING.step,
        generation=BEGINNING.generation,
        created=time.time(),
        config={
            "name": job,
            "seed": 0,
            "precision": config.precision.value,
            "model": model,
            "batch": {"microbatches": 1, "microbatch_size": 1},
        },
        data_fingerprint="imported",
        layout=TrainingState(config, 0, torch.device("meta")).layout_id,
        precision=precision_of(torch.float32),
        parts={name: PartEntry(version=BEGINNING.step, length=layout.length) for name, layout, _ in parts},
        shards=shards,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OfflineError(
            f"{path} cannot be read ({error.strerror}): name the folder of a Mixtral"
        ) from error
    except ValueError as error:
        raise OfflineError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise OfflineError(f"{path} holds no mapping")
    return found
