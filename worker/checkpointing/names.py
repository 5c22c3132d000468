"""Names of parts, tensors, folders and files. Pure text; nothing here looks at a disk.

A part is "dense" (all weights that belong to no expert) or one expert, "expert-00007". Where the layers are divided
over stages, each stage has a dense part, "dense" the first and "dense-00001" the next, and experts of its own. A
checkpoint of step 120 in generation 4 is the folder "step-00000120.g0004"; while it is written its name ends in
".partial", while it is removed in ".deleted". Go to `manifest` for what is inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DENSE = "dense"
KINDS = ("weights", "m", "v")
MANIFEST_FILE = "manifest.json"

_DENSE = re.compile(r"dense-(\d{5,})")
_EXPERT = re.compile(r"expert-(\d{5,})")
_FOLDER = re.compile(r"step-(\d{8,})\.g(\d{4,})")
_PARTIAL = ".partial"
_DELETED = ".deleted"
_TEMPORARY = ".tmp"


def dense_part(stage: int) -> str:
    """The name of a stage's dense part; the first has the name that it has in a model of one stage."""
    assert stage >= 0
    return f"{DENSE}-{stage:05d}" if stage else DENSE


def dense_stage(part: str) -> int | None:
    """The stage whose dense part this is, or None where the name is not canonical for one."""
    if part == DENSE:
        return 0
    found = _DENSE.fullmatch(part)
    if found is None or dense_part(int(found[1])) != part:
        return None
    return int(found[1])


def expert_part(index: int) -> str:
    """The part name of expert `index`."""
    assert index >= 0
    return f"expert-{index:05d}"


def expert_index(part: str) -> int | None:
    """The expert's index, or None where the name is not an expert's canonical name."""
    found = _EXPERT.fullmatch(part)
    if found is None or expert_part(int(found[1])) != part:
        return None
    return int(found[1])


def is_part(name: str) -> bool:
    """Whether `name` is the canonical name of a part."""
    return dense_stage(name) is not None or expert_index(name) is not None


def tensor_name(part: str, kind: str) -> str:
    """The name of one of the part's three tensors inside a shard file."""
    assert kind in KINDS
    return f"{part}.{kind}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CheckpointId:
    """Step and generation of a checkpoint; later ones compare greater."""

    step: int
    generation: int

    @property
    def folder(self) -> str:
        """Name of the sealed folder."""
        return f"step-{self.step:08d}.g{self.generation:04d}"

    @property
    def partial(self) -> str:
        """Name of the folder while its shards are written."""
        return self.folder + _PARTIAL


def parse_sealed(folder: str) -> CheckpointId | None:
    """The checkpoint whose sealed folder has exactly this name, or None."""
    found = _FOLDER.fullmatch(folder)
    if found is None:
        return None
    checkpoint = CheckpointId(step=int(found[1]), generation=int(found[2]))
    return checkpoint if checkpoint.folder == folder else None


def parse_leftover(folder: str) -> CheckpointId | None:
    """The checkpoint whose partial or half-deleted folder this is, or None."""
    for ending in (_PARTIAL, _DELETED):
        if folder.endswith(ending):
            return parse_sealed(folder.removesuffix(ending))
    return None


def deleted(folder: str) -> str:
    """The name under which a sealed folder waits for its removal."""
    return folder + _DELETED


def shard_file(rank: int) -> str:
    """The file that `rank` writes."""
    assert rank >= 0
    return f"rank-{rank:05d}.safetensors"


def temporary(file: str) -> str:
    """The name of a file that is not yet whole."""
    return f".{file}{_TEMPORARY}"


def is_plain_file_name(name: str) -> bool:
    """Whether `name` stays inside its folder: no separator, no dot in front, not empty."""
    return bool(name) and not name.startswith(".") and not re.search(r"[/\\\0]", name)
