"""A controller that tests play: the real Admin service over real gRPC, with a job that is only acted.

In one process with the test (`serving`) its state stands still. Run as a program it takes the arguments of
`python -m orchestrator`, writes controller.json, starts a process that looks like a node, and plays what the file
`play` in the work directory asks for:

  finish          steps go by until all are done
  endless         steps go by until somebody stops the job
  killed          as `finish`, but the first controller kills itself half-way
  doomed          the job fails half-way
  mute            never says where it listens
  failing         every controller ends with exit code 3 after its first view
  refusing        ends with exit code 2 before it listens
  careless        as `endless`, and does not end its node
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from tests.unit.orchestrator.cli import views

EVENTS = 12_345
"""In the log: more than one answer holds."""
STEPS_A_VIEW = 10
VIEW_SECONDS = 0.05
NODE = "import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
ENDED = ("finished", "stopped", "failed")


class PlayedAdmin(admin_pb2_grpc.AdminServicer):
    """Canned answers; commands are written down in `heard`."""

    def __init__(self, view: pb.JobView) -> None:
        self.view = view
        self.heard: list[str] = []

    def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesReply:  # noqa: N802
        return pb.ListNodesReply(nodes=self.view.nodes)

    def ListExperts(self, request: pb.ListExpertsRequest, context: Any) -> pb.ListExpertsReply:  # noqa: N802
        return pb.ListExpertsReply(experts=self.view.experts)

    def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsReply:  # noqa: N802
        return pb.ListJobsReply(jobs=[self.view.job])

    def ListIncidents(self, request: pb.ListIncidentsRequest, context: Any) -> pb.ListIncidentsReply:  # noqa: N802
        return pb.ListIncidentsReply(incidents=self.view.incidents)

    def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Any) -> pb.ListSnapshotsReply:  # noqa: N802
        return pb.ListSnapshotsReply(
            snapshots=[
                pb.HeldSnapshot(
                    name="snapshot-00000040.g0003", state="sealed", step=40, shards=4, shards_held=4
                )
            ]
        )

    def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsReply:  # noqa: N802
        return pb.ListCheckpointsReply(checkpoints=self.view.checkpoints)

    def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsReply:  # noqa: N802
        detail = json.dumps({"node": "node-2", "reason": "connection reset"})
        log = [
            pb.Event(
                sequence=number, at=1.7e9 + number, kind="NodeDisconnected", cause_id="c-1", detail=detail
            )
            for number in range(1, EVENTS + 1)
        ]
        wanted = [each for each in log if each.sequence > request.after_sequence]
        return pb.ListEventsReply(
            events=[each for each in wanted if request.kind in ("", each.kind)][: request.limit]
        )

    def GetGeneration(self, request: pb.GetGenerationRequest, context: Any) -> pb.GetGenerationReply:  # noqa: N802
        member = pb.GenerationMember(
            rank=0, trainer="node-1/0", experts=[0, 4], microbatches=[0, 1, 2], joined=True
        )
        return pb.GetGenerationReply(number=2, kind="immediate", reason="node-2 is lost", members=[member])

    def ExplainIncident(self, request: pb.ExplainIncidentRequest, context: Any) -> pb.ExplainIncidentReply:  # noqa: N802
        for incident in self.view.incidents:
            if incident.id == request.incident:
                return pb.ExplainIncidentReply(incident=incident)
        context.abort(
            grpc.StatusCode.NOT_FOUND, f"no incident {request.incident!r}: there are no incidents yet"
        )
        raise AssertionError("abort does not return")

    def Drain(self, request: pb.NodeCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        return self._hear(f"drain {request.node}", request.by)

    def Cordon(self, request: pb.NodeCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        return self._hear(f"cordon {request.node}", request.by)

    def Uncordon(self, request: pb.NodeCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        return self._hear(f"uncordon {request.node}", request.by)

    def TakeCheckpoint(self, request: pb.TakeCheckpointCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        return self._hear("checkpoint", request.by)

    def Stop(self, request: pb.StopCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        return self._hear("stop", request.by)

    def Shutdown(self, request: pb.ShutdownRequest, context: Any) -> pb.CommandReply:  # noqa: N802
        if not request.force and self.view.job.state not in ENDED:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the job runs: stop it first, or use force")
        return self._hear("shutdown", request.by)

    def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> Iterator[pb.JobView]:  # noqa: N802
        yield self.view

    def Summarize(self, request: pb.SummarizeRequest, context: Any) -> pb.SummarizeReply:  # noqa: N802
        steps = self.view.job.step
        nothing = dict.fromkeys(("samples_duplicated", "samples_missing"), 0)
        samples = dict.fromkeys(("samples_expected", "samples_counted"), 24 * steps)
        summary = {
            "job": self.view.job.name,
            "steps_committed": steps,
            "final_loss": 2.5,
            **samples,
            **nothing,
            "goodput": 0.97,
            "generations": 1,
            "incidents": [],
            "checkpoints": [],
        }
        return pb.SummarizeReply(json=json.dumps(summary))

    def _hear(self, command: str, by: str) -> pb.CommandReply:
        assert by, "a command says who asks"
        self.heard.append(command)
        return pb.CommandReply(message=f"heard: {command}")


@contextmanager
def serving(admin: PlayedAdmin) -> Iterator[str]:
    """A real server on loopback; its address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5.0)


class ActedJob(PlayedAdmin):
    """A job that makes progress with every view, in a process that may die."""

    def __init__(self, workdir: Path, play: str, steps: int) -> None:
        super().__init__(views.healthy())
        self._workdir = workdir
        self._play = play
        self._progress = workdir / "acted-steps"
        self.ended = threading.Event()
        self.view.job.step = int(self._progress.read_text()) if self._progress.exists() else 0
        self.view.job.steps = steps
        self._guard = threading.Lock()

    def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> Iterator[pb.JobView]:  # noqa: N802
        while not self.ended.wait(VIEW_SECONDS):
            with self._guard:
                self._go_on()
                shown = pb.JobView()
                shown.CopyFrom(self.view)
            yield shown
            if self._play == "failing":
                os._exit(3)
            if shown.job.state in ENDED:
                return

    def Stop(self, request: pb.StopCommand, context: Any) -> pb.CommandReply:  # noqa: N802
        with self._guard:
            self.view.job.state, self.view.job.ended_at = "stopped", time.time()
        return self._hear("stop", request.by)

    def Shutdown(self, request: pb.ShutdownRequest, context: Any) -> pb.CommandReply:  # noqa: N802
        reply = super().Shutdown(request, context)
        self.ended.set()
        return reply

    def _go_on(self) -> None:
        job = self.view.job
        if job.state in ENDED:
            return
        endless = self._play in ("endless", "careless")
        job.step += STEPS_A_VIEW if job.step + STEPS_A_VIEW < job.steps or not endless else 0
        self._progress.write_text(str(job.step))
        if self._play == "killed" and job.step == job.steps // 2 and not (self._workdir / "killed").exists():
            (self._workdir / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._play == "doomed" and job.step >= job.steps // 2:
            job.state, job.reason, job.ended_at = "failed", "no node is left", time.time()
        elif job.step >= job.steps and not endless:
            job.state, job.ended_at = "finished", job.started_at + 12.0


def start_node(workdir: Path) -> subprocess.Popen[bytes]:
    """A process that looks like a node's agent and does not hear SIGTERM, written down as the cluster does."""
    command = [
        sys.executable,
        "-c",
        NODE,
        "-m",
        "worker",
        "agent",
        "--node",
        "node-1",
        "--workdir",
        str(workdir),
    ]
    node = subprocess.Popen(command, start_new_session=True)
    fields = Path(f"/proc/{node.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    record = workdir / "nodes" / "node-1.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(
        json.dumps({"pid": node.pid, "start_ticks": int(fields[19]), "boot": boot}), encoding="utf-8"
    )
    return node


def main(arguments: list[str]) -> int:
    """The program: what `understudy run` starts in these tests."""
    told = dict(zip(arguments[::2], arguments[1::2], strict=False))
    workdir = Path(told["--workdir"])
    play = (workdir / "play").read_text(encoding="utf-8")
    if play == "refusing":
        print("error: --listen: this controller does not like its address", file=sys.stderr)
        return 2
    if play == "mute":
        (workdir / "started").touch()
        signal.pause()
    first = not (workdir / "nodes").exists()
    node = start_node(workdir) if first else None
    admin = ActedJob(workdir, play, steps=100)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port(told["--listen"])
    server.start()
    record = workdir / ".controller.json"
    record.write_text(json.dumps({"address": f"127.0.0.1:{port}", "pid": os.getpid()}), encoding="utf-8")
    record.replace(workdir / "controller.json")
    (workdir / "listened").open("a").write(f"{port}\n")
    admin.ended.wait()
    server.stop(0.2).wait(2.0)
    if node is not None and play != "careless":
        node.kill()
        node.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
