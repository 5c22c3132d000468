"""The job that the decision core is given for a scenario.

What the core never looks at (the model's width, the optimizer) keeps its defaults. Next: `play.py`.
"""

from __future__ import annotations

from orchestrator.core.spec import BatchSpec, CheckpointSpec, ClusterSpec, DataSpec, JobSpec, ModelSpec
from simulation.planning.scenario import Scenario

WHEN_ASKED_SECONDS = 1e-3
"""The game itself plays the timer of checkpoints, and skips those in quiet stretches: the core takes one when asked."""
NO_END = 10**12
"""Steps of a job that goes on for as long as the scenario asks."""
ALWAYS_AGAIN = 10**6
"""An agent starts its trainers again, however often: a process that fails for good is a node that fails."""


def job_of(scenario: Scenario) -> JobSpec:
    """A job of the scenario's size."""
    cluster, training = scenario.cluster, scenario.training
    return JobSpec(
        name="scenario",
        data=DataSpec(path="stdlib"),
        steps=NO_END,
        cluster=ClusterSpec(
            nodes=cluster.nodes,
            spares=cluster.spare_nodes,
            devices_per_node=cluster.gpus_per_node,
            replicas=cluster.replicas,
            trainer_restarts=ALWAYS_AGAIN,
        ),
        batch=BatchSpec(microbatches=training.microbatches_per_gpu * cluster.gpus),
        model=ModelSpec(experts=cluster.experts),
        checkpoint=CheckpointSpec(interval_seconds=WHEN_ASKED_SECONDS, keep=scenario.checkpoint.keep),
        snapshot=scenario.snapshot,
        timeouts=scenario.timeouts,
    )
