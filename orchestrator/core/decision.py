"""One event's decision while it is being made: it reads the state, and is the only way to write it.

Entities are changed through `put` and `move_*`, so that whatever changed is in the outcome; actions get their ids
here. Nothing is decided in this module. Next: `machine.py`, which makes one per event; `lifecycle.py`, the tables.

Ids of actions are `a-<starts>-<number>`. `Job.starts` counts the controllers of a job and is stored by the first
event of each, so an id never repeats, although the number starts anew.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, lru_cache
from typing import assert_never

from orchestrator.core import lifecycle
from orchestrator.core.actions import Action
from orchestrator.core.ids import (
    NAMES_REMEMBERED,
    ActionId,
    GenerationNumber,
    IncidentId,
    NodeId,
    TrainerId,
    device_of,
    node_of,
)
from orchestrator.core.lifecycle import CheckpointTrigger, JobTrigger, NodeTrigger
from orchestrator.core.outcome import Outcome
from orchestrator.core.policy import Policy
from orchestrator.core.state import (
    NO_GENERATION,
    Checkpoint,
    ClusterState,
    Entity,
    Generation,
    Health,
    Incident,
    Job,
    JobState,
    Node,
    Reason,
)

_NUMBERS = re.compile(r"(\d+)")

ENDED = (JobState.STOPPED, JobState.FINISHED, JobState.FAILED)


class Decision:
    """Collects changes (each entity once, as it is at the end), actions and reasons in the order they were made."""

    def __init__(self, state: ClusterState, policy: Policy, at: float) -> None:
        self.state = state
        self.policy = policy
        self.at = at
        self.tick = False
        """Only time has passed."""
        self.stirred = True
        """False when nothing happened that the level-triggered parts (`upkeep.py`) would have to look at."""
        self._changes: dict[tuple[str, str], Entity] = {}
        self._actions: list[Action] = []
        self._reasons: list[Reason] = []

    # ---- reading ----

    @property
    def job(self) -> Job:
        """The job; only for events that make no sense without one."""
        assert self.state.job is not None
        return self.state.job

    def works(self) -> bool:
        """There is a job and it has not ended."""
        return self.state.job is not None and self.state.job.state not in ENDED

    @property
    def number(self) -> GenerationNumber:
        """The newest generation that exists, in force or planned."""
        newest = self.state.planned or self.state.generation
        return newest.number if newest else NO_GENERATION

    def next_number(self) -> GenerationNumber:
        """Above every number that was ever given or heard of."""
        return GenerationNumber(max(self.number, self.state.memory.newest_seen) + 1)

    # ---- writing ----

    def put(self, entity: Entity) -> None:
        """Store an entity in the state and list it as changed."""
        self._changes[self._remember(entity)] = entity

    def _remember(self, entity: Entity) -> tuple[str, str]:
        """Put an entity where the state keeps it; returns its kind and key."""
        match entity:
            case Job():
                self.state.job = entity
                return "job", entity.id
            case Node():
                self.state.nodes[entity.id] = entity
                return "node", entity.id
            case Health():
                self.state.health[entity.node] = entity
                return "health", entity.node
            case Generation():
                return "generation", str(entity.number)
            case Incident():
                self.state.incidents[entity.id] = entity
                return "incident", entity.id
            case Checkpoint():
                self.state.checkpoints[entity.request] = entity
                return "checkpoint", entity.request
            case _:
                assert_never(entity)

    def move_job(self, trigger: JobTrigger, reason: str) -> None:
        """Take the job through its table."""
        job = self.job
        state = lifecycle.job_after(job.state, trigger)
        if (state, reason) != (job.state, job.reason):
            self.put(replace(job, state=state, reason=reason))

    def move_node(self, node_id: NodeId, trigger: NodeTrigger, reason: str) -> None:
        """Take a node through its table."""
        node = self.state.nodes[node_id]
        moved = Node(  # `dataclasses.replace`, in a third of its time: the first generation moves all nodes
            id=node.id,
            state=lifecycle.node_after(node.state, trigger),
            cordoned=node.cordoned,
            incarnation=node.incarnation,
            labels=node.labels,
            agent_pid=node.agent_pid,
            reason=reason,
            changed_at=self.at,
        )
        self.put(moved)

    def move_checkpoint(self, request: str, trigger: CheckpointTrigger, reason: str) -> None:
        """Take a checkpoint through its table."""
        checkpoint = self.state.checkpoints[request]
        state = lifecycle.checkpoint_after(checkpoint.state, trigger)
        self.put(replace(checkpoint, state=state, reason=reason))

    def act(self, action: Action) -> None:
        """Have something done once this outcome is stored."""
        self._actions.append(action)

    def action_id(self) -> ActionId:
        """A fresh id for an action."""
        self.state.action_sequence += 1
        return ActionId(f"a-{self.job.starts}-{self.state.action_sequence}")

    def say(self, text: str, incident: IncidentId | None = None) -> None:
        """Why, in words."""
        self._reasons.append(Reason(text=text, incident=incident))

    @property
    def empty(self) -> bool:
        """Nothing has come of it so far."""
        return not (self._changes or self._actions or self._reasons)

    def outcome(self) -> Outcome:
        """All of it; changes are durable before the first action is performed."""
        return Outcome(
            changes=tuple(self._changes.values()), actions=tuple(self._actions), reasons=tuple(self._reasons)
        )


@cache
def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which `node-2` comes before `node-10`."""
    pieces = _NUMBERS.split(name)
    return tuple((0, int(piece), piece) if index % 2 else (1, 0, piece) for index, piece in enumerate(pieces))


@lru_cache(maxsize=NAMES_REMEMBERED)
def in_order(trainer: TrainerId) -> tuple[object, int]:
    """Sort key of trainers: by node, then by device."""
    return natural(node_of(trainer)), device_of(trainer)
