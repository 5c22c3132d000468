"""A controller with a scripted core behind a real Admin service, database and runner, and a client of it.

The core is scripted so that each command has an answer that a test knows; everything around it is real.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import grpc
import grpc.aio
import pytest

from orchestrator.controller.controller import Controller, Ports
from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ledger import LEDGER_FILE, FileLedger
from orchestrator.controller.runner import Runner
from orchestrator.core import events
from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.ids import NodeId
from orchestrator.core.machine import Machine
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState, JobState, Reason
from orchestrator.service import views
from orchestrator.service.access import Gate
from orchestrator.service.admin_api import AdminApi, AdminLimits, Sources
from orchestrator.service.causes import Causes
from orchestrator.service.commands import Commands, Refusals, Witness
from orchestrator.service.interceptors import CallLimits
from orchestrator.service.ledger_view import LedgerFollower
from orchestrator.service.reasons import ReasonsFollower
from orchestrator.service.server import Server
from orchestrator.service.tls import ServerTls
from orchestrator.store import schema
from orchestrator.store.engine import open_engine
from orchestrator.store.lease import ControllerLease
from orchestrator.store.queries import Queries
from orchestrator.store.repository import Repository
from protos import admin_pb2_grpc, worker_pb2_grpc
from tests.cluster_states import NOW, ended, working

WAIT_SECONDS = 5.0
TOKEN = "0123456789abcdef"


class ScriptedCore:
    """Answers each command with words of its own, and a stop by ending the job."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.seen: list[Event] = []

    def handle(self, event: Event) -> Outcome:
        self.seen.append(event)
        match event:
            case events.DrainRequested() | events.CordonRequested():
                node = replace(self.state.nodes[event.node], cordoned=True)
                self.state.nodes[event.node] = node
                words = f"{event.node} is cordoned for {event.by}"
                return Outcome(
                    changes=(node,), reasons=(Reason(text=words), Reason(text="its seat moves first"))
                )
            case events.CheckpointRequested():
                incident = next(iter(self.state.incidents))
                return Outcome(reasons=(Reason(text=f"a checkpoint for {event.by}", incident=incident),))
            case events.StopRequested():
                job = ended(JobState.STOPPED).job
                assert job is not None
                self.state.job = job
                return Outcome(changes=(job,), reasons=(Reason(text="the job stops"),))
            case events.ShutdownRequested() | events.CommandRefused():
                return Machine(self.state).handle(event)
            case _:
                return Outcome()


class NoCluster:
    """Ports that nothing in these tests may need."""

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        raise AssertionError(f"start {node}")

    def stop_node(self, node: NodeId, reason: str) -> None:
        raise AssertionError(f"stop {node}: {reason}")

    def send(self, action: Action) -> bool:
        raise AssertionError(f"send {action}")

    def job_ended(self, succeeded: bool, reason: str) -> None:
        raise AssertionError(reason)


class FixedClock:
    def now(self) -> float:
        return NOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """A controller with a scripted core behind a real Admin service, and a client of it."""

    stub: admin_pb2_grpc.AdminStub
    channel: grpc.aio.Channel
    address: str
    core: ScriptedCore
    runner: Runner
    ledger: FileLedger
    api: AdminApi
    shutdowns: list[str]


@cache
def _migrated() -> bytes:
    """An empty database with the newest schema; migrating takes longer than any test here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "controller.db"
        schema.migrate(f"sqlite:///{path}")
        return path.read_bytes()


def _database(path: Path) -> str:
    path.write_bytes(_migrated())
    return f"sqlite:///{path}"


@asynccontextmanager
async def administered(
    workdir: Path,
    state: ClusterState | None = None,
    *,
    gate: Gate | None = None,
    tls: ServerTls | None = None,
    calls: CallLimits | None = None,
    limits: AdminLimits | None = None,
) -> AsyncIterator[Admin]:
    """Serve a state until the block ends. With `tls` the client that is given cannot speak: make others."""
    url = _database(workdir / "controller.db")
    engine = open_engine(url)
    lease = ControllerLease(engine)
    lease.acquire()
    witness = Witness(Repository(engine, epoch=lease.epoch))
    queries, ledger, inbox = Queries(engine), FileLedger(workdir), Inbox()
    state = working() if state is None else state
    core, nothing, shutdowns = ScriptedCore(state), NoCluster(), list[str]()
    ports = Ports(store=witness, cluster=nothing, messenger=nothing, ledger=ledger, ending=nothing)
    failures: list[BaseException] = []
    runner = Runner(
        controller=Controller(machine=core, state=state, ports=ports), inbox=inbox, on_fatal=failures.append
    )
    api = AdminApi(
        sources=Sources(
            inspect=runner.inspect,
            queries=queries,
            reasons=ReasonsFollower(queries, limit=views.RECENT_REASONS),
            ledger=LedgerFollower(workdir / LEDGER_FILE, recent=views.RECENT_LOSSES),
            ledger_path=workdir / LEDGER_FILE,
            workdir=workdir,
            clock=FixedClock(),
        ),
        commands=Commands(inbox=inbox, witness=witness, limit_seconds=WAIT_SECONDS),
        causes=Causes(),
        end=shutdowns.append,
        limits=limits,
    )
    runner.start()
    refusals = Refusals(inbox=inbox, clock=FixedClock(), causes=Causes())
    server = Server(gate=gate, tls=tls, on_refused=refusals.note, calls=calls)
    address = server.bind("127.0.0.1", 0)
    await server.start(worker=worker_pb2_grpc.WorkerServicer(), admin=api)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Admin(
                stub=admin_pb2_grpc.AdminStub(channel),
                channel=channel,
                address=address,
                core=core,
                runner=runner,
                ledger=ledger,
                api=api,
                shutdowns=shutdowns,
            )
    finally:
        await server.stop(0.5)
        assert await asyncio.to_thread(runner.stop, WAIT_SECONDS)
        ledger.close()
        engine.dispose()
    assert not failures


def run(workdir: Path, story: Callable[[Admin], Awaitable[None]], state: ClusterState | None = None) -> None:
    """Tell a story to a served controller, within a limit."""

    async def told() -> None:
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(workdir, state) as admin:
            await story(admin)

    asyncio.run(told())


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """How a call was refused; AssertionError when it was answered."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""
