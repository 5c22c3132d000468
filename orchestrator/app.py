"""The composition root: the one place that sees every part, wires them, and ends them in order.

A controller process: bring the database up to date, become the one controller, load the state, find out what to begin
with (a new job, a restart, a resumption), serve, and end for one of four reasons. Nothing here decides anything about
a job; that is `core/`. Next: `controller/runner.py`, the thread that everything else feeds.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from orchestrator import expert_choice
from orchestrator.beginnings import Beginning, First, beginning, first_events, job_file, prepare_workdir
from orchestrator.cluster import devices
from orchestrator.cluster.kube.pods import Attached, PodCluster
from orchestrator.cluster.nodes import Nodes, NodeSource
from orchestrator.cluster.processes import living_nodes
from orchestrator.controller.controller import Controller, Ports
from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ledger import LEDGER_FILE, FileLedger
from orchestrator.controller.ports import LeaseLost, LedgerError, StoreError
from orchestrator.controller.runner import Chore, Runner
from orchestrator.controller.validations import VALIDATIONS_FILE
from orchestrator.core.machine import Machine
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import ClusterState, Job, JobState
from orchestrator.dashboard.web import Web, WebError
from orchestrator.jobfile import JobFileError
from orchestrator.loggers import wandb_logger
from orchestrator.loggers.chosen import loggers_of
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.told import Told
from orchestrator.service import copy_token, views, whereabouts
from orchestrator.service.admin_api import ENDED, AdminApi, Sources
from orchestrator.service.causes import Causes
from orchestrator.service.commands import Commands, Refusals, Witness
from orchestrator.service.ledger_view import LedgerFollower
from orchestrator.service.protection import Protection, protection
from orchestrator.service.reasons import ReasonsFollower
from orchestrator.service.server import ListenError, Server
from orchestrator.service.worker_api import WorkerApi
from orchestrator.settings import (
    ExitCode,
    Settings,
    SettingsError,
)
from orchestrator.sources import Kubernetes, kubernetes, node_source
from orchestrator.store import schema
from orchestrator.store.engine import Durability, open_engine, parse_url
from orchestrator.store.lease import LEASE_SECONDS, ControllerLease, LeaseHeld
from orchestrator.store.queries import MAX_LIMIT, Queries
from orchestrator.store.repository import Repository
from orchestrator.timers.timers import Periods, Timers

log = logging.getLogger(__name__)

COMMAND_SECONDS = 8.0
"""How long a person's command may take to be handled."""
LEASE_WAIT_SECONDS = 2.0 * LEASE_SECONDS
"""How long a new controller waits for the lease of one that has fallen silent."""
NODES_END_SECONDS = 20.0
"""How long a shutdown waits for the nodes."""
SERVER_GRACE_SECONDS = 2.0
RUNNER_END_SECONDS = 10.0
LOGGERS_END_SECONDS = 10.0
STANDBY_SECONDS = 0.25
"""Between two looks of one that stands by at the lease of the one in charge."""
FLUSH_SECONDS = 0.5
RETRY_SECONDS = 1.0
TRIM_SECONDS = 300.0


class WallClock:
    """The Clock port: seconds since the epoch."""

    def now(self) -> float:
        return time.time()


class EndKind(Enum):
    """Why a controller process ends."""

    SIGNAL = "signal"
    """Told by a signal: the nodes stay."""
    SHUTDOWN = "shutdown"
    """Told by a person: the nodes end too."""
    DONE = "done"
    """The job has ended, with --exit-when-done."""
    FATAL = "fatal"
    """The runner cannot go on: the nodes stay, the next controller loads the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a controller process, and what led to it."""

    kind: EndKind
    reason: str
    error: BaseException | None = None
    succeeded: bool = True
    """Of the job, when that is why."""


def run(settings: Settings) -> int:
    """One controller process from start to end; its exit status. Raises SettingsError for bad input."""
    try:
        parse_url(settings.database)
    except StoreError as error:  # the URL may hold a password: it is not shown
        raise SettingsError("--database", None, str(error)) from error
    with _web(settings) as web:
        found = kubernetes(settings)
        spec = found.job.spec if found is not None else job_file(settings)
        protected = protection(settings)
        if spec is not None and settings.starts_agents:
            devices.check(spec.cluster, settings.job_file)
        if spec is not None:
            wandb_logger.check(spec, settings.job_file)
        prepare_workdir(settings)
        return _run_or_say_why_not(settings, spec, protected, found, web)


def _run_or_say_why_not(
    settings: Settings,
    spec: JobSpec | None,
    protected: Protection,
    found: Kubernetes | None,
    web: Web | None,
) -> int:
    """The exit status. Raises SettingsError."""
    try:
        return _run_as_the_one(settings, spec, protected, found, web)
    except ListenError as error:
        raise SettingsError("--listen", f"{settings.host}:{settings.port}", str(error)) from error
    except (StoreError, LedgerError) as error:
        log.critical("%s", error)
        return exit_code(error)


def exit_code(error: BaseException) -> ExitCode:
    """The status of a process that ends with this error."""
    if isinstance(error, LeaseHeld | LeaseLost):
        return ExitCode.LEASE_HELD
    if isinstance(error, schema.SchemaTooNew):
        return ExitCode.BAD_INPUT
    return ExitCode.STORE_FAILED if isinstance(error, StoreError | LedgerError) else ExitCode.FAILED


def _durability(settings: Settings) -> Durability:
    """Agents elsewhere outlive a power failure here and remember what they were told; on loopback there are none."""
    alone = settings.host in ("127.0.0.1", "::1", "localhost")
    return Durability.PROCESS_DEATH if alone else Durability.POWER_FAILURE


def _run_as_the_one(
    settings: Settings,
    spec: JobSpec | None,
    protected: Protection,
    found: Kubernetes | None,
    web: Web | None,
) -> int:
    """Take the lease, load, serve, and give everything back."""
    name = settings.database_schema
    schema.migrate(settings.database, name)
    engine = open_engine(settings.database, durability=_durability(settings), schema=name)
    lease = ControllerLease(engine)
    try:
        _acquire(lease, settings)
        try:
            repository = Repository(engine, epoch=lease.epoch)
            state = repository.load()
            nodes_live = not settings.starts_agents or bool(living_nodes(settings.workdir))
            if found is not None and state.job is not None:
                spec = None  # what has changed in the object since is heeded while the job runs
            spec = _with_experts(spec, state.job, lease, settings)
            begin = beginning(settings, spec, state.job, nodes_live=nodes_live)
            chosen = spec or (state.job.spec if state.job else None)
            assert chosen is not None, "beginning() refuses to begin without a job"
            log.info("beginning with %s: %s", begin.value, chosen.name)
            with _ledger(settings.workdir) as ledger:
                made = _Made(
                    settings=settings,
                    protection=protected,
                    spec=chosen,
                    begin=begin,
                    state=state,
                    lease=lease,
                    repository=repository,
                    queries=Queries(engine),
                    ledger=ledger,
                    kubernetes=found,
                    web=web,
                )
                end = asyncio.run(_serve(made))
        finally:
            _release(lease)
    finally:
        engine.dispose()
    log.info("the controller has ended: %s", end.reason)
    left = living_nodes(settings.workdir)
    if left:
        log.info("%s train on: start a controller on %s to go on", ", ".join(left), settings.workdir)
    if end.error is not None:
        return exit_code(end.error)
    return ExitCode.OK if end.succeeded else ExitCode.FAILED


def _with_experts(
    spec: JobSpec | None, stored: Job | None, lease: ControllerLease, settings: Settings
) -> JobSpec | None:
    """The job with its experts chosen, if it leaves that to a sample. Raises SettingsError."""
    if spec is None:
        return None
    try:
        return expert_choice.settled(spec, stored.spec if stored else None, waiting=lease.keep)
    except JobFileError as error:
        words = f"cannot run, nothing was started:\n{error}"
        raise SettingsError("--job", settings.job_file, words) from error


def _acquire(lease: ControllerLease, settings: Settings) -> None:
    """Become the one controller; with --standby, however long another one is. Raises LeaseHeld, StoreError."""
    said = False
    while True:
        try:
            lease.acquire(LEASE_WAIT_SECONDS)
            return
        except LeaseHeld as held:
            if not settings.standby:
                raise
            if not said:
                log.info("standing by: %s", held)
            said = True
            time.sleep(STANDBY_SECONDS)


@contextmanager
def _web(settings: Settings) -> Iterator[Web | None]:
    """Metrics and the probe, from before this process leads until after it does. Raises SettingsError."""
    if settings.metrics is None:
        yield None
        return
    try:
        web = Web(*settings.metrics)
    except WebError as error:
        raise SettingsError(
            "--metrics", f"{settings.metrics[0]}:{settings.metrics[1]}", str(error)
        ) from error
    web.start()
    try:
        yield web
    finally:
        web.stop()


@contextmanager
def _ledger(workdir: Path) -> Iterator[FileLedger]:
    ledger = FileLedger(workdir)
    try:
        yield ledger
    finally:
        ledger.close()


def _release(lease: ControllerLease) -> None:
    """Let the next controller start at once; without it that one waits until the lease has run out."""
    try:
        lease.release()
    except StoreError as error:
        log.warning("the lease was not given back: %s", error)


# ---- while it runs ----


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What exists before the event loop does."""

    settings: Settings
    protection: Protection
    spec: JobSpec
    begin: Beginning
    state: ClusterState
    lease: ControllerLease
    repository: Repository
    queries: Queries
    ledger: FileLedger
    kubernetes: Kubernetes | None
    web: Web | None


class _Endings:
    """The Ending port, and whoever else may end this process: the first one counts. For any thread."""

    def __init__(self, *, exit_when_done: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._exit_when_done = exit_when_done
        self.ended: asyncio.Future[End] = self._loop.create_future()

    def job_ended(self, succeeded: bool, reason: str) -> None:
        log.info("the job has ended: %s", reason)
        if self._exit_when_done:
            self._end(End(kind=EndKind.DONE, reason=f"the job has ended: {reason}", succeeded=succeeded))

    def job_was_over(self, made: _Made) -> None:
        """Nothing will end a job that had ended before this controller began."""
        job = made.state.job
        if made.begin is Beginning.RESTART and job is not None and job.state in ENDED:
            self.job_ended(job.state is not JobState.FAILED, job.reason)

    def shut_down(self, reason: str) -> None:
        self._end(End(kind=EndKind.SHUTDOWN, reason=reason))

    def signalled(self, number: signal.Signals) -> None:
        self._end(End(kind=EndKind.SIGNAL, reason=f"{number.name} was received"))

    def failed(self, error: BaseException) -> None:
        self._end(End(kind=EndKind.FATAL, reason=f"{type(error).__name__}: {error}", error=error))

    def _end(self, end: End) -> None:
        def settle() -> None:
            if not self.ended.done():
                self.ended.set_result(end)

        self._loop.call_soon_threadsafe(settle)


async def _serve(made: _Made) -> End:
    """Wire everything, run until something ends it, end it in order."""
    settings = made.settings
    endings = _Endings(exit_when_done=settings.exit_when_done)
    causes, clock, inbox = Causes(), WallClock(), Inbox()
    refusals = Refusals(inbox=inbox, clock=clock, causes=causes)
    server = Server(gate=made.protection.gate, tls=made.protection.tls, on_refused=refusals.note)
    address = _bind(server, settings)
    cluster = node_source(settings, made.spec, address, made.kubernetes)
    pods = cluster if isinstance(cluster, PodCluster) else None
    worker = WorkerApi(inbox=inbox, clock=clock, causes=causes, copy_token=_copy_token(made), admits=pods)
    witness = Witness(made.repository)
    nodes = Nodes(cluster=cluster, dismiss=worker.dismiss, assure=made.lease.assure)
    ports = Ports(store=witness, cluster=nodes, messenger=worker, ledger=made.ledger, ending=endings)
    machine = Machine(made.state)
    controller = Controller(machine=machine, state=made.state, ports=ports)
    runner = Runner(
        controller=controller, inbox=inbox, chores=_chores(made, controller), on_fatal=endings.failed
    )
    admin = AdminApi(
        sources=_sources(made, runner, clock),
        commands=Commands(inbox=inbox, witness=witness, limit_seconds=COMMAND_SECONDS),
        causes=causes,
        end=endings.shut_down,
    )
    timers = Timers(put=inbox.put, clock=clock, periods=Periods())
    running = _Running(
        server=server,
        worker=worker,
        admin=admin,
        timers=timers,
        runner=runner,
        cluster=cluster,
        loggers=loggers_of(_told(made, clock), settings.workdir),
    )
    with _signals(endings):
        try:
            if made.begin is Beginning.RESUME:
                await asyncio.to_thread(cluster.stop_all, "it is left from an earlier run", NODES_END_SECONDS)
            # Before the first registration: what the last controller left undone, then what this one begins with.
            controller.perform_unfinished()
            first = First(begin=made.begin, spec=made.spec, state=made.state, workdir=settings.workdir)
            for event in first_events(first, causes, clock.now()):
                inbox.put(event)
            runner.start()
            timers.start()
            if pods is not None:
                pods.attach(Attached(ears=runner, cause=causes.fresh, assure=made.lease.assure))
            if made.web is not None:
                made.web.metrics.inspect = runner.inspect
            await server.start(worker=worker, admin=admin)
            whereabouts.write(
                settings.workdir,
                address=address,
                job=made.spec.name,
                started_at=clock.now(),
                tls=made.protection.tls is not None,
            )
            log.info("listening on %s", address)
            for each in running.loggers:
                each.start()
            endings.job_was_over(made)
            end = await endings.ended
        except BaseException:
            await running.end(nodes_too=False, reason="the controller could not start")
            raise
        log.info("ending: %s", end.reason)
        await running.end(nodes_too=end.kind in (EndKind.SHUTDOWN, EndKind.DONE), reason=end.reason)
    return end


def _copy_token(made: _Made) -> str:
    """Of the trainers that live already, or of those that are about to be started."""
    workdir = made.settings.workdir
    return copy_token.kept(workdir) if made.begin is Beginning.RESTART else copy_token.fresh(workdir)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The parts that have to be ended again, in order."""

    server: Server
    worker: WorkerApi
    admin: AdminApi
    timers: Timers
    runner: Runner
    cluster: NodeSource
    loggers: tuple[Logger, ...]

    async def end(self, *, nodes_too: bool, reason: str) -> None:
        """Stop listening to nodes, end them if asked, answer who still waits, then handle what is left and stop."""
        self.worker.fall_silent()
        await asyncio.to_thread(self.timers.stop)
        if nodes_too:
            self.worker.dismiss_all(reason)
            if not await asyncio.to_thread(self.cluster.stop_all, reason, NODES_END_SECONDS):
                log.error("nodes are still there after %.0f s: %s", NODES_END_SECONDS, self.cluster.living())
        self.admin.close()
        self.worker.close(reason)
        await self.server.stop(SERVER_GRACE_SECONDS)
        if not await asyncio.to_thread(self.runner.stop, RUNNER_END_SECONDS):
            log.error("the runner has not ended within %.0f s", RUNNER_END_SECONDS)
        for each in self.loggers:  # what the runner has put down to the last
            if not await asyncio.to_thread(each.stop, LOGGERS_END_SECONDS):
                log.info("a logger has not told everything; it does when the job goes on")
        await asyncio.to_thread(self.cluster.close, RUNNER_END_SECONDS)


def _bind(server: Server, settings: Settings) -> str:
    """Take the port that was asked for; for port 0, the one that living agents know. The address as they dial it."""
    host, port = settings.host, settings.port or whereabouts.last_port(settings.workdir)
    try:
        address = server.bind(host, port)
    except ListenError:
        if settings.port or living_nodes(settings.workdir):
            raise
        address = server.bind(host, 0)
    return whereabouts.dialled(address)


def _chores(made: _Made, controller: Controller) -> tuple[Chore, ...]:
    """name | period | what, on the runner's thread."""
    return (
        Chore(name="keep the lease", period_seconds=made.lease.renew_seconds, run=made.lease.keep),
        Chore(name="write what is batched", period_seconds=FLUSH_SECONDS, run=made.repository.flush),
        Chore(name="retry failed actions", period_seconds=RETRY_SECONDS, run=controller.retry_failed),
        Chore(name="trim the log", period_seconds=TRIM_SECONDS, run=made.repository.trim),
    )


def _sources(made: _Made, runner: Runner, clock: WallClock) -> Sources:
    ledger_path = made.settings.workdir / LEDGER_FILE
    return Sources(
        inspect=runner.inspect,
        queries=made.queries,
        reasons=ReasonsFollower(made.queries, limit=views.RECENT_REASONS),
        ledger=LedgerFollower(ledger_path, recent=views.RECENT_LOSSES),
        ledger_path=ledger_path,
        workdir=made.settings.workdir,
        clock=clock,
    )


def _told(made: _Made, clock: WallClock) -> Told:
    workdir = made.settings.workdir
    return Told(
        spec=made.spec,
        ledger=workdir / LEDGER_FILE,
        validations=workdir / VALIDATIONS_FILE,
        incidents=lambda: made.queries.incidents(limit=MAX_LIMIT),
        clock=clock.now,
    )


@contextmanager
def _signals(endings: _Endings) -> Iterator[None]:
    """SIGTERM and SIGINT end the process in order while this lasts."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, endings.signalled, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
