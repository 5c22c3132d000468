"""The one entry point of the core: an event in, an outcome out. Dispatch and nothing else.

`Machine(state, policy).handle(event)` changes the state in place and returns what to store, what to do and why. It is
deterministic: the same state and event give the same outcome. After a restart the state is what was stored, and
`ControllerStarted` is the first event. Next: the module named in the row that you came for.
"""

from __future__ import annotations

from typing import assert_never

from orchestrator.core import (
    checkpoints,
    commands,
    corruption,
    endings,
    events,
    generations,
    greeting,
    jobs,
    limits,
    membership,
    pairs,
    patience,
    progress,
    refusals,
    repair,
    resizing,
    snapshots,
    stragglers,
    takeover,
    upkeep,
)
from orchestrator.core.decision import Decision
from orchestrator.core.events import Event
from orchestrator.core.invariants import check_generations
from orchestrator.core.outcome import Outcome
from orchestrator.core.policy import Policy
from orchestrator.core.spec import TimeoutSpec
from orchestrator.core.state import ClusterState, Generation

_ANYTIME = (
    events.JobSubmitted
    | events.ControllerStarted
    | events.DrainRequested
    | events.CordonRequested
    | events.UncordonRequested
    | events.ResizeRequested
    | events.CheckpointRequested
    | events.StopRequested
    | events.ShutdownRequested
    | events.CommandRefused
)
"""Events that mean something without a job, or after its end."""


class Machine:
    """Owner of the state. Without a policy it takes that of the job, when there is one."""

    def __init__(self, state: ClusterState, policy: Policy | None = None) -> None:
        self.state = state
        default = Policy.of(state.job.spec) if state.job else Policy.from_timeouts(TimeoutSpec())
        self.policy = policy or default

    def handle(self, event: Event) -> Outcome:
        """Decide what follows from an event."""
        if isinstance(event, events.JobSubmitted):
            self.policy = self.policy.for_job(event.spec)
        decision = Decision(self.state, self.policy, event.at)
        decision.tick = isinstance(event, events.LeasesDue)
        if decision.works() or isinstance(event, _ANYTIME):
            _dispatch(decision, event)
            if decision.stirred and not (decision.tick and self.state.memory.resting and decision.empty):
                upkeep.advance(decision)
                self.state.memory.resting = upkeep.at_rest(decision)
        elif self.state.job is not None and isinstance(event, events.NodeRegistered):
            greeting.turn_away(decision, event)
        outcome = decision.outcome()
        if new := [change for change in outcome.changes if isinstance(change, Generation)]:
            check_generations(self.state, new)
        return outcome


def _dispatch(decision: Decision, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915 - a table, one row per event
    """`assert_never` makes mypy list the events that have no row."""
    match event:
        case events.JobSubmitted():
            jobs.submitted(decision, event)
        case events.ControllerStarted():
            takeover.controller_started(decision, event)
        case events.NodeRegistered():
            membership.registered(decision, event)
        case events.NodeDisconnected():
            membership.disconnected(decision, event)
        case events.HeartbeatReceived():
            membership.heartbeat(decision, event)
        case events.TrainerBecameReady():
            membership.trainer_became_ready(decision, event)
        case events.TrainerExited():
            membership.trainer_exited(decision, event)
        case events.TrainerFellSilent():
            membership.trainer_fell_silent(decision, event)
        case events.TrainerRefused():
            membership.trainer_refused(decision, event)
        case events.CommunicationFailed():
            membership.communication_failed(decision, event)
        case events.GenerationJoined():
            generations.joined(decision, event)
        case events.StepCommitted() | events.Validated():
            progress.reported(decision, event)
        case events.PartsAcquired():
            repair.parts_acquired(decision, event)
        case events.AcquisitionFailed():
            repair.acquisition_failed(decision, event)
        case events.CheckpointBegun() | events.ShardWritten():
            checkpoints.reported(decision, event)
        case events.CheckpointFailed():
            snapshots.failed(decision, event)
        case events.SnapshotsHeld():
            snapshots.told(decision, event)
        case events.CheckpointSealed():
            checkpoints.sealed(decision, event)
        case events.RestoreFailed():
            refusals.restore_failed(decision, event)
        case events.StateRefused():
            refusals.state_refused(decision, event)
        case events.ReplicasDiffered():
            corruption.replicas_differed(decision, event)
        case events.StepRedone():
            corruption.step_redone(decision, event)
        case events.TrainingEnded():
            endings.training_ended(decision, event)
        case events.PairChecked():
            pairs.reported(decision, event)
        case events.NodeEnded():
            membership.ended(decision, event)
        case events.NodeRemarked():
            membership.remarked(decision, event)
        case events.LeasesDue() | events.CheckpointDue() | events.RedundancyScanDue() | events.RetentionDue():
            _due(decision, event)
        case (
            events.DrainRequested()
            | events.CordonRequested()
            | events.UncordonRequested()
            | events.ResizeRequested()
            | events.CheckpointRequested()
            | events.StopRequested()
            | events.ShutdownRequested()
            | events.CommandRefused()
        ):
            _asked(decision, event)
        case _:
            assert_never(event)


def _asked(
    decision: Decision,
    event: events.DrainRequested
    | events.CordonRequested
    | events.UncordonRequested
    | events.ResizeRequested
    | events.CheckpointRequested
    | events.StopRequested
    | events.ShutdownRequested
    | events.CommandRefused,
) -> None:
    """The rows of what humans ask for."""
    match event:
        case events.DrainRequested():
            commands.drain(decision, event)
        case events.CordonRequested():
            commands.cordon(decision, event)
        case events.UncordonRequested():
            commands.uncordon(decision, event)
        case events.ResizeRequested():
            resizing.requested(decision, event)
        case events.CheckpointRequested():
            commands.checkpoint(decision, event)
        case events.StopRequested():
            endings.stop_requested(decision, event)
        case events.ShutdownRequested() | events.CommandRefused():
            commands.noted(decision, event)
        case _:
            assert_never(event)


def _due(
    decision: Decision,
    event: events.LeasesDue | events.CheckpointDue | events.RedundancyScanDue | events.RetentionDue,
) -> None:
    """The rows of the timers."""
    match event:
        case events.LeasesDue():
            limits.sweep(decision)
        case events.CheckpointDue():
            checkpoints.look(decision)
        case events.RedundancyScanDue():
            stragglers.look(decision)
            patience.look(decision)
        case events.RetentionDue():
            checkpoints.retain(decision)
        case _:
            assert_never(event)
