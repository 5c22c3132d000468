"""How many gigabytes of state lie where: in a part, on the fullest GPU, on the fullest node of a generation.

Arithmetic only. Next: `orders.py` and `host_memory.py`, which spend time on them.
"""

from __future__ import annotations

from orchestrator.core.ids import NodeId, node_of
from orchestrator.core.state import Generation
from simulation.planning.scenario import TrainingPlan

DENSE = "dense"


def of_part(training: TrainingPlan, part: str) -> float:
    """One part of the state."""
    return training.dense_gigabytes if part == DENSE else training.expert_gigabytes


def fullest_gpu(training: TrainingPlan, generation: Generation, *, shared: bool) -> float:
    """The largest share of a save (`shared`: experts are split over replicas, the rest over all), or all of it."""
    return max(shares(training, generation, shared=shared), default=0.0)


def fullest_node(training: TrainingPlan, generation: Generation, *, shared: bool) -> float:
    """What the busiest node writes of a save (`shared`), or reads: all that its GPUs hold."""
    by_node: dict[NodeId, float] = {}
    for member, share in zip(generation.members, shares(training, generation, shared=shared), strict=True):
        node = node_of(member.trainer)
        by_node[node] = by_node.get(node, 0.0) + share
    return max(by_node.values(), default=0.0)


def shares(training: TrainingPlan, generation: Generation, *, shared: bool) -> list[float]:
    """By rank."""
    members = len(generation.members)
    found = [training.dense_gigabytes / (members if shared else 1)] * members
    for holders in generation.placement:
        for rank in holders:
            found[rank] += training.expert_gigabytes / (len(holders) if shared else 1)
    return found
