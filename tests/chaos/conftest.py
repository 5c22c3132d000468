"""The undisturbed runs that disturbed ones are compared with; made once per session.

What must not live here: faults.
"""

from __future__ import annotations

from typing import Any

import pytest

from chaos.job import TINY
from tests.chaos.runs import Run

REFERENCE_STEPS = 200


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The ledger of 200 steps of the tiny job in float64 on one node, nothing failing: others must agree with it."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    alone = {**TINY, "cluster": {"nodes": 1, "spares": 0, "replicas": 1}}
    with Run(workdir, "--steps", str(REFERENCE_STEPS), job=alone) as run:
        summary = run.finish()
        assert summary["incidents"] == []
        return run.ledger()
