"""What the tests of the store need: a database to write to, entities and events, and child processes with faults.

A test that takes `database` runs twice, on SQLite and on PostgreSQL. The fixtures are in `conftest.py`.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from orchestrator.core import actions
from orchestrator.core.events import JobSubmitted, NodeDisconnected
from orchestrator.core.ids import ActionId, CauseId, ExpertId, GenerationNumber, IncidentId, JobId, NodeId, Rank, Step
from orchestrator.core.ids import TrainerId
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import DataSpec, JobSpec
from orchestrator.core.state import (
    Checkpoint,
    CheckpointState,
    Generation,
    GenerationKind,
    Incident,
    IncidentKind,
    Job,
    JobState,
    Member,
    Node,
    NodeState,
    Reason,
)
from orchestrator.store.engine import open_engine
from orchestrator.store.lease import ControllerLease
from orchestrator.store.repository import Repository
from orchestrator.store.schema import migrate_engine

SPEC = JobSpec(name="job", data=DataSpec(path="stdlib"))
