"""Every threshold and limit that decisions depend on, in one frozen value.

Times that a job can set come from its `timeouts`; the rest are limits on how often something is tried again, each
with its reason. No decision is made here. Next: `recovery.py` and `membership.py`, which read most of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.core.spec import JobSpec, TimeoutSpec
from orchestrator.core.state import GenerationKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Seconds unless a name says else."""

    heartbeat_seconds: float
    blame_seconds: float
    """After a communication failure: how long its cause may take to show itself."""
    lease_seconds: float
    takeover_seconds: float
    """The first lease under a new controller: its nodes have to find it first."""
    suspect_seconds: float
    """A heartbeat that is late by this much makes a node suspect; nothing else follows from it."""
    hang_seconds: float
    stall_seconds: float
    regroup_seconds: float
    start_seconds: float
    acquire_seconds: float
    planned_seconds: float
    """A planned generation that nobody has joined by then takes over at once instead of at a boundary."""
    checkpoint_seconds: float
    """From the request to the seal; a checkpoint moves as many bytes as an acquisition."""

    suspects_at_once: int = 32
    """When more nodes than this are late in the same sweep, it is this controller that did not get to hearing them, or
    its network: to store that each is suspect, and then that it is not, would keep it from hearing them the longer."""
    shortest_snapshot_seconds: float = 60.0
    """From the order of a snapshot to its being held twice; it is waited for longer where the last ones took long."""
    remind_seconds: float = 5.0
    """Members that have not joined are told their generation again, this often."""
    start_patience_seconds: float = 10.0
    """With enough trainers ready: how long to wait for the first ones by name, so that runs look alike."""
    revive_pause_seconds: float = 5.0
    """Before a lost node is started again for an empty seat; doubles with each start in the window."""
    newcomer_seconds: float = 15.0
    """How long survivors leave a seat to a trainer that is starting, before they copy its replicas themselves."""
    check_seconds: float = 10.0
    """For the two of a pair check to meet and do their work."""
    check_margin_seconds: float = 5.0
    """For their reports to arrive after that, and for a member to come to its next boundary."""
    check_pause_seconds: float = 5.0
    """Before a pair check that proved nothing is made again."""
    check_attempts: int = 3
    """Pair checks in a row that may prove nothing."""
    slow_checks: int = 2
    """In a row, that must find a member slow before it loses its seat: one may have met a busy moment."""
    patience_factor: float = 4.0
    """Derived time-outs: so many times the longest that was observed of who was sound."""
    shortest_hang_seconds: float = 1.2
    """Longer than the second in which an agent that did not run itself cannot tell that from a silence."""
    shortest_lease_seconds: float = 2.0
    """Longer than the pause of a controller (`timers.py`) that it cannot tell from one of its nodes."""
    shortest_stall_seconds: float = 10.0
    """Copies, comparisons and measurements come between steps."""
    step_deviations: float = 6.0
    """A usual step takes at most the median and so many robust standard deviations."""
    steps_to_go_by: int = 8
    """Committed steps of a generation, before its time-outs follow from what was observed."""
    usual_steps_of_a_stall: float = 10.0
    """A stall also lasts at least this many usual steps."""
    collective_steps: float = 2.0
    """A collective should wait for at least so many usual steps: a member may have the work of two after a loss."""
    stall_doublings: int = 4
    """How often the limit of a stall doubles while members compute and no step is committed: sixteen times at most."""
    recent_steps: int = 32
    """Committed steps from which the usual step is taken."""
    acquire_attempts: int = 3
    """Failed copies after which a trainer is left alone for a while."""
    forgive_seconds: float = 60.0
    """That while: a failed copy counts for this long."""
    assumed_stall_seconds: float = 1.0
    """What a save costs training, until one has been measured."""
    assumed_mean_seconds: float = 3600.0
    """Before a job began, saved state is assumed to have been needed once in this time."""
    saves_remembered: int = 8
    """The last saves of a tier, whose median stall is the usual one."""
    shortest_interval_seconds: float = 10.0
    """Between two saves, however cheap they are for training: storage and network have others to serve."""
    first_snapshot_seconds: float = 30.0
    """Until the first snapshot in host memory: taken early, since what it costs decides how often one is taken."""
    noticeable_change: float = 1.25
    """An interval is explained again when it has grown or shrunk by this factor."""
    checkpoints_remembered: int = 64
    """Checkpoints that are gone (deleted, failed, damaged) and still listed; the database keeps all."""
    checkpoint_pause_seconds: float = 2.0
    """Before a failed checkpoint is taken again: the last one may still be on its way to the disk."""
    checkpoint_boundary_seconds: float = 5.0
    """How long a planned generation waits for a checkpoint to be copied; after that both may meet at one boundary."""
    checkpoint_attempts: int = 3
    """Failed checkpoints in a row after which a job stops or finishes without one."""
    offences: int = 2
    """Errors of a node in its own numbers, after which it is cordoned: once is a particle, twice is a machine."""
    watched_steps: int = 5
    """After a restore: how many steps are compared with what they were before."""
    remembered_losses: int = 4096
    """Committed steps whose losses are kept for that; more than most restores go back."""
    loss_tolerance: float = 0.05
    """A loss may be higher than the same step's before by this share of it."""
    loss_deviations: float = 3.0
    """Or by this many robust standard deviations of the losses of one step and the next."""
    refusals_at_a_step: int = 2
    """Restores from the same state that end in a refused step: a third would too."""
    idle_generations: int = 10
    """Generations in a row without a committed step, beyond one per node, after which the job fails."""
    load_imbalance: float = 1.25
    """A fresh placement looks at loads where a ring would give a rank this much of a fair share."""
    straggler_deviations: float = 3.5
    """A straggler works longer than the median member by this many robust standard deviations."""

    @classmethod
    def of(cls, spec: JobSpec) -> Policy:
        """The policy of a job."""
        return cls.from_timeouts(spec.timeouts)

    @classmethod
    def from_timeouts(cls, timeouts: TimeoutSpec) -> Policy:
        """Given times, and the limits that no job sets."""
        return cls(
            heartbeat_seconds=timeouts.heartbeat_seconds,
            blame_seconds=timeouts.blame_seconds,
            lease_seconds=timeouts.lease_seconds,
            takeover_seconds=max(timeouts.lease_seconds, timeouts.takeover_seconds),
            suspect_seconds=timeouts.lease_seconds / 2,
            hang_seconds=timeouts.hang_seconds,
            stall_seconds=timeouts.stall_seconds,
            regroup_seconds=timeouts.regroup_seconds,
            start_seconds=timeouts.start_seconds,
            acquire_seconds=timeouts.acquire_seconds,
            planned_seconds=timeouts.regroup_seconds,
            checkpoint_seconds=timeouts.acquire_seconds,
        )

    def for_job(self, spec: JobSpec) -> Policy:
        """The same limits with the times of another job."""
        times = Policy.of(spec)
        return replace(
            self,
            heartbeat_seconds=times.heartbeat_seconds,
            blame_seconds=times.blame_seconds,
            lease_seconds=times.lease_seconds,
            takeover_seconds=times.takeover_seconds,
            suspect_seconds=times.suspect_seconds,
            hang_seconds=times.hang_seconds,
            stall_seconds=times.stall_seconds,
            regroup_seconds=times.regroup_seconds,
            start_seconds=times.start_seconds,
            acquire_seconds=times.acquire_seconds,
            planned_seconds=times.planned_seconds,
            checkpoint_seconds=times.checkpoint_seconds,
        )

    def join_seconds(self, kind: GenerationKind) -> float:
        """How long the members of a generation may take to join it; reading a checkpoint comes on top."""
        extra = self.acquire_seconds if kind is GenerationKind.RESTORE else 0.0
        return self.regroup_seconds + extra

    def idle_generations_of(self, nodes: int) -> int:
        """How many generations in a row may commit nothing, for a job of so many nodes."""
        return self.idle_generations + nodes
