"""The import contracts of `.importlinter` can fail: one offence is planted for each, in a bare copy of the house.

That our own modules keep them is checked by `lint-imports` itself, in `make lint`.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import PRODUCTION, ROOT

HOUSE = (
    "orchestrator/__main__.py",
    "orchestrator/app.py",
    "orchestrator/jobfile.py",
    "orchestrator/core/spec.py",
    "orchestrator/core/machine.py",
    "orchestrator/controller/controller.py",
    "orchestrator/service/server.py",
    "orchestrator/store/repository.py",
    "orchestrator/cluster/local.py",
    "orchestrator/timers/timers.py",
    "orchestrator/cli/main.py",
    "orchestrator/cli/authority.py",
    "worker/__main__.py",
    "worker/app.py",
    "worker/agent/machine.py",
    "worker/agent/client.py",
    "worker/model/moe.py",
    "worker/parallel/groups.py",
    "worker/hostmemory/stock.py",
    "worker/transfer/frames.py",
    "worker/checkpointing/writer.py",
    "worker/training/loop.py",
    "protos/worker_pb2.py",
    "orchestrator/cli/simulate.py",
    "simulation/planning/simulate.py",
)

# What is right, so that a kept contract means something: each door is used by those who may.
RIGHT = {
    "orchestrator/app.py": "import orchestrator.store.repository, orchestrator.cluster.local, orchestrator.jobfile",
    "orchestrator/jobfile.py": "import yaml, pathlib, orchestrator.core.spec",
    "orchestrator/service/server.py": "import grpc\nfrom protos import worker_pb2\nimport orchestrator.core.machine",
    "orchestrator/store/repository.py": "import sqlalchemy, alembic, migrations, orchestrator.controller.controller",
    "orchestrator/cluster/local.py": "import kubernetes, subprocess",
    "orchestrator/timers/timers.py": "from apscheduler.schedulers import background",
    "orchestrator/cli/main.py": (
        "import grpc, orchestrator.jobfile, protos.worker_pb2\nfrom orchestrator.core import spec"
    ),
    "orchestrator/cli/simulate.py": "def play():\n    from simulation.planning import simulate",
    "simulation/planning/simulate.py": "from orchestrator.core import machine\nfrom orchestrator import jobfile",
    "orchestrator/cli/authority.py": "from cryptography import x509",
    "worker/app.py": "import torch, worker.training.loop, worker.agent.client",
    "worker/agent/client.py": "import grpc, protos.worker_pb2, worker.agent.machine",
    "worker/training/loop.py": "import torch, worker.model.moe, worker.checkpointing.writer, worker.parallel.groups",
    "protos/worker_pb2.py": "from google.protobuf import descriptor",
}

# contract, module, what it must not say
PLANTED = (
    ("core-pure", "orchestrator/core/machine.py", "import time"),
    ("core-pure", "orchestrator/core/machine.py", "from pathlib import Path"),
    ("core-pure", "orchestrator/core/machine.py", "def late():\n    import logging"),
    ("agent-machine-pure", "worker/agent/machine.py", "import threading"),
    ("orchestrator-layers", "orchestrator/controller/controller.py", "import orchestrator.store.repository"),
    ("orchestrator-layers", "orchestrator/service/server.py", "from orchestrator.timers import timers"),
    ("orchestrator-layers", "orchestrator/core/machine.py", "import orchestrator.controller.controller"),
    ("orchestrator-layers", "orchestrator/jobfile.py", "import orchestrator.controller.controller"),
    ("orchestrator-layers", "orchestrator/app.py", "import orchestrator.cli.main"),
    ("orchestrator-layers", "orchestrator/unplaced.py", ""),
    ("worker-layers", "worker/parallel/groups.py", "import worker.model.moe"),
    ("worker-layers", "worker/model/moe.py", "import worker.checkpointing.writer"),
    ("worker-layers", "worker/hostmemory/stock.py", "import worker.agent.machine"),
    ("worker-layers", "worker/unplaced.py", ""),
    ("two-programs", "worker/agent/client.py", "import orchestrator.core.spec"),
    ("two-programs", "orchestrator/cluster/local.py", "from worker import app"),
    ("production-knows-no-simulation", "orchestrator/controller/controller.py", "import simulation.world"),
    ("production-knows-no-simulation", "worker/training/loop.py", "from tests import waiting"),
    (
        "production-knows-no-simulation",
        "orchestrator/cli/main.py",
        "from simulation.planning import simulate",
    ),
    (
        "planning-plays-the-core",
        "simulation/planning/simulate.py",
        "from orchestrator.store import repository",
    ),
    ("planning-plays-the-core", "simulation/planning/simulate.py", "import torch"),
    ("protos-know-nobody", "protos/worker_pb2.py", "import worker.agent.machine"),
    ("cli", "orchestrator/cli/main.py", "import orchestrator.core.machine"),
    ("cli", "orchestrator/cli/main.py", "import orchestrator.store.repository"),
    ("cli", "orchestrator/cli/main.py", "from orchestrator import app"),
    ("agent-without-torch", "worker/agent/client.py", "import torch"),
    ("agent-without-torch", "worker/parallel/groups.py", "import torch"),  # seen through the agent, see below
    ("sql-door", "orchestrator/service/server.py", "import sqlalchemy.orm"),
    ("sql-door", "worker/training/loop.py", "import psycopg"),
    ("sql-door", "orchestrator/app.py", "import migrations"),
    ("kubernetes-door", "orchestrator/service/server.py", "from kubernetes import client"),
    ("metrics-door", "orchestrator/app.py", "import prometheus_client"),
    ("timer-door", "orchestrator/app.py", "import apscheduler"),
    ("grpc-door", "orchestrator/store/repository.py", "import grpc"),
    ("grpc-door", "worker/training/loop.py", "from google.protobuf import json_format"),
    ("certificates-door", "orchestrator/service/server.py", "from cryptography import x509"),
    ("certificates-door", "orchestrator/cli/main.py", "import cryptography"),
    ("protos-door", "orchestrator/controller/controller.py", "from protos import worker_pb2"),
    ("protos-door", "worker/training/loop.py", "import protos.worker_pb2"),
    ("tokenizer-door", "worker/training/loop.py", "import tokenizers"),
    ("wandb-door", "orchestrator/service/server.py", "import wandb"),
    ("tensor-door", "orchestrator/service/server.py", "import numpy"),
    ("tensor-door", "worker/agent/client.py", "import safetensors.torch"),
)


def contracts() -> dict[str, str]:
    """Contract id -> its name, as `.importlinter` has them."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    prefix = "importlinter:contract:"
    return {
        section.removeprefix(prefix): parser[section]["name"]
        for section in parser.sections()
        if section.startswith(prefix)
    }


def build(folder: Path, planted: dict[str, str]) -> None:
    """A bare house in `folder`: the packages, the modules of HOUSE, what is right, and what is `planted`."""
    for path in dict.fromkeys((*HOUSE, *planted)):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        for package in (target.parent, *target.parent.parents):
            if package == folder:
                break
            (package / "__init__.py").touch()
        target.write_text("\n".join((RIGHT.get(path, ""), planted.get(path, ""), "")))


def broken_contracts(folder: Path) -> set[str]:
    """The ids of the contracts that `lint-imports` finds broken in `folder`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / ".importlinter"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return {key for key, name in contracts().items() if f"{name} BROKEN" in done.stdout}


def test_a_house_that_is_right_breaks_nothing(tmp_path: Path) -> None:
    build(tmp_path, {})
    assert broken_contracts(tmp_path) == set()


@pytest.mark.parametrize("contract, path, text", PLANTED)
def test_the_contract_sees_a_planted_import(contract: str, path: str, text: str, tmp_path: Path) -> None:
    planted = {path: text}
    if contract == "agent-without-torch" and not path.startswith("worker/agent/"):
        planted["worker/agent/client.py"] = f"import {path.removesuffix('.py').replace('/', '.')}"
    build(tmp_path, planted)
    assert contract in broken_contracts(tmp_path)


def test_every_contract_has_a_planted_import() -> None:
    assert {contract for contract, _, _ in PLANTED} == set(contracts())


def test_every_package_of_production_is_under_contract() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    # Alembic runs migrations, which may import what they need; to the contracts they are a library behind the SQL door.
    packages = {name for name in PRODUCTION if (ROOT / name / "__init__.py").exists()} - {"migrations"}
    assert packages <= set(parser["importlinter"]["root_packages"].split())
