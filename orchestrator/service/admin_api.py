"""The Admin service: what people ask is answered from a snapshot, what they command becomes an event.

A command is answered when the core has handled it, with the core's own words. No decision is made here, and nothing
is changed around the core; ending the process itself (Shutdown) is handed to the composition root. Replies are drawn
in `views.py` and `summary.py`. Next: `commands.py`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypedDict, TypeVar, get_args

import grpc
import grpc.aio

from orchestrator.controller import ledger_lines
from orchestrator.controller.ports import Clock, LedgerError, StoreError
from orchestrator.controller.runner import RunnerBusy, RunnerStopped
from orchestrator.core import events
from orchestrator.core.asker import Asker
from orchestrator.core.events import Event
from orchestrator.core.ids import IncidentId, NodeId
from orchestrator.core.state import ClusterState, JobState
from orchestrator.service import snapshot as snapshots
from orchestrator.service import summary, views
from orchestrator.service.access import CALLER
from orchestrator.service.causes import Causes
from orchestrator.service.commands import Busy, Commands
from orchestrator.service.interceptors import asker_of, name_of
from orchestrator.service.ledger_view import LedgerFollower, LedgerView
from orchestrator.service.reasons import ReasonsFollower
from orchestrator.service.snapshot import Snapshot
from orchestrator.store.queries import AuditRow, EventRow, Queries
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
NodeEvent: TypeAlias = events.DrainRequested | events.CordonRequested | events.UncordonRequested

EVENT_KINDS = tuple(sorted(kind.__name__ for kind in get_args(Event)))
ENDED = (JobState.STOPPED, JobState.FINISHED, JobState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminLimits:
    """Every limit of this service, by name."""

    read_seconds: float = 5.0
    """How long a reader waits for its picture of the state."""
    watchers: int = 64
    interval_seconds: float = 0.25
    shortest_interval_seconds: float = 0.05
    longest_interval_seconds: float = 60.0
    events: int = 200
    """Events in one reply when the caller names no number."""
    most_events: int = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where answers come from."""

    inspect: Callable[[Callable[[ClusterState], Snapshot]], Future[Snapshot]]
    """`Runner.inspect`: runs a function on the state between two events."""
    queries: Queries
    reasons: ReasonsFollower
    ledger: LedgerFollower
    ledger_path: Path
    workdir: Path
    clock: Clock


class AdminApi(admin_pb2_grpc.AdminServicer):
    """The Admin service. `end` asks the composition root to end nodes and controller; it returns at once."""

    def __init__(
        self,
        *,
        sources: Sources,
        commands: Commands,
        causes: Causes,
        end: Callable[[str], None],
        limits: AdminLimits | None = None,
    ) -> None:
        self._sources = sources
        self._commands = commands
        self._causes = causes
        self._end = end
        self._limits = limits or AdminLimits()
        self._watchers = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Have watchers leave: the controller is ending. On the loop only."""
        self._closing.set()

    # ---- questions ----

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesReply:  # noqa: N802
        del request
        return pb.ListNodesReply(nodes=views.nodes(await self._snapshot(context), self._now()))

    async def ListExperts(self, request: pb.ListExpertsRequest, context: Context) -> pb.ListExpertsReply:  # noqa: N802
        del request
        snapshot = await self._snapshot(context)
        ledger = await self._ledger(context, snapshot)
        return pb.ListExpertsReply(experts=views.experts(snapshot, ledger, self._now()))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsReply:  # noqa: N802
        del request
        snapshot, at = await self._snapshot(context), self._sources.clock.now()
        return pb.ListJobsReply(jobs=views.jobs(snapshot, str(self._sources.workdir), at))

    async def ListIncidents(  # noqa: N802
        self, request: pb.ListIncidentsRequest, context: Context
    ) -> pb.ListIncidentsReply:
        del request
        snapshot, at = await self._snapshot(context), self._sources.clock.now()
        return pb.ListIncidentsReply(incidents=views.incidents(snapshot, at))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsReply:  # noqa: N802
        if request.after_sequence < 0 or request.limit < 0:
            await _refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, "after_sequence and limit must not be negative"
            )
        limit = min(request.limit or self._limits.events, self._limits.most_events)
        if request.kind and request.kind not in EVENT_KINDS:
            words = f"no kind of event is called {request.kind!r}; known are {', '.join(EVENT_KINDS)}"
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, words)
        queries = self._sources.queries
        found = await self._read(
            context, lambda: queries.events(after=request.after_sequence, limit=limit, kind=request.kind)
        )
        return pb.ListEventsReply(events=[_event(each) for each in found])

    async def ListSnapshots(  # noqa: N802
        self, request: pb.ListSnapshotsRequest, context: Context
    ) -> pb.ListSnapshotsReply:
        """What agents hold in host memory, newest first."""
        return pb.ListSnapshotsReply(snapshots=views.snapshots(await self._snapshot(context)))

    async def ListCheckpoints(  # noqa: N802
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsReply:
        del request
        return pb.ListCheckpointsReply(checkpoints=views.checkpoints(await self._snapshot(context)))

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditReply:  # noqa: N802
        if request.after_sequence < 0 or request.limit < 0:
            await _refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, "after_sequence and limit must not be negative"
            )
        limit = min(request.limit or self._limits.events, self._limits.most_events)
        queries = self._sources.queries
        found = await self._read(context, lambda: queries.audit(after=request.after_sequence, limit=limit))
        return pb.ListAuditReply(entries=[_audit_entry(each) for each in found])

    async def GetGeneration(  # noqa: N802
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationReply:
        del request
        return views.generation(await self._snapshot(context))

    async def ExplainIncident(  # noqa: N802
        self, request: pb.ExplainIncidentRequest, context: Context
    ) -> pb.ExplainIncidentReply:
        snapshot = await self._snapshot(context)
        unknown = views.unknown_incident(snapshot, request.incident)
        if unknown is not None:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, unknown)
        incident = IncidentId(request.incident)
        found = await self._read(context, lambda: self._sources.queries.events_of(incident))
        shown = views.incident_view(snapshot.incidents[incident], self._sources.clock.now())
        return pb.ExplainIncidentReply(incident=shown, events=[_event(each) for each in found])

    async def Summarize(self, request: pb.SummarizeRequest, context: Context) -> pb.SummarizeReply:  # noqa: N802
        del request
        snapshot = await self._snapshot(context)
        each_step = summary.samples_per_step(snapshot)
        totals = await self._read(context, lambda: ledger_lines.sum_up(self._sources.ledger_path, each_step))
        ledger = await self._ledger(context, snapshot)
        return pb.SummarizeReply(json=summary.summary(snapshot, totals, ledger, self._now()))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.JobView]:  # noqa: N802
        """Views at an interval, until the caller leaves or the job has ended; the last view shows the end."""
        if self._watchers >= self._limits.watchers:
            words = f"{self._limits.watchers} watchers are connected already, which is the limit"
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        interval = self._interval(request.interval_seconds)
        if interval is None:
            words = f"interval_seconds: {request.interval_seconds} is not a number of seconds"
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, words)
        self._watchers += 1
        try:
            ended = False
            while not ended:
                # Once the controller is ending nobody waits any longer, but the last state is still shown.
                ended = self._closing.is_set()
                view, job_ended = await self._view(context)
                yield view
                ended = ended or job_ended
                if not ended:
                    await self._pause(interval)
        finally:
            self._watchers -= 1

    async def _view(self, context: Context) -> tuple[pb.JobView, bool]:
        snapshot = await self._snapshot(context)
        ledger = await self._ledger(context, snapshot)
        reasons = await self._read(context, self._sources.reasons.look)
        view = views.job_screen(snapshot, ledger, reasons, str(self._sources.workdir), self._now())
        return view, snapshot.job is not None and snapshot.job.state in ENDED

    def _interval(self, said: float) -> float | None:
        if not (math.isfinite(said) and said >= 0.0):
            return None
        limits = self._limits
        chosen = said or limits.interval_seconds
        return min(max(chosen, limits.shortest_interval_seconds), limits.longest_interval_seconds)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass  # the usual case: it is time for the next view

    # ---- commands ----

    async def Drain(self, request: pb.NodeCommand, context: Context) -> pb.CommandReply:  # noqa: N802
        return await self._about_node(request, context, events.DrainRequested, "drain")

    async def Cordon(self, request: pb.NodeCommand, context: Context) -> pb.CommandReply:  # noqa: N802
        return await self._about_node(request, context, events.CordonRequested, "cordon")

    async def Uncordon(self, request: pb.NodeCommand, context: Context) -> pb.CommandReply:  # noqa: N802
        return await self._about_node(request, context, events.UncordonRequested, "uncordon")

    async def TakeCheckpoint(self, request: pb.TakeCheckpointCommand, context: Context) -> pb.CommandReply:  # noqa: N802
        await self._running_job(context)
        cause = self._causes.fresh("checkpoint")
        event = events.CheckpointRequested(at=self._now(), cause_id=cause, **_asked(request.by, context))
        return await self._command(event, context)

    async def Stop(self, request: pb.StopCommand, context: Context) -> pb.CommandReply:  # noqa: N802
        await self._running_job(context)
        cause = self._causes.fresh("stop")
        event = events.StopRequested(at=self._now(), cause_id=cause, **_asked(request.by, context))
        return await self._command(event, context)

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.CommandReply:  # noqa: N802
        job = (await self._snapshot(context)).job
        running = job is not None and job.state not in ENDED
        if running and not request.force:
            await _refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "the job runs: stop it first (then there is a checkpoint to resume from), or force its end as it is",
            )
        cause = self._causes.fresh("shutdown")
        event = events.ShutdownRequested(
            at=self._now(), cause_id=cause, force=request.force, **_asked(request.by, context)
        )
        reply = await self._command(event, context)
        self._end(f"shutdown by {event.by}")
        return reply

    async def _about_node(
        self, request: pb.NodeCommand, context: Context, make: Callable[..., NodeEvent], name: str
    ) -> pb.CommandReply:
        unknown = views.unknown_node(await self._snapshot(context), request.node)
        if unknown is not None:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, unknown)
        cause = self._causes.fresh(name)
        event = make(at=self._now(), cause_id=cause, node=NodeId(request.node), **_asked(request.by, context))
        return await self._command(event, context)

    async def _running_job(self, context: Context) -> None:
        job = (await self._snapshot(context)).job
        if job is None:
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "there is no job yet")
        if job.state in ENDED:
            words = f"the job has ended: it is {job.state.value} ({job.reason})"
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, words)

    async def _command(self, event: Event, context: Context) -> pb.CommandReply:
        try:
            outcome = await self._commands.ask(event)
        except Busy as busy:
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(busy))
        words = "; ".join(reason.text for reason in outcome.reasons)
        return pb.CommandReply(message=words or "nothing to do: it is so already")

    # ---- reading ----

    def _now(self) -> float:
        return self._sources.clock.now()

    async def _snapshot(self, context: Context) -> Snapshot:
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                return await asyncio.wrap_future(self._sources.inspect(snapshots.take))
        except TimeoutError:
            words = (
                f"the controller is busy and has not answered for {self._limits.read_seconds:g} s: try again"
            )
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        except RunnerBusy as error:
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except RunnerStopped as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))

    async def _ledger(self, context: Context, snapshot: Snapshot) -> LedgerView:
        since = (snapshot.job.started_at or 0.0) if snapshot.job else 0.0
        return await self._read(context, lambda: self._sources.ledger.look(since=since))

    async def _read(self, context: Context, read: Callable[[], T]) -> T:
        """Something that touches a disk, off the loop."""
        try:
            return await asyncio.to_thread(read)
        except (OSError, ValueError, LedgerError, StoreError) as error:
            await _refuse(context, grpc.StatusCode.INTERNAL, str(error))


async def _refuse(context: Context, code: grpc.StatusCode, words: str) -> NoReturn:
    await context.abort(code, words)
    raise AssertionError("abort does not return")


class _Asked(TypedDict):
    """What all commands share, unpacked into their events."""

    by: str
    asker: Asker


def _asked(claimed: str, context: Context) -> _Asked:
    caller = CALLER.get()
    return {"by": name_of(caller, claimed), "asker": asker_of(caller, claimed, context.peer())}


def _audit_entry(row: AuditRow) -> pb.AuditEntry:
    return pb.AuditEntry(
        sequence=row.sequence,
        at=row.at,
        command=row.command,
        arguments=json.dumps(dict(row.arguments), ensure_ascii=False),
        by=row.requested_by,
        identity=row.identity,
        role=row.role,
        peer=row.peer,
        claimed=row.claimed,
        result=row.result,
        words=row.words,
        event=row.event,
    )


def _event(logged: EventRow) -> pb.Event:
    return pb.Event(
        sequence=logged.sequence,
        at=logged.at,
        kind=logged.kind,
        cause_id=logged.cause_id,
        detail=json.dumps(dict(logged.detail), ensure_ascii=False),
        reasons=logged.reasons,
    )
