"""The checkpoint whose weights a job begins with, and in which what is frozen stays.

Its sealed folder is read, never written. Nothing of it is believed before its hashes are found right, and a checkpoint
of a job that trains some experts names it by the hash of its manifest. What must not live here: where it was found
(`orchestrator/jobfile.py` settles the path), and what is trained (`state.py`).

Next: `trainer.py`, which begins and restores with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from worker.checkpointing.errors import BaseUnsound, CheckpointDamaged, CheckpointMismatch
from worker.checkpointing.manifest import BaseEntry, Manifest, to_json
from worker.checkpointing.names import CheckpointId, parse_sealed
from worker.checkpointing.parts import PartTensors, dtype_of
from worker.checkpointing.reader import CheckpointReader
from worker.checkpointing.storage import FileStorage
from worker.model.fields import FieldError

_SAME_ANSWER = ("heads", "kv_heads", "top_k", "rope_theta", "norm_eps", "router_temperature")
"""Fields of the model that decide, beside the weights, what it answers."""
FIELD = "init.checkpoint"


def manifest_digest(manifest: Manifest) -> str:
    """What names a checkpoint for good: the sha256 of its manifest, which holds the hashes of all its bytes."""
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A sealed checkpoint to begin with."""

    folder: Path
    checkpoint: CheckpointId
    digest: str

    @classmethod
    def open(cls, path: str) -> Base:
        """Raises FieldError where there is no sealed checkpoint, CheckpointDamaged where its manifest is not sound."""
        folder = Path(path)
        checkpoint = parse_sealed(folder.name)
        if checkpoint is None or not folder.is_dir():
            raise FieldError(FIELD, path, "the folder of a sealed checkpoint that all nodes see is needed")
        with _reader(folder, checkpoint, lambda count: None) as reader:
            if reader.manifest.base is not None:
                accepted = "a whole checkpoint is needed, and this one holds trained experts only: export and import it"
                raise FieldError(FIELD, path, accepted)
            return cls(folder=folder, checkpoint=checkpoint, digest=manifest_digest(reader.manifest))

    @property
    def entry(self) -> BaseEntry:
        """How a checkpoint of trained experts names it."""
        return BaseEntry(path=str(self.folder), sha256=self.digest)

    def require(self, model: Mapping[str, object], layout: str) -> None:
        """Raises CheckpointMismatch, naming field and values, unless its weights mean the same in this model."""
        with _reader(self.folder, self.checkpoint, lambda count: None) as reader:
            config = reader.manifest.config["model"]
            assert isinstance(config, Mapping)
            pairs = [(f"model.{name}", model[name], config.get(name)) for name in _SAME_ANSWER]
            pairs.append(("layout", layout, reader.manifest.layout))
        for field, wanted, found in pairs:
            if wanted != found:
                raise CheckpointMismatch(checkpoint=str(self.folder), field=field, wanted=wanted, found=found)

    def read(self, weights: Mapping[str, Tensor], after_chunk: Callable[[int], None]) -> None:
        """Fill the weights of parts by name, verified first; what is stored in another precision is converted.

        Raises CheckpointMismatch (BaseUnsound where it is damaged), or what `after_chunk` raises (to give up).
        """
        try:
            self._read(weights, after_chunk)
        except CheckpointDamaged as damage:
            raise BaseUnsound(damage) from damage

    def _read(self, weights: Mapping[str, Tensor], after_chunk: Callable[[int], None]) -> None:
        with _reader(self.folder, self.checkpoint, after_chunk) as reader:
            if manifest_digest(reader.manifest) != self.digest:
                raise CheckpointMismatch(
                    checkpoint=str(self.folder),
                    field="sha256 of the manifest",
                    wanted=self.digest,
                    found=manifest_digest(reader.manifest),
                )
            dtype = dtype_of(reader.manifest.precision)
            for name, weights_P in weights.items():
                target_P = (
                    weights_P
                    if weights_P.dtype == dtype
                    else weights_P.new_empty(len(weights_P), dtype=dtype)
                )
                reader.read({name: PartTensors.of([target_P])})
                if target_P is not weights_P:
                    weights_P.copy_(target_P)


def _reader(folder: Path, checkpoint: CheckpointId, after_chunk: Callable[[int], None]) -> CheckpointReader:
    return CheckpointReader(
        FileStorage(folder.parent), checkpoint, refuse_non_finite=True, after_chunk=after_chunk
    )
