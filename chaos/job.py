"""The job that is trained while it is broken, unless another one is named.

Small enough for a step in well under 0.1 s, with everything that a large job has. In float64, where summation order
is far below the tolerance of law L2; the learning rate does not depend on the number of steps, so that runs of
different lengths can be compared; a run is stopped once it has suffered enough.
"""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-8
"""Of losses, relative: law L2 in float64."""

STEPS = 5000
"""More than a run takes."""

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "steps": STEPS,
    "precision": "float64",
    "data": {"path": "stdlib"},
    "cluster": {"nodes": 4, "spares": 1, "replicas": 2},
    "snapshot": {"interval_seconds": 3.0},
    "batch": {"microbatches": 8, "microbatch_size": 2},
    "model": {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "experts": 8,
        "top_k": 2,
        "expert_width": 48,
        "sequence_length": 16,
    },
    "optimizer": {"learning_rate": 0.003, "warmup_steps": 5, "final_learning_rate_ratio": 1.0},
}
