"""What the tests of the store share: an opened database, entities and events, and child processes to do harm to.

A test that takes the fixture `database_url` runs twice, on SQLite and on PostgreSQL (`conftest.py`).
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

from orchestrator.core import actions
from orchestrator.core.events import NodeDisconnected
from orchestrator.core.ids import (
    ActionId,
    CauseId,
    GenerationNumber,
    IncidentId,
    JobId,
    NodeId,
    Rank,
    Step,
    TrainerId,
)
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import DataSpec, JobSpec
from orchestrator.core.state import (
    Checkpoint,
    CheckpointState,
    Entity,
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
from orchestrator.store.queries import Queries
from orchestrator.store.repository import Repository
from orchestrator.store.schema import migrate_engine

NODE = NodeId("node-1")


class Opened:
    """A migrated database with a controller's lease on it, and everything that works on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = open_engine(url)
        migrate_engine(self.engine)
        self.lease = ControllerLease(self.engine)
        self.repository = Repository(self.engine, epoch=self.lease.acquire())
        self.queries = Queries(self.engine)

    def reopened(self) -> Repository:
        """The repository of the next controller, which has taken over."""
        self.lease.release()
        return Repository(self.engine, epoch=self.lease.acquire())

    def close(self) -> None:
        self.engine.dispose()


def disconnected(number: int = 1, node: NodeId = NODE) -> NodeDisconnected:
    return NodeDisconnected(
        at=100.0 + number, cause_id=CauseId(f"cause-{number}"), node=node, incarnation="i", reason="broken"
    )


def fence(number: int, node: NodeId = NODE) -> actions.Fence:
    action_id = ActionId(f"a-1-{number}")
    return actions.Fence(id=action_id, generation=GenerationNumber(1), node=node, reason="stale")


def outcome(number: int, *changes: Entity) -> Outcome:
    """An outcome with one action and one reason, both of this number."""
    return Outcome(changes=changes, actions=(fence(number),), reasons=(Reason(text=f"reason {number}"),))


def job(state: JobState = JobState.RUNNING, reason: str = "") -> Job:
    return Job(
        id=JobId("job-1"),
        spec=JobSpec(name="demo", data=DataSpec(path="stdlib")),
        state=state,
        reason=reason,
        submitted_at=10.0,
        starts=3,
    )


def node(name: str = "node-1", reason: str = "registered", changed_at: float = 1.0) -> Node:
    return Node(
        id=NodeId(name),
        state=NodeState.ACTIVE,
        cordoned=False,
        incarnation="i",
        labels=(("rack", "a"), ("zone", "b")),
        agent_pid=4711,
        reason=reason,
        changed_at=changed_at,
    )


def generation(
    number: int, kind: GenerationKind = GenerationKind.IMMEDIATE, began_at: float | None = 5.0
) -> Generation:
    members = tuple(
        Member(
            trainer=TrainerId(f"node-{index}/0"),
            start=1,
            rank=Rank(index),
            store_address=f"10.0.0.{index}:1",
            peer_address=f"10.0.0.{index}:2",
        )
        for index in range(2)
    )
    return Generation(
        number=GenerationNumber(number),
        kind=kind,
        members=members,
        placement=((Rank(0), Rank(1)), (Rank(1), Rank(0))),
        deal=((0, 2), (1,)),
        restore_name="",
        restore_step=Step(0),
        incident=None,
        reason="node-2 is gone",
        created_at=4.0,
        began_at=began_at,
    )


def incident(number: int = 1, restored_at: float | None = None) -> Incident:
    return Incident(
        id=IncidentId(f"incident-{number}"),
        kind=IncidentKind.NODE_LOST,
        node=NODE,
        cause="no heartbeat for 3 s",
        action="failed over to backups",
        reasons=("expert 3: node-2/0 takes over", "no spare is ready"),
        generation=GenerationNumber(2),
        first_sign_at=50.0 + number,
        detected_at=51.0 + number,
        restored_at=restored_at,
    )


def checkpoint(number: int, state: CheckpointState = CheckpointState.SEALED) -> Checkpoint:
    return Checkpoint(
        request=f"request-{number}",
        state=state,
        generation=GenerationNumber(1),
        step=Step(10 * number),
        name=f"step-{10 * number:08d}.g0001",
        path=f"/w/checkpoints/step-{10 * number:08d}.g0001",
        shards=('{"rank": 0}', ""),
        bytes=2**40,
        requested_at=float(number),
        sealed_at=number + 0.5,
        reason="",
    )


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`, with pipes to and from it. End it with `with`, kill it as you like."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
