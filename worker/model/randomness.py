"""Random streams that depend on what they are for, and on nothing else.

A stream is named by the job's seed and a few words ("which weight of which expert", "noise of which layer at which
step"), so any rank can draw it at any time, in any order, and a redo draws the same numbers. What must not live here:
a generator that is kept and advanced.
"""

from __future__ import annotations

import hashlib

import torch

SEED_BYTES = 8


def stream(seed: int, *words: str | int) -> torch.Generator:
    """A fresh CPU generator for the stream of this name. The same on every machine."""
    name = "/".join([str(seed), *map(str, words)])
    digest = hashlib.blake2b(name.encode(), digest_size=SEED_BYTES).digest()
    # One bit less than a word: a seed that torch takes as it is, on every platform.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
