"""What a job file must know of token files before anything is started: how many tokens their vocabulary has.

Their format is the worker's (`worker/data/tokenfile.py`); the first bytes and the header are read here, nothing else,
and nothing is verified: a file that makes no sense is left to the trainers, who say what is wrong with it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"USTOKENS"
_FIXED = struct.Struct("<8sII16s")
_TRAIN_FILE = "train.tokens"
_LONGEST_HEADER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFileFacts:
    """Of one token file."""

    vocabulary: int
    tokenizer: str


def token_file_facts(path: str) -> TokenFileFacts | None:
    """What is in the header of a token file, or of `train.tokens` in a folder; None for anything else."""
    place = Path(path)
    try:
        file = place / _TRAIN_FILE if place.is_dir() else place
        with file.open("rb") as opened:
            fixed = opened.read(_FIXED.size)
            if len(fixed) < _FIXED.size or not fixed.startswith(_MAGIC):
                return None
            length = _FIXED.unpack(fixed)[2]
            said = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        return TokenFileFacts(vocabulary=int(said["vocabulary"]), tokenizer=str(said["tokenizer_name"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
