"""A job as the controller shows it at four moments: healthy, failing, degraded, finished. For tests that draw it."""

from __future__ import annotations

import math

from protos import admin_pb2 as pb

NODES = 4
EXPERTS = 16
LOST = "node-2"
REASONS = (
    "node-2 lost its stream and node-1/0 reported a communication failure in generation 1: node-2 is dead",
    "every expert has a living replica, so the 8 experts of node-2 are played on by their backups and nothing moves",
    "step 61 is completed from the gradients that the survivors hold",
)


def healthy() -> pb.JobView:
    """Four nodes train, the fifth stands by, every expert has a backup."""
    view = pb.JobView(
        loss=2.4182, tokens_per_second=6123.0, step_seconds=0.41, goodput=0.973, at=1_700_000_100.0
    )
    view.job.CopyFrom(job(state="running", step=61, generation=1))
    for number in range(1, NODES + 2):
        view.nodes.append(node(number, seated=number <= NODES))
    for expert in range(EXPERTS):
        view.experts.append(_expert(expert, holders=_holders(expert)))
    view.recent_losses.extend(1.5 + 4.0 * math.exp(-step / 20) for step in range(60))
    view.recent_reasons.append("generation 1 begins: node-1 to node-4 have seats, node-5 stands by")
    return view


def failing() -> pb.JobView:
    """Node-2 has died, generation 2 has regrouped, no step has been committed yet; node-5 is copying."""
    view = healthy()
    view.job.CopyFrom(job(state="recovering", step=61, generation=2))
    for each in view.nodes:
        if each.id == LOST:
            each.state, each.connected, each.reason = (
                "dead",
                False,
                "its stream broke and node-1/0 lost its peer",
            )
        if each.id == "node-5":
            each.trainers[0].phase = "acquiring"
    del view.experts[:]
    for expert in range(EXPERTS):
        view.experts.append(_expert(expert, holders=[each for each in _holders(expert) if each != LOST]))
    view.incidents.append(incident(state="open"))
    view.recent_reasons.extend(REASONS)
    return view


def degraded() -> pb.JobView:
    """Training goes on, but there is no spare to restore redundancy with."""
    view = failing()
    view.job.state = "running"
    view.incidents[0].state = "degraded"
    view.incidents[0].phases.first_commit_seconds = 0.52
    return view


def finished() -> pb.JobView:
    """All steps done, the incident closed, a checkpoint sealed."""
    view = healthy()
    view.job.CopyFrom(job(state="finished", step=200, generation=3, ended_at=1_700_000_190.0))
    view.incidents.append(closed_incident())
    view.checkpoints.append(
        pb.Checkpoint(
            request="checkpoint-1", state="sealed", step=200, path="/runs/a/c", bytes=24_300_000, seconds=0.31
        )
    )
    return view


def job(state: str, step: int, generation: int, ended_at: float = 0.0) -> pb.Job:
    return pb.Job(
        id="stdlib-moe",
        name="stdlib-moe",
        state=state,
        step=step,
        steps=200,
        generation=generation,
        submitted_at=1_700_000_000.0,
        started_at=1_700_000_010.0,
        ended_at=ended_at,
        workdir="/runs/a",
    )


def node(number: int, *, seated: bool) -> pb.Node:
    trainer = pb.Trainer(
        id=f"node-{number}/0",
        pid=2000 + number,
        ready=True,
        device_name="cpu",
        generation=1,
        step=61 if seated else 0,
        phase="forward" if seated else "ready",
        silent_seconds=0.05,
    )
    if seated:
        trainer.rank = number - 1
        trainer.score = 1.0
    return pb.Node(
        id=f"node-{number}",
        state="active" if seated else "spare",
        connected=True,
        labels={"rack": "r1", "host": "h"},
        agent_pid=1000 + number,
        trainers=[trainer],
        heartbeat_age_seconds=0.1,
        step=trainer.step,
    )


def incident(state: str) -> pb.Incident:
    return pb.Incident(
        id="incident-1",
        kind="node-lost",
        node=LOST,
        cause="the agent's stream broke",
        action="fail over experts",
        reasons=REASONS,
        phases=pb.Phases(detect_seconds=0.084, decide_seconds=0.003, regroup_seconds=0.041),
        generation=2,
        first_sign_at=1_700_000_050.0,
        state=state,
        window_seconds=34.0,
        window_open=True,
        experts_exposed=4,
    )


def closed_incident() -> pb.Incident:
    closed = incident(state="closed")
    closed.phases.first_commit_seconds = 0.52
    closed.phases.redundancy_restored_seconds = 3.24
    closed.steps_redone = 1
    closed.window_seconds, closed.window_open = 3.24, False
    return closed


def _holders(expert: int) -> list[str]:
    """Two different nodes, spread evenly."""
    primary = expert % NODES
    backup = (primary + 1 + expert // NODES % (NODES - 1)) % NODES
    return [f"node-{primary + 1}", f"node-{backup + 1}"]


def _expert(expert: int, holders: list[str]) -> pb.Expert:
    trainers = [f"{each}/0" for each in holders]
    share = 0.5 + expert * 7 % 16 / 16
    return pb.Expert(
        id=expert, primary=trainers[0], backups=trainers[1:], load_share=share, redundant=len(trainers) > 1
    )
