"""The catalogue of faults: what each is called, what it needs of the machine, and what it may cost.

Values only. How a fault is inflicted is in `strikes.py`, when in `plan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Need(Enum):
    """What a fault asks of the machine beyond processes of one user."""

    NAMESPACES = "network namespaces (root and iproute2)"
    TMPFS = "a small file system of its own (root)"
    POSTGRES = "PostgreSQL's programs"


class Aftermath(Enum):
    """What must be seen after a fault."""

    INCIDENT = "at least one incident"
    NOTHING = "no incident, and no pause beyond the fault itself"
    EITHER = "an incident, or nothing, as the moment has it"


class Kind(Enum):
    """Every fault that can be drawn, by the name that people give it with `--only`."""

    KILL = "sigkill"
    FREEZE = "sigstop"
    BLINK = "short-sigstop"
    TRAINER = "trainer-killed"
    STEP = "in-a-step"
    OPTIMIZER = "in-the-optimizer"
    CHECKPOINT = "in-a-checkpoint"
    RECOVERY = "in-a-recovery"
    TWO = "two-nodes"
    PAIR = "primary-and-backup"
    RACK = "rack-lost"
    SPARES = "spares-exhausted"
    FLAPPING = "flapping"
    SLOW = "slow-x3"
    NAN = "nan-gradient"
    BITFLIP = "bit-flip"
    CUT = "cut-both-ways"
    CUT_OUT = "cut-outgoing"
    CUT_IN = "cut-incoming"
    CUT_CONTROL = "cut-from-controller"
    CONTROLLER = "controller-killed"
    BLIND = "killed-without-controller"
    LOCKED = "database-locked"
    RESTARTED = "database-restarted"
    DISK = "disk-full"
    TORN = "torn-shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """What is known of a kind before it is drawn."""

    words: str
    aftermath: Aftermath = Aftermath.INCIDENT
    needs: frozenset[Need] = frozenset()
    nodes_lost: int = 0
    """Nodes that do not come back."""
    at_once: int = 0
    """Nodes that may be away at the same time: as many as there are replicas may take the last one of an expert."""
    rolls_back: bool = False
    """Meant to take the last replica of something."""


TRAITS: dict[Kind, Trait] = {
    Kind.KILL: Trait(words="a node dies (SIGKILL)", nodes_lost=1, at_once=1),
    Kind.FREEZE: Trait(words="a node stops (SIGSTOP), is given up, and wakes (SIGCONT)", at_once=1),
    Kind.BLINK: Trait(
        words="a node stops for less than its lease and goes on", aftermath=Aftermath.EITHER, at_once=1
    ),
    Kind.TRAINER: Trait(words="the process that trains dies alone, its agent starts another", at_once=1),
    Kind.STEP: Trait(words="a node dies in a drawn phase of a step", nodes_lost=1, at_once=1),
    Kind.OPTIMIZER: Trait(words="a node dies with half of the parameters written", nodes_lost=1, at_once=1),
    Kind.CHECKPOINT: Trait(words="a node dies right after its snapshot", nodes_lost=1, at_once=1),
    Kind.RECOVERY: Trait(words="a node dies, and another one while they regroup", nodes_lost=2, at_once=2),
    Kind.TWO: Trait(words="two nodes die at once", nodes_lost=2, at_once=2),
    Kind.PAIR: Trait(words="all holders of an expert die at once", nodes_lost=2, at_once=2, rolls_back=True),
    Kind.RACK: Trait(words="all nodes of a rack die at once", nodes_lost=2, at_once=2),
    Kind.SPARES: Trait(words="nodes die one after the other until no spare is left", nodes_lost=2, at_once=1),
    Kind.FLAPPING: Trait(words="the same trainer dies again and again", nodes_lost=1, at_once=1),
    Kind.SLOW: Trait(
        words="a node gets a third of its time (SIGSTOP and SIGCONT in turns)",
        aftermath=Aftermath.EITHER,
        at_once=1,
    ),
    Kind.NAN: Trait(words="a gradient becomes NaN", rolls_back=True),
    Kind.BITFLIP: Trait(words="one bit of one replica flips", rolls_back=True),
    Kind.CUT: Trait(
        words="no packet reaches or leaves a node", needs=frozenset({Need.NAMESPACES}), at_once=1
    ),
    Kind.CUT_OUT: Trait(words="no packet leaves a node", needs=frozenset({Need.NAMESPACES}), at_once=1),
    Kind.CUT_IN: Trait(words="no packet reaches a node", needs=frozenset({Need.NAMESPACES}), at_once=1),
    Kind.CUT_CONTROL: Trait(
        words="a node and the controller do not hear each other; the trainers do",
        aftermath=Aftermath.EITHER,
        at_once=1,
    ),
    Kind.CONTROLLER: Trait(words="the controller dies and is started again", aftermath=Aftermath.NOTHING),
    Kind.BLIND: Trait(words="the controller dies, and a node before it is back", nodes_lost=1, at_once=1),
    Kind.LOCKED: Trait(words="somebody holds the database's lock", aftermath=Aftermath.NOTHING),
    Kind.RESTARTED: Trait(
        words="the database refuses connections, then is back",
        aftermath=Aftermath.NOTHING,
        needs=frozenset({Need.POSTGRES}),
    ),
    Kind.DISK: Trait(
        words="the disk of the checkpoints is full, then is not",
        aftermath=Aftermath.NOTHING,
        needs=frozenset({Need.TMPFS}),
    ),
    Kind.TORN: Trait(
        words="a shard of the newest checkpoint is cut short, then all holders of an expert die",
        nodes_lost=2,
        at_once=2,
        rolls_back=True,
    ),
}
