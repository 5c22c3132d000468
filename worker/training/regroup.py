"""Enter a generation: meet the others, shake hands, complete or redo the step in flight, fill what is missing.

Everything here is carried out by all members with the same inputs, so that it needs no further word from the
controller. An exception leaves the state as whole as it was: a newer generation starts over from it. The rule
itself is pure and lives in `parallel/handshake.py`. Next: `loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.agent.messages import Assignment
from worker.checkpointing.parts import PartTensors
from worker.parallel.groups import Group
from worker.parallel.handshake import ABSENT, Resumption, Standing, exchange_standings, resume_from
from worker.training.acquire import Acquisitions
from worker.training.state import TrainingState
from worker.training.tally import TallyLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a generation was entered."""

    committed: int
    completed_held: bool
    """The step in flight was completed here from held gradients."""
    redoes: bool
    """This member had begun a step that is now computed again."""
    copied_parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What entering needs. `complete` commits a step from the held gradients and a shared tally."""

    group: Group
    assignment: Assignment
    state: TrainingState
    acquisitions: Acquisitions
    layout: TallyLayout
    complete: Callable[[int, tuple[float, ...]], None]
    begun: int
    """The step that this member has begun and not committed; `ABSENT` if none."""
    catch_up_seconds: float


def stage_of_rank(assignment: Assignment) -> tuple[int, ...]:
    """By rank; all 0 without a pipeline."""
    return tuple(member.stage for member in assignment.members)


def held_experts(assignment: Assignment) -> tuple[int, ...]:
    """Experts that the placement gives to this member, ascending."""
    return tuple(e for e, ranks in enumerate(assignment.placement) if assignment.rank in ranks)


def enter(entrance: Entrance) -> Entry:
    """Bring this member to where all members are. Raises PartLost, GenerationEnded, CommunicationError."""
    state, assignment = entrance.state, entrance.assignment
    resumption = _shake_hands(entrance)
    completes = resumption.tally is not None and state.version == resumption.committed - 1
    if completes:
        assert resumption.tally is not None
        entrance.complete(resumption.committed, resumption.tally)
    else:
        state.renew_gradients()
    if resumption.transfers:
        entrance.acquisitions.catch_up(resumption.committed, entrance.catch_up_seconds)
        resumption = _shake_hands(entrance)
    received = _carry_out(entrance, resumption)
    copied = len(received)
    for part, staged in entrance.acquisitions.staged(resumption.committed).items():
        if part not in received and not _up_to_date(state, part, resumption.committed):
            received[part] = staged
    stage = stage_of_rank(assignment)[assignment.rank]
    state.adopt(held_experts(assignment), received, resumption.committed, stage=stage)
    entrance.acquisitions.clear()
    return Entry(
        committed=resumption.committed,
        completed_held=completes,
        redoes=entrance.begun > resumption.committed,
        copied_parts=copied,
    )


def _up_to_date(state: TrainingState, part: int, version: int) -> bool:
    return state.holds(part) and state.version == version


def _shake_hands(entrance: Entrance) -> Resumption:
    standings = exchange_standings(entrance.group, _standing(entrance))
    return resume_from(standings, entrance.assignment.placement, stage_of_rank(entrance.assignment))


def _standing(entrance: Entrance) -> Standing:
    state = entrance.state
    staged = entrance.acquisitions.versions()
    versions = [max(held, staged.get(part, ABSENT)) for part, held in enumerate(state.versions())]
    return Standing(
        committed=state.version,
        ready=state.ready,
        tally_step=state.tally_step,
        tally=state.tally or (0.0,) * entrance.layout.length,
        versions=tuple(versions),
    )


def _carry_out(entrance: Entrance, resumption: Resumption) -> dict[int, PartTensors]:
    """Send and receive whole parts, in the order that all members share. Returns what this member received."""
    group, state = entrance.group, entrance.state
    received: dict[int, PartTensors] = {}
    for transfer in resumption.transfers:
        if transfer.source == group.rank:
            packed = torch.stack(_supply(entrance, transfer.part, resumption.committed).in_order())
            group.send(packed, transfer.to)
        elif transfer.to == group.rank:
            packed = torch.stack(state.empty_part(transfer.part).in_order())
            group.receive(packed, transfer.source)
            received[transfer.part] = PartTensors.of(packed.unbind())
    group.settle()
    return received


def _supply(entrance: Entrance, part: int, version: int) -> PartTensors:
    """A part that this member said to have at the agreed version: its own, or a staged copy that caught up."""
    if _up_to_date(entrance.state, part, version):
        return entrance.state.part(part)
    return entrance.acquisitions.staged(version)[part]
