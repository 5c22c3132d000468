"""What may go wrong in a world, and how often: one value, drawn anew for every seed.

Swarm testing (Groce et al., ISSTA 2012): a run with every kind of fault at once looks like every other such run, so
each seed draws which kinds it has and how strong they are. Rates are per second of virtual time over the whole
cluster, chances are per occasion.

What the transport can really do: agent and controller talk over one gRPC stream (HTTP/2 over TCP), which delivers in
order or breaks. So a lost message is a broken stream with everything in flight gone; a duplicate is what an agent
sends again after it has reconnected; reordering happens between streams, and between an old and a new stream of one
node; delay holds a direction up. A cut in one direction looks like silence until a keepalive gives the stream up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random

from orchestrator.core import spec_rules
from orchestrator.core.spec import (
    BatchSpec,
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    IntegritySpec,
    JobSpec,
    ModelSpec,
    PipelineSpec,
    RecoverySpec,
    SnapshotSpec,
    TimeoutMode,
    TimeoutSpec,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """All zero: nothing ever goes wrong. `_rate` is per second, `_chance` per occasion."""

    trainer_crash_rate: float = 0.0
    agent_crash_rate: float = 0.0
    """An agent and its trainers die; the machine is fine and starts another."""
    node_crash_rate: float = 0.0
    """A machine dies: connections are reset where the kernel still could, else there is only silence."""
    node_lost_chance: float = 0.0
    """A dead machine is never repaired: spares run out."""
    rack_loss_rate: float = 0.0
    mass_failure_rate: float = 0.0
    flapping_rate: float = 0.0
    """A node begins to come and go every few seconds."""
    freeze_rate: float = 0.0
    """SIGSTOP of a node, an agent or a trainer, and mostly SIGCONT later."""
    slow_rate: float = 0.0
    stream_break_rate: float = 0.0
    delay_rate: float = 0.0
    """For a while the control network takes seconds instead of milliseconds."""
    cut_rate: float = 0.0
    """A link dies between two places, in one direction or both."""
    collective_break_rate: float = 0.0
    """A collective raises though everybody is alive."""
    not_finite_rate: float = 0.0
    controller_crash_rate: float = 0.0
    controller_freeze_rate: float = 0.0
    second_controller_rate: float = 0.0
    crash_before_commit_chance: float = 0.0
    crash_after_commit_chance: float = 0.0
    crash_between_actions_chance: float = 0.0
    commit_in_doubt_chance: float = 0.0
    """The database takes a commit, and its answer is lost."""
    database_outage_rate: float = 0.0
    """Every statement is refused for a while: locked, full, or away."""
    ledger_full_rate: float = 0.0
    start_node_fails_chance: float = 0.0
    disk_full_rate: float = 0.0
    """Writing checkpoints fails for a while."""
    torn_shard_chance: float = 0.0
    """A shard was written, and what lies on the disk is not what was meant."""
    rot_rate: float = 0.0
    """A sealed checkpoint is damaged, or a shard in an agent's memory."""
    copy_fails_chance: float = 0.0
    copy_overtaken_chance: float = 0.0
    """Training changes the parts faster than they are copied."""
    human_rate: float = 0.0
    """Somebody drains, cordons, gives back, or wants a checkpoint."""


CEILINGS = {
    "trainer_crash_rate": 0.25,
    "agent_crash_rate": 0.15,
    "node_crash_rate": 0.12,
    "node_lost_chance": 0.4,
    "rack_loss_rate": 0.03,
    "mass_failure_rate": 0.02,
    "flapping_rate": 0.04,
    "freeze_rate": 0.15,
    "slow_rate": 0.1,
    "stream_break_rate": 0.3,
    "delay_rate": 0.05,
    "cut_rate": 0.12,
    "collective_break_rate": 0.1,
    "not_finite_rate": 0.02,
    "controller_crash_rate": 0.1,
    "controller_freeze_rate": 0.05,
    "second_controller_rate": 0.05,
    "crash_before_commit_chance": 0.05,
    "crash_after_commit_chance": 0.05,
    "crash_between_actions_chance": 0.03,
    "commit_in_doubt_chance": 0.03,
    "database_outage_rate": 0.06,
    "ledger_full_rate": 0.02,
    "start_node_fails_chance": 0.5,
    "disk_full_rate": 0.08,
    "torn_shard_chance": 0.2,
    "rot_rate": 0.05,
    "copy_fails_chance": 0.5,
    "copy_overtaken_chance": 0.5,
    "human_rate": 0.15,
}
"""The strongest that a seed may draw of each."""
KINDS_SHARE = 0.3
"""Of all kinds, that many are on in a seed, on average."""
SNAPSHOTS_SHARE = 0.7
"""Of all worlds, that many hold snapshots in host memory."""
WEAKEST = 0.1
"""The weakest that a seed draws of a kind that is on, as a share of its ceiling."""


def swarm(random: Random) -> Faults:
    """The faults of one seed."""
    assert set(CEILINGS) == {each.name for each in fields(Faults)}, "every fault has a ceiling"
    share = random.choice((KINDS_SHARE / 2, KINDS_SHARE, 2 * KINDS_SHARE))
    drawn = {}
    for name, ceiling in CEILINGS.items():
        on, strength = random.random() < share, random.uniform(WEAKEST, 1.0)
        drawn[name] = ceiling * strength if on else 0.0
    return Faults(**drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One world: the job, what goes wrong, and for how long."""

    spec: JobSpec
    faults: Faults
    safety_seconds: float
    """How long things go wrong."""
    racks: int
    one_host: bool
    """All processes are on one machine, so a controller sees at once which others are dead."""
    repaired: bool
    """When the faults end, dead machines are repaired; else the job has to live with what is left."""


def options_of(random: Random) -> Options:
    """The world of one seed."""
    nodes = random.randint(2, 5)
    plain = JobSpec(
        name="simulated",
        data=DataSpec(path="stdlib"),
        steps=random.choice((60, 100_000, 100_000)),
        cluster=ClusterSpec(
            nodes=nodes,
            spares=random.randint(0, 2),
            devices_per_node=random.choice((1, 1, 1, 2)),
            replicas=random.randint(1, min(3, nodes)),
        ),
        batch=BatchSpec(microbatches=random.randint(1, 7), microbatch_size=2),
        model=ModelSpec(experts=random.randint(4, 8)),
        integrity=IntegritySpec(interval_steps=0),  # a digest has no bits that could flip
        checkpoint=CheckpointSpec(keep=2, interval_seconds=random.choice((5.0, 15.0, 900.0))),
        snapshot=SnapshotSpec(
            enabled=random.random() < SNAPSHOTS_SHARE, interval_seconds=random.choice((2.0, 6.0))
        ),
        timeouts=TimeoutSpec(
            heartbeat_seconds=0.5,
            blame_seconds=0.5,
            lease_seconds=3.0,
            hang_seconds=3.0,
            stall_seconds=12.0,
            collective_seconds=10.0,
            regroup_seconds=15.0,
            start_seconds=30.0,
            acquire_seconds=15.0,
            orphan_seconds=random.choice((20.0, 120.0)),
            mode=TimeoutMode.AUTO if nodes % 2 else TimeoutMode.FIXED,
        ),
        recovery=RecoverySpec(straggler_seconds=2.0),  # a slow spell lasts for 5 to 30 s
    )
    staged = replace(plain, pipeline=PipelineSpec(stages=random.choice((1, 1, 2, 3))))
    spec = plain if spec_rules.problems(staged) else staged
    return Options(
        spec=spec,
        faults=swarm(random),
        safety_seconds=random.choice((20.0, 40.0, 60.0)),
        racks=random.randint(1, 3),
        one_host=random.random() < 0.5,
        repaired=random.random() < 0.8,
    )
