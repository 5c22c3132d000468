"""Trained experts as a file of their own: an adapter that names its base, and the model that both make together.

`adapter.safetensors` holds the matrices of the trained experts under their names in Mixtral; `adapter.json` says which
experts they are and names the base by the hash of its manifest. What must not live here: whole models
(`mixtral.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worker.checkpointing.names import expert_index
from worker.model.config import ModelConfig
from worker.offline.mixtral import save_tensors, to_mixtral
from worker.offline.opened import Loaded, OfflineError

FORMAT = "understudy-adapter-1"
TENSORS_FILE = "adapter.safetensors"
DESCRIPTION_FILE = "adapter.json"


def export_adapter(loaded: Loaded, folder: Path, *, dtype: torch.dtype) -> tuple[Path, ...]:
    """Write the adapter into an empty folder; the files. Raises OfflineError for a checkpoint of a whole model."""
    manifest = loaded.manifest
    if manifest.base is None:
        raise OfflineError(
            "--adapter: the whole model was trained, so there is no adapter; leave --adapter out, or train with "
            "trainable.experts"
        )
    experts = sorted(expert for part in manifest.parts if (expert := expert_index(part)) is not None)
    tensors = expert_tensors(loaded.config, dict(loaded.model.named_parameters()), experts)
    ready = {name: tensor.to("cpu", dtype).contiguous().clone() for name, tensor in tensors.items()}
    save_tensors(ready, folder / TENSORS_FILE)
    described = {
        "format": FORMAT,
        "job": manifest.job,
        "step": manifest.step,
        "experts": experts,
        "dtype": str(dtype).removeprefix("torch."),
        "base": {"path": manifest.base.path, "sha256": manifest.base.sha256},
        "model": dict(loaded.job["model"]),
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder / DESCRIPTION_FILE, folder / TENSORS_FILE


def expert_tensors(config: ModelConfig, ours: Mapping[str, Tensor], experts: list[int]) -> dict[str, Tensor]:
    """The matrices of some experts, under their names in Mixtral."""
    marks = {f".experts.{expert}." for expert in experts}
    return {name: each for name, each in to_mixtral(config, ours) if any(mark in name for mark in marks)}


def apply_adapter(loaded: Loaded, base_digest: str, folder: Path) -> int:
    """Put the adapter's matrices in their places in the base's model; how many experts. Raises OfflineError."""
    try:
        described: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        theirs = load_file(folder / TENSORS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise OfflineError(f"ADAPTER is {str(folder)!r}: it cannot be read: {error}") from error
    if described.get("format") != FORMAT:
        raise OfflineError(f"ADAPTER is {str(folder)!r}: its format is not {FORMAT}")
    wanted = described["base"]["sha256"]
    if wanted != base_digest:
        raise OfflineError(
            f"ADAPTER is {str(folder)!r}: it belongs to the base with sha256 {wanted[:16]} "
            f"({described['base']['path']}), and this one has {base_digest[:16]}"
        )
    experts = [int(each) for each in described["experts"]]
    places = expert_tensors(loaded.config, dict(loaded.model.named_parameters()), experts)
    if {name: tuple(each.shape) for name, each in places.items()} != {
        name: tuple(each.shape) for name, each in theirs.items()
    }:
        raise OfflineError(f"ADAPTER is {str(folder)!r}: its tensors are not those of experts {experts}")
    for name, place in places.items():
        place.copy_(theirs[name])
    return len(experts)
