"""The Admin service over real gRPC: what people ask and command, down to a real database and a real runner."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from orchestrator.core import events
from orchestrator.core.state import ClusterState, JobState
from orchestrator.service.access import Gate
from orchestrator.service.admin_api import AdminLimits
from orchestrator.service.server import ADMIN_SERVICE, WORKER_SERVICE
from protos import admin_pb2 as pb
from tests.cluster_states import NOW, ended, record
from tests.integration.administered import TOKEN, WAIT_SECONDS, Admin, administered, refusal, run

# ---- questions ----


def test_everything_that_is_known_can_be_asked_for(tmp_path: Path) -> None:
    """Each list is what the views draw; their details are tested there."""

    async def story(admin: Admin) -> None:
        nodes = await admin.stub.ListNodes(pb.ListNodesRequest())
        assert [each.id for each in nodes.nodes] == ["node-1", "node-2", "node-10"]
        jobs = await admin.stub.ListJobs(pb.ListJobsRequest())
        assert [(each.name, each.state, each.workdir) for each in jobs.jobs] == [
            ("small", "running", str(tmp_path))
        ]
        assert len((await admin.stub.ListExperts(pb.ListExpertsRequest())).experts) == 4
        assert len((await admin.stub.ListIncidents(pb.ListIncidentsRequest())).incidents) == 2
        assert len((await admin.stub.ListCheckpoints(pb.ListCheckpointsRequest())).checkpoints) == 1
        assert not (await admin.stub.ListSnapshots(pb.ListSnapshotsRequest())).snapshots
        assert (await admin.stub.GetGeneration(pb.GetGenerationRequest())).number == 3

    run(tmp_path, story)


def test_the_summary_adds_the_ledger_up(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for step in range(1, 13):
            admin.ledger.append(record(step))
        made = json.loads((await admin.stub.Summarize(pb.SummarizeRequest())).json)
        assert (made["job"], made["steps_committed"], made["samples_missing"]) == ("small", 12, 0)
        assert made["goodput"] == pytest.approx(6.0 / 1000.0)

    run(tmp_path, story)


def test_an_incident_is_explained_by_its_events(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        await admin.stub.TakeCheckpoint(pb.TakeCheckpointCommand(by="ada"))
        await admin.stub.Drain(pb.NodeCommand(node="node-1", by="ada"))
        told = await admin.stub.ExplainIncident(pb.ExplainIncidentRequest(incident="incident-1"))
        assert told.incident.cause == "its stream broke"
        [event] = told.events
        assert (event.kind, list(event.reasons)) == ("CheckpointRequested", ["a checkpoint for ada"])
        assert json.loads(event.detail)["by"] == "ada"

    run(tmp_path, story)


def test_events_are_read_on_from_where_one_was(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for node in ("node-1", "node-2"):
            await admin.stub.Cordon(pb.NodeCommand(node=node, by="ada"))
        await admin.stub.TakeCheckpoint(pb.TakeCheckpointCommand())
        everything = (await admin.stub.ListEvents(pb.ListEventsRequest())).events
        assert [each.kind for each in everything] == [
            "CordonRequested",
            "CordonRequested",
            "CheckpointRequested",
        ]
        later = await admin.stub.ListEvents(
            pb.ListEventsRequest(after_sequence=everything[0].sequence, limit=1)
        )
        assert [each.sequence for each in later.events] == [everything[1].sequence]
        some = await admin.stub.ListEvents(pb.ListEventsRequest(kind="CheckpointRequested"))
        assert len(some.events) == 1

    run(tmp_path, story)


@pytest.mark.parametrize("job_state", [JobState.STOPPED, JobState.FINISHED, JobState.FAILED])
def test_watching_a_job_that_has_ended_gives_one_last_view(tmp_path: Path, job_state: JobState) -> None:
    async def story(admin: Admin) -> None:
        seen = [view async for view in admin.stub.WatchJob(pb.WatchJobRequest())]
        assert [view.job.state for view in seen] == [job_state.value]

    run(tmp_path, story, ended(job_state))


def test_watching_goes_on_until_the_job_ends(tmp_path: Path) -> None:
    """Ledger lines and words of the core show up in the views; the last one shows the end."""

    async def story(admin: Admin) -> None:
        watching = admin.stub.WatchJob(pb.WatchJobRequest(interval_seconds=0.05))
        first = await anext(aiter(watching))
        assert (first.job.state, list(first.recent_losses)) == ("running", [])
        admin.ledger.append(record(1, loss=4.5))
        stop = await admin.stub.Stop(pb.StopCommand(by="ada"))
        assert stop.message == "the job stops"
        rest = [view async for view in watching]
        assert (rest[-1].job.state, list(rest[-1].recent_losses)) == ("stopped", [4.5])
        assert list(rest[-1].recent_reasons) == ["the job stops"]
        assert rest[-1].loss == 4.5

    run(tmp_path, story)


def test_watchers_are_let_go_when_the_controller_ends(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        watching = admin.stub.WatchJob(pb.WatchJobRequest(interval_seconds=60.0))
        await anext(aiter(watching))
        admin.api.close()
        assert [view.job.state async for view in watching] == ["running"]

    run(tmp_path, story)


def test_watchers_are_limited_and_one_that_leaves_makes_room(tmp_path: Path) -> None:
    async def story() -> None:
        limits = AdminLimits(watchers=1)
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, limits=limits) as admin:
            first = admin.stub.WatchJob(pb.WatchJobRequest(interval_seconds=0.05))
            await first.read()
            code, words = await refusal(admin.stub.WatchJob(pb.WatchJobRequest()).read())
            assert (code, "limit" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
            first.cancel()
            while not await _may_watch(admin):  # the server hears of the leaving a little later
                pass

    asyncio.run(story())


async def _may_watch(admin: Admin) -> bool:
    """A view comes, and not a refusal."""
    try:
        await admin.stub.WatchJob(pb.WatchJobRequest()).read()
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
    return True


# ---- commands ----


def test_a_command_is_answered_with_the_words_of_the_core(tmp_path: Path) -> None:
    """And only once it is handled and stored: asking right after shows what it did."""

    async def story(admin: Admin) -> None:
        reply = await admin.stub.Drain(pb.NodeCommand(node="node-2", by="ada"))
        assert reply.message == "node-2 is cordoned for ada; its seat moves first"
        [event] = admin.core.seen
        assert isinstance(event, events.DrainRequested)
        assert (event.node, event.by, event.at) == ("node-2", "ada", NOW)
        nodes = (await admin.stub.ListNodes(pb.ListNodesRequest())).nodes
        assert [each.cordoned for each in nodes] == [False, True, False]

    run(tmp_path, story)


def test_a_command_that_changes_nothing_says_so(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        reply = await admin.stub.Uncordon(pb.NodeCommand(node="node-2"))
        assert "nothing to do" in reply.message
        [event] = admin.core.seen
        assert isinstance(event, events.UncordonRequested)
        assert event.by == "unnamed"

    run(tmp_path, story)


def test_commands_are_logged_with_who_and_how_it_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(admin: Admin) -> None:
        await admin.stub.Cordon(pb.NodeCommand(node="node-1", by="ada"))
        await refusal(admin.stub.Cordon(pb.NodeCommand(node="node-9", by="bob")))

    with caplog.at_level("INFO", logger="orchestrator.service.interceptors"):
        run(tmp_path, story)
    said = [entry.message for entry in caplog.records if entry.name == "orchestrator.service.interceptors"]
    assert len(said) == 2
    assert said[0].startswith("Cordon by ada from ipv4:127.0.0.1")
    assert ": done in" in said[0]
    assert "refused (NOT_FOUND: no node 'node-9'" in said[1]


def test_shutting_down_a_running_job_takes_force(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        code, words = await refusal(admin.stub.Shutdown(pb.ShutdownRequest(by="ada")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "stop it first" in words
        assert admin.shutdowns == []
        await admin.stub.Shutdown(pb.ShutdownRequest(by="ada", force=True))
        assert admin.shutdowns == ["shutdown by ada"]

    run(tmp_path, story)


def test_shutting_down_after_the_end_needs_no_force(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        reply = await admin.stub.Shutdown(pb.ShutdownRequest(by="ada"))
        assert "the job is finished" in reply.message
        assert admin.shutdowns == ["shutdown by ada"]

    run(tmp_path, story, ended(JobState.FINISHED))


# ---- refusals ----


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for command in (admin.stub.Drain, admin.stub.Cordon, admin.stub.Uncordon):
            code, words = await refusal(command(pb.NodeCommand(node="node-9")))
            assert code is grpc.StatusCode.NOT_FOUND
            assert words == "no node 'node-9': known nodes are node-1, node-2, node-10"
        code, words = await refusal(admin.stub.ExplainIncident(pb.ExplainIncidentRequest(incident="x")))
        assert code is grpc.StatusCode.NOT_FOUND
        assert words == "no incident 'x': known incidents are incident-1, incident-2"
        assert {type(each) for each in admin.core.seen} <= {events.CommandRefused}

    run(tmp_path, story)


def test_numbers_and_kinds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for request in (pb.ListEventsRequest(limit=-1), pb.ListEventsRequest(after_sequence=-1)):
            assert (await refusal(admin.stub.ListEvents(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        code, words = await refusal(admin.stub.ListEvents(pb.ListEventsRequest(kind="Nonsense")))
        assert (code, "NodeDisconnected" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        watching = admin.stub.WatchJob(pb.WatchJobRequest(interval_seconds=-1))
        assert (await refusal(watching.read()))[0] is grpc.StatusCode.INVALID_ARGUMENT

    run(tmp_path, story)


def test_a_job_that_has_ended_takes_no_commands(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for call in (
            admin.stub.TakeCheckpoint(pb.TakeCheckpointCommand()),
            admin.stub.Stop(pb.StopCommand()),
        ):
            code, words = await refusal(call)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert words == "the job has ended: it is finished (as asked for)"

    run(tmp_path, story, ended(JobState.FINISHED))


def test_before_there_is_a_job_commands_say_so(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        code, words = await refusal(admin.stub.Stop(pb.StopCommand()))
        assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, "there is no job yet")

    run(tmp_path, story, ClusterState())


def test_a_controller_that_has_stopped_says_so(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        assert await asyncio.to_thread(admin.runner.stop, WAIT_SECONDS)
        code, words = await refusal(admin.stub.ListNodes(pb.ListNodesRequest()))
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "the controller has stopped")

    run(tmp_path, story)


# ---- around it ----


def test_a_token_is_asked_for_everywhere_but_by_health_checks(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            asyncio.timeout(4 * WAIT_SECONDS),
            administered(tmp_path, gate=Gate(shared_token=TOKEN)) as admin,
        ):
            code, words = await refusal(admin.stub.ListNodes(pb.ListNodesRequest()))
            assert (code, "--token-file" in words) == (grpc.StatusCode.UNAUTHENTICATED, True)
            assert (await refusal(admin.stub.WatchJob(pb.WatchJobRequest()).read()))[0] is code
            metadata = (("authorization", f"Bearer {TOKEN}"),)
            reply = await admin.stub.ListNodes(pb.ListNodesRequest(), metadata=metadata)
            assert len(reply.nodes) == 3
            assert await _health(admin, "") == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(story())


def test_health_and_reflection_answer(tmp_path: Path) -> None:
    async def story(admin: Admin) -> None:
        for name in ("", WORKER_SERVICE, ADMIN_SERVICE):
            assert await _health(admin, name) == health_pb2.HealthCheckResponse.SERVING
        asking = admin.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        [reply] = [each async for each in asking]
        listed = {each.name for each in reply.list_services_response.service}
        assert {WORKER_SERVICE, ADMIN_SERVICE} <= listed

    run(tmp_path, story)


async def _health(admin: Admin, service: str) -> int:
    check = admin.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    reply = await check(health_pb2.HealthCheckRequest(service=service))
    return int(reply.status)
