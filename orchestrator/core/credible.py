"""What a report may claim: numbers that no controller of this job can have given are not taken over from anybody.

An agent is believed about its own trainers. But one number that is believed is believed by all: the newest generation
(the next one must be higher) and the last committed step. A trainer that has gone mad, or somebody who plays one, must
not be able to push these to where nobody can follow. Next: `generations.py`, `progress.py`.
"""

from __future__ import annotations

from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.state import ClusterState

GENERATION_LEAP = 1_000_000
"""How far beyond the newest known generation an agent can have been, when the database was brought back from a copy."""


def generation(state: ClusterState, number: GenerationNumber) -> bool:
    """Whether this job can have come to a generation of that number."""
    given = (each.number for each in (state.generation, state.planned) if each is not None)
    return number <= max(state.memory.newest_seen, *given, 0) + GENERATION_LEAP


def step(state: ClusterState, number: Step) -> bool:
    """Whether this job has a step of that number."""
    return state.job is None or number <= state.job.spec.steps
