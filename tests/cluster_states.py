"""A small cluster in the middle of its work, for tests that show or serve a state: three nodes, one of them a spare.

Two members train four experts with two replicas each; one incident is closed, one is open; one checkpoint is sealed.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.events import TrainerPhase, TrainerStatus
from orchestrator.core.ids import GenerationNumber, IncidentId, JobId, NodeId, Rank, Step, TrainerId
from orchestrator.core.measurements import StepRecord
from orchestrator.core.spec import BatchSpec, ClusterSpec, DataSpec, JobSpec
from orchestrator.core.state import (
    Checkpoint,
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    Incident,
    IncidentKind,
    Job,
    JobState,
    Member,
    Node,
    NodeState,
    NodeView,
)

NOW = 2000.0
SPEC = JobSpec(
    name="small",
    data=DataSpec(path="stdlib"),
    steps=50,
    cluster=ClusterSpec(nodes=2, spares=1),
    batch=BatchSpec(microbatches=3, microbatch_size=2),
)


def working() -> ClusterState:
    """The cluster of the module's description, at `NOW`."""
    state = ClusterState(job=_job(), generation=_generation())
    state.committed = state.reported_through = Step(12)
    for name, node_state in (
        ("node-1", NodeState.ACTIVE),
        ("node-10", NodeState.SPARE),
        ("node-2", NodeState.ACTIVE),
    ):
        node = NodeId(name)
        state.nodes[node] = Node(
            id=node,
            state=node_state,
            cordoned=False,
            incarnation=f"i-{name}",
            labels=(("host", "here"),),
            agent_pid=100,
            reason="",
            changed_at=1000.0,
        )
        if node_state is NodeState.ACTIVE:
            status = trainer_status(TrainerId(f"{name}/0"))
            state.views[node] = NodeView(
                connected=True, last_seen=NOW - 0.5, trainers={status.trainer: status}
            )
    state.joined = {TrainerId("node-1/0")}
    for incident in (_closed_incident(), _open_incident()):
        state.incidents[incident.id] = incident
    state.checkpoints["c-1"] = _checkpoint()
    return state


def ended(job_state: JobState) -> ClusterState:
    """The same, when its job has ended."""
    state = working()
    assert state.job is not None
    state.job = replace(state.job, state=job_state, reason="as asked for", ended_at=1900.0)
    return state


def trainer_status(trainer: TrainerId) -> TrainerStatus:
    """A trainer in the middle of step 13."""
    return TrainerStatus(
        trainer=trainer,
        start=1,
        pid=200,
        ready=True,
        store_address="127.0.0.1:1",
        peer_address="127.0.0.1:2",
        device_name="cpu",
        generation=GenerationNumber(3),
        step=Step(13),
        phase=TrainerPhase.FORWARD,
        operation=7,
        waiting=False,
        silent_seconds=0.1,
    )


def record(step: int, *, loss: float = 5.0, expert_load: tuple[int, ...] = (10, 20, 30, 20)) -> StepRecord:
    """A step with six samples, each counted once."""
    return StepRecord(
        step=Step(step),
        generation=GenerationNumber(3),
        loss=loss,
        tokens=80,
        time=1000.0 + step,
        step_seconds=0.5,
        sample_ids=tuple(range(step * 6, step * 6 + 6)),
        expert_load=expert_load,
    )


def _job() -> Job:
    return Job(
        id=JobId("job-1"),
        spec=SPEC,
        state=JobState.RUNNING,
        reason="",
        submitted_at=900.0,
        started_at=1000.0,
    )


def _generation() -> Generation:
    members = tuple(
        Member(trainer=TrainerId(f"node-{n}/0"), start=1, rank=Rank(n - 1), store_address="", peer_address="")
        for n in (1, 2)
    )
    return Generation(
        number=GenerationNumber(3),
        kind=GenerationKind.IMMEDIATE,
        members=members,
        placement=((Rank(0), Rank(1)), (Rank(1), Rank(0)), (Rank(0),), (Rank(1), Rank(0))),
        deal=((0, 2), (1,)),
        restore_name="",
        restore_step=Step(0),
        incident=IncidentId("incident-1"),
        reason="node-3 is lost",
        created_at=1100.0,
    )


def _closed_incident() -> Incident:
    return Incident(
        id=IncidentId("incident-1"),
        kind=IncidentKind.NODE_LOST,
        node=NodeId("node-3"),
        cause="its stream broke",
        action="rebuilt with the survivors",
        reasons=("every expert has a living replica",),
        generation=GenerationNumber(3),
        first_sign_at=1100.0,
        detected_at=1100.25,
        decided_at=1100.5,
        regrouped_at=1101.5,
        first_commit_at=1103.5,
        restored_at=1110.0,
        steps_redone=1,
    )


def _open_incident() -> Incident:
    return replace(
        _closed_incident(),
        id=IncidentId("incident-2"),
        first_sign_at=1500.0,
        detected_at=1500.5,
        decided_at=None,
        regrouped_at=None,
        first_commit_at=None,
        restored_at=None,
        degraded=True,
    )


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        request="c-1",
        state=CheckpointState.SEALED,
        generation=GenerationNumber(3),
        step=Step(10),
        name="step-00000010.g0003",
        path="/w/checkpoints/step-00000010.g0003",
        shards=("{}", "{}"),
        bytes=4096,
        requested_at=1200.0,
        sealed_at=1201.5,
        reason="",
    )
