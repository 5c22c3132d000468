"""The undisturbed trajectory that disturbed runs are compared with; made once per session.

What must not live here: faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.job import TINY
from tests.chaos.oracle import plain_job, plain_ledger

REFERENCE_STEPS = 200


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """200 steps of the tiny job in float64 in one process, by a plain loop: others must agree with it."""
    job_file: Path = tmp_path_factory.mktemp("reference") / "job.yaml"
    job_file.write_text(yaml.safe_dump(TINY))
    return plain_ledger(plain_job(job_file), REFERENCE_STEPS)
