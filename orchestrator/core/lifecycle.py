"""Which state may follow which: the transition tables of jobs, nodes and checkpoints.

A table maps (state, trigger) to the next state; what is not in it is refused with `IllegalTransition`, and nothing
has changed then. No other module writes a state field: they name a trigger (`decision.py` applies it).
`docs/STATES.md` is drawn from these tables. Next: `decision.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from orchestrator.core.state import CheckpointState, JobState, NodeState


class IllegalTransition(AssertionError):
    """The program asked for a transition that the table does not have; the state is as it was."""

    def __init__(self, state: Enum, trigger: Enum) -> None:
        super().__init__(f"no transition from {state.value} by {trigger.value}")


class JobTrigger(Enum):
    """What can happen to a job."""

    START = "its first generation is sent"
    BREAK = "a new generation answers a failure"
    COMMIT = "a step is committed after a failure"
    STOP = "a human asks for a stop"
    END_STOPPED = "all members left the loop on request"
    END_FINISHED = "all steps are done"
    FAIL = "it cannot go on"
    RESUME = "it is submitted again"


class NodeTrigger(Enum):
    """What can happen to a node."""

    REQUEST = "the cluster is asked for it"
    REGISTER = "its agent registers"
    SEAT = "a trainer of it becomes a member"
    UNSEAT = "none of its trainers is a member any more"
    SUSPECT = "its stream breaks or its heartbeat is late"
    RETURN = "it is heard of again"
    DRAIN = "a human wants it emptied"
    RELEASE = "a human gives it back"
    LOSE = "it is given up"


class CheckpointTrigger(Enum):
    """What can happen to a checkpoint."""

    WRITE = "its boundary is behind"
    SEAL = "its manifest is in place"
    FAIL = "a shard or the seal will not come"
    DAMAGE = "a restore finds it damaged"
    DELETE = "retention does not keep it"
    SET_ASIDE = "training goes back to before it"


_J, _JT = JobState, JobTrigger
JOB: Mapping[tuple[JobState, JobTrigger], JobState] = MappingProxyType(
    {
        (_J.PENDING, _JT.START): _J.RUNNING,
        (_J.PENDING, _JT.STOP): _J.STOPPED,
        (_J.PENDING, _JT.FAIL): _J.FAILED,
        (_J.RUNNING, _JT.BREAK): _J.RECOVERING,
        (_J.RUNNING, _JT.STOP): _J.STOPPING,
        (_J.RUNNING, _JT.END_FINISHED): _J.FINISHED,
        (_J.RUNNING, _JT.FAIL): _J.FAILED,
        (_J.RECOVERING, _JT.BREAK): _J.RECOVERING,
        (_J.RECOVERING, _JT.COMMIT): _J.RUNNING,
        (_J.RECOVERING, _JT.STOP): _J.STOPPING,
        (_J.RECOVERING, _JT.END_FINISHED): _J.FINISHED,
        (_J.RECOVERING, _JT.FAIL): _J.FAILED,
        (_J.STOPPING, _JT.BREAK): _J.STOPPING,
        (_J.STOPPING, _JT.COMMIT): _J.STOPPING,
        (_J.STOPPING, _JT.END_STOPPED): _J.STOPPED,
        (_J.STOPPING, _JT.END_FINISHED): _J.FINISHED,
        (_J.STOPPING, _JT.FAIL): _J.FAILED,
        **{(state, _JT.RESUME): _J.PENDING for state in JobState},
    }
)

_N, _NT = NodeState, NodeTrigger
NODE: Mapping[tuple[NodeState, NodeTrigger], NodeState] = MappingProxyType(
    {
        **{(state, _NT.REQUEST): _N.REQUESTED for state in NodeState},
        (_N.REQUESTED, _NT.REGISTER): _N.SPARE,
        (_N.DEAD, _NT.REGISTER): _N.SPARE,
        (_N.SPARE, _NT.SEAT): _N.ACTIVE,
        (_N.ACTIVE, _NT.UNSEAT): _N.SPARE,
        (_N.DRAINING, _NT.UNSEAT): _N.SPARE,
        (_N.SPARE, _NT.SUSPECT): _N.SUSPECT,
        (_N.ACTIVE, _NT.SUSPECT): _N.SUSPECT,
        (_N.DRAINING, _NT.SUSPECT): _N.SUSPECT,
        (_N.SUSPECT, _NT.RETURN): _N.SPARE,
        (_N.ACTIVE, _NT.DRAIN): _N.DRAINING,
        (_N.DRAINING, _NT.RELEASE): _N.ACTIVE,
        **{(state, _NT.LOSE): _N.DEAD for state in NodeState if state is not _N.DEAD},
    }
)

_C, _CT = CheckpointState, CheckpointTrigger
CHECKPOINT: Mapping[tuple[CheckpointState, CheckpointTrigger], CheckpointState] = MappingProxyType(
    {
        (_C.REQUESTED, _CT.WRITE): _C.WRITING,
        (_C.REQUESTED, _CT.FAIL): _C.FAILED,
        (_C.WRITING, _CT.SEAL): _C.SEALED,
        (_C.WRITING, _CT.FAIL): _C.FAILED,
        # The seal was on its way when we gave up, and reached the disk: the manifest is the proof.
        (_C.FAILED, _CT.SEAL): _C.SEALED,
        # Complete, and not known to be sealed when training went back: its steps are given up, whatever is on the disk.
        (_C.WRITING, _CT.SET_ASIDE): _C.DELETED,
        (_C.FAILED, _CT.SET_ASIDE): _C.DELETED,
        (_C.SEALED, _CT.DAMAGE): _C.DAMAGED,
        (_C.SEALED, _CT.DELETE): _C.DELETED,
    }
)


def job_after(state: JobState, trigger: JobTrigger) -> JobState:
    """The next state of a job. Raises IllegalTransition."""
    if (state, trigger) not in JOB:
        raise IllegalTransition(state, trigger)
    return JOB[state, trigger]


def node_after(state: NodeState, trigger: NodeTrigger) -> NodeState:
    """The next state of a node. Raises IllegalTransition."""
    if (state, trigger) not in NODE:
        raise IllegalTransition(state, trigger)
    return NODE[state, trigger]


def checkpoint_after(state: CheckpointState, trigger: CheckpointTrigger) -> CheckpointState:
    """The next state of a checkpoint. Raises IllegalTransition."""
    if (state, trigger) not in CHECKPOINT:
        raise IllegalTransition(state, trigger)
    return CHECKPOINT[state, trigger]
