"""The states of an agent and the only ways between them, as a table.

Theory of operation. An agent is *joining* until a controller has told it the job. Then it has trainers: it is a
*spare* while none of them has a seat in a generation, *seated* while at least one has. It is *fenced* when its seats
were taken away because the others have gone on without it: its trainers hold a state that must not be used, they are
being replaced by fresh processes, and when the last of the old ones is gone it is a spare again. From anywhere it may
come to its *ending*, which it does not leave. Whether a controller is connected is no state of this kind: training
goes on without one (`Link`). What does not stand in the table is a fault of the program.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    JOINING = "joining"
    SPARE = "spare"
    SEATED = "seated"
    FENCED = "fenced"
    ENDING = "ending"


class Trigger(Enum):
    WELCOMED = "welcomed"
    """A controller told the job; the trainers start."""
    SEATED = "seated"
    """A trainer got its first seat."""
    UNSEATED = "unseated"
    """The last trainer with a seat lost it: it left as planned, or its process ended."""
    FENCED = "fenced"
    """The seats were taken away; the processes that had them must go."""
    RENEWED = "renewed"
    """The last process that held a fenced seat is gone."""
    ENDED = "ended"


class Link(Enum):
    AWAY = "away"
    REGISTERING = "registering"
    """The stream is open and the registration sent; no answer yet."""
    REGISTERED = "registered"


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.JOINING, Trigger.WELCOMED): State.SPARE,
    (State.SPARE, Trigger.SEATED): State.SEATED,
    (State.SEATED, Trigger.UNSEATED): State.SPARE,
    (State.SEATED, Trigger.FENCED): State.FENCED,
    (State.FENCED, Trigger.SEATED): State.SEATED,
    (State.FENCED, Trigger.RENEWED): State.SPARE,
    (State.JOINING, Trigger.ENDED): State.ENDING,
    (State.SPARE, Trigger.ENDED): State.ENDING,
    (State.SEATED, Trigger.ENDED): State.ENDING,
    (State.FENCED, Trigger.ENDED): State.ENDING,
}


def follow(state: State, trigger: Trigger) -> State:
    """The state after `trigger`; a pair that is not in the table is a fault of the program."""
    assert (state, trigger) in TRANSITIONS, f"an agent that is {state.value} cannot be {trigger.value}"
    return TRANSITIONS[state, trigger]
