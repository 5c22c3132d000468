"""Find a checkpoint by what a person types, and load its model whole into this process.

What must not live here: output (`commands.py`), names of other formats (`mixtral.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.checkpointing.manifest import BaseEntry, Manifest
from worker.checkpointing.names import CheckpointId, parse_sealed
from worker.checkpointing.parts import PartTensors, dtype_of
from worker.checkpointing.reader import CheckpointReader
from worker.checkpointing.sealing import list_sealed
from worker.checkpointing.storage import FileStorage
from worker.data.tokenizer import FILE as TOKENIZER_FILE
from worker.data.tokenizer import ByteTokenizer, Tokenizer, kept, open_tokenizer
from worker.model.config import BYTE_VALUES, ModelConfig
from worker.model.fields import FieldError
from worker.model.parts import bind
from worker.model.transformer import Transformer
from worker.offline.gather import empty_parts, gather, stages_of
from worker.parallel.dispatch import LocalDispatcher
from worker.training.base_checkpoint import Base

CHECKPOINTS_FOLDER = "checkpoints"
"""Of a workdir."""


class OfflineError(Exception):
    """Something that was asked for cannot be done; the message says what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A sealed checkpoint on this machine's disks."""

    storage: FileStorage
    checkpoint: CheckpointId
    folder: Path

    def read(self, *, after_chunk: Callable[[int], None] = lambda count: None) -> CheckpointReader:
        """Raises CheckpointDamaged where its manifest is not sound."""
        return CheckpointReader(
            self.storage, self.checkpoint, refuse_non_finite=False, after_chunk=after_chunk
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model of a checkpoint, ready to be asked; it cannot be trained on."""

    model: Transformer
    config: ModelConfig
    job: Mapping[str, Any]
    """The job's config as the checkpoint holds it."""
    manifest: Manifest


def find(given: str) -> Place:
    """A checkpoint's folder; or a workdir, or its folder of checkpoints, for the newest in it. Raises OfflineError."""
    path = Path(given)
    named = parse_sealed(path.resolve().name)
    if path.is_dir() and named is not None:
        return Place(storage=FileStorage(path.resolve().parent), checkpoint=named, folder=path)
    if not path.is_dir():
        raise OfflineError(
            f"CHECKPOINT is {given!r}: there is no such folder; name a checkpoint, such as "
            f"DIR/{CHECKPOINTS_FOLDER}/step-00000200.g0001, or the workdir DIR for its newest one"
        )
    for root in (path / CHECKPOINTS_FOLDER, path):
        storage = FileStorage(root)
        sealed = list_sealed(storage) if root.is_dir() else ()
        if sealed:
            return Place(storage=storage, checkpoint=max(sealed), folder=root / max(sealed).folder)
    raise OfflineError(
        f"CHECKPOINT is {given!r}: no sealed checkpoint is in it; take one with: understudy checkpoint now"
    )


def tokenizer_for(place: Place, config: ModelConfig, given: str | None) -> Tokenizer:
    """The one that is named, or lies beside the checkpoint; bytes for a model of bytes.

    Raises OfflineError, TokenizerError.
    """
    if given is not None:
        return open_tokenizer(given)
    found = kept(place.folder.resolve().parent)
    if found is None and config.vocabulary > BYTE_VALUES:
        raise OfflineError(
            f"the model has {config.vocabulary} tokens, and no tokenizer.json lies beside {place.folder.name}; "
            "name it: --tokenizer FILE, or --tokenizer bytes for a model of bytes"
        )
    return found or ByteTokenizer()


def tokenizer_beside(place: Place) -> bytes:
    """The tokenizer.json of the job's checkpoints; nothing where tokens are bytes."""
    file = place.folder.resolve().parent / TOKENIZER_FILE
    return file.read_bytes() if file.is_file() else b""


def load(place: Place, device: torch.device) -> Loaded:
    """The whole model, its hashes verified. Raises CheckpointDamaged, CheckpointMismatch, FieldError."""
    with place.read() as reader:
        manifest = reader.manifest
        job = manifest.config
        config = ModelConfig.from_mapping(_section(job, "model"), str(job["precision"]))
        dtype = dtype_of(manifest.precision)
        stages = stages_of(job, config)
        rows = empty_parts(config, stages, dtype)
        reader.read({name: PartTensors.of([rows[name]]) for name in manifest.parts})
    if manifest.base is not None:
        frozen = {name: row for name, row in rows.items() if name not in manifest.parts}
        open_base(manifest.base).read(frozen, lambda count: None)
    dense_P, experts_EN = gather(config, stages, rows)
    return Loaded(
        model=assembled(config, dense_P.to(device), experts_EN.to(device), seed=int(str(job["seed"]))),
        config=config,
        job=job,
        manifest=manifest,
    )


def open_base(entry: BaseEntry) -> Base:
    """The very checkpoint that trained experts belong to. Raises OfflineError where it is not there any more."""
    try:
        base = Base.open(entry.path)
    except FieldError as error:
        raise OfflineError(
            f"the checkpoint holds trained experts only, and their base {entry.path} is gone: put it back there"
        ) from error
    if base.digest != entry.sha256:
        raise OfflineError(
            f"the checkpoint holds trained experts only, and {entry.path} is not the base that they were trained in "
            f"(its manifest has sha256 {base.digest[:16]}, not {entry.sha256[:16]}): put that one back there"
        )
    return base


def assembled(
    config: ModelConfig, dense_P: torch.Tensor, experts_EN: torch.Tensor, *, seed: int
) -> Transformer:
    """A model for inference with these weights: [P] of the dense part, [E, N] of all experts."""
    model = Transformer(config, seed=seed, dispatcher=LocalDispatcher(config.experts), device=dense_P.device)
    nothing = dense_P.new_zeros(1)
    bind(
        model,
        config,
        dense_P=dense_P,
        experts_EN=experts_EN,
        dense_grad_P=nothing.expand(dense_P.shape),
        experts_grad_EN=nothing.expand(experts_EN.shape),
    )
    return model.eval().requires_grad_(False)


def _section(job: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = job[name]
    assert isinstance(section, Mapping), f"the manifest's config has a section {name}"
    return section


def size_text(count: int) -> str:
    """Bytes, for people."""
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
