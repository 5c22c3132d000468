"""The training loop of one trainer: take a seat, enter the generation, train until it ends; then the next one.

One screen. Steps are in `step.py`, entering a generation in `regroup.py`, what happens between two steps in
`boundary`. No exception of the world ends the loop: it is reported, and the controller answers with a generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from worker.agent.messages import (
    Assignment,
    CheckPair,
    CommunicationFailed,
    GenerationJoined,
    PairChecked,
    ReplicasDiffered,
    Report,
    RestoreFailed,
    StateRefused,
    StepCommitted,
    StepRedone,
    TrainingEnded,
    Validated,
)
from worker.checkpointing.errors import CheckpointDamaged, CheckpointMismatch
from worker.parallel.groups import CommunicationError, GenerationEnded
from worker.parallel.handshake import PartLost
from worker.parallel.pulse import Pulse
from worker.training.integrity import ReplicasDiffer
from worker.training.orders import Orders
from worker.training.regroup import Entry
from worker.training.saving import Saves
from worker.training.snapshots import Snapshots
from worker.training.step import DataUnreadable, NotFinite, Session, run_step
from worker.training.tally import Pending, Tally

_REPORTERS = 4
"""So many ranks tell what all members know: more than one, since one may die with its report."""


class Seating(Protocol):
    """Enters generations: `trainer.py` implements it."""

    def enter(self, assignment: Assignment) -> tuple[Session, Entry]:
        """Build the groups, restore if asked, shake hands; raises what `regroup.enter` and restoring raise."""
        ...

    def check_pair(self, order: CheckPair) -> PairChecked:
        """Do some work against another trainer; what goes wrong is in the report."""
        ...

    def leave(self) -> None:
        """Abandon the groups of the generation that ended."""
        ...

    def validate(self) -> Validated | None:
        """Measure the held-out windows, if that is due after the last committed step; raises what a step raises."""
        ...

    def step_begins(self, step: int) -> None:
        """Remember that `step` is in flight."""
        ...

    def after_commit(self, step: int, clip: float) -> None:
        """Let newcomers that copy from this trainer have what the commit of `step` used."""
        ...


class Loop:
    """A trainer's life after it became ready."""

    def __init__(
        self,
        *,
        orders: Orders,
        seating: Seating,
        saves: Saves,
        snapshots: Snapshots,
        pulse: Pulse,
        report: Callable[[Report], None],
        steps: int,
    ) -> None:
        self._orders = orders
        self._seating = seating
        self._saves = saves
        self._snapshots = snapshots
        self._pulse = pulse
        self._report = report
        self._steps = steps

    def run(self) -> None:
        """Until the agent is gone."""
        seen = 0
        idle: Callable[[], None] | None = None
        while (assignment := self._orders.wait_for_seat(seen, check=self._check_pair, save=idle)) is not None:
            seen, idle = assignment.number, None
            try:
                session = self._enter(assignment)
                finished, unreadable = self._train_on(session, assignment)
                self._report(
                    TrainingEnded(
                        generation=seen,
                        step=session.state.version,
                        finished=finished,
                        unreadable=unreadable,
                    )
                )
                idle = self._idle_work(assignment)
            except GenerationEnded:
                continue
            except CommunicationError as error:
                self._report(CommunicationFailed(generation=seen, step=self._pulse.step, detail=str(error)))
            except (PartLost, NotFinite) as error:
                self._report(
                    StateRefused(
                        generation=seen,
                        step=self._pulse.step,
                        reason=str(error),
                        not_finite=isinstance(error, NotFinite),
                    )
                )
            except ReplicasDiffer as error:
                if assignment.rank < _REPORTERS:
                    self._report(
                        ReplicasDiffered(generation=seen, step=error.version, findings=error.findings)
                    )
            except (CheckpointDamaged, CheckpointMismatch) as error:
                self._report(_refusal(assignment, error))
            finally:
                self._pulse.phase = "ready" if idle is None else "finished"
                self._seating.leave()

    def _enter(self, assignment: Assignment) -> Session:
        self._pulse.generation = assignment.number
        self._pulse.enter("regroup")
        session, entry = self._seating.enter(assignment)
        self._pulse.step = session.state.version
        self._report(
            GenerationJoined(
                generation=assignment.number,
                committed=entry.committed,
                completed_held=entry.completed_held,
                redoes=entry.redoes,
                copied_parts=entry.copied_parts,
            )
        )
        return session

    def _train_on(self, session: Session, assignment: Assignment) -> tuple[bool, str]:
        """As `_train`; and what of its data this member cannot read. All leave then, in the state before that step."""
        try:
            return self._train(session, assignment), ""
        except DataUnreadable as error:
            session.check.compare_at_boundary(session.group, session.state)
            return False, error.words

    def _train(self, session: Session, assignment: Assignment) -> bool:
        """Steps until the job is done (True) or stopped (False)."""
        state = session.state
        self._validate(assignment)  # what a failure may have cut short
        while state.version < self._steps:
            self._seating.step_begins(state.version + 1)
            record, tally, pending = self._step(session, state.version + 1)
            self._report(record)
            self._seating.after_commit(record.step, session.last_clip)
            if not self._boundary(session, assignment, tally, pending):
                return False
            self._validate(assignment)
        session.check.compare_at_boundary(session.group, state)
        return True

    def _step(self, session: Session, step: int) -> tuple[StepCommitted, Tally, dict[Pending, str]]:
        """One step, computed once more where its numbers are none: a passing error of one machine ends there.

        All members get the same tally, so all do it. What is not finite twice follows from the state: NotFinite.
        """
        began = time.monotonic()
        pending = self._orders.pending(room=self._saves.ready)
        try:
            return *run_step(session, step, pending), pending
        except NotFinite as error:
            culprit = error.culprit
        pending = self._orders.pending(room=self._saves.ready)
        record, tally = run_step(session, step, pending)
        seconds = time.monotonic() - began
        if session.group.rank < _REPORTERS:
            self._report(StepRedone(generation=record.generation, step=step, rank=culprit, seconds=seconds))
        return record, tally, pending

    def _boundary(
        self, session: Session, assignment: Assignment, tally: Tally, pending: dict[Pending, str]
    ) -> bool:
        """Carry out what all members had been told when they voted. False when training stops here."""
        self._pulse.enter("boundary")
        world = session.group.world
        began = time.monotonic()
        saves = tally.agreed(Pending.CHECKPOINT, pending.get(Pending.CHECKPOINT), world)
        copies = tally.agreed(Pending.SNAPSHOT, pending.get(Pending.SNAPSHOT), world)
        if saves or copies:
            session.check.compare_at_boundary(session.group, session.state)
        if copies and (snapshot := self._orders.take_snapshot()) is not None:
            self._snapshots.take(snapshot, assignment, began)
        if saves:
            order = self._orders.take_checkpoint()
            if order is not None:
                self._saves.take(order, assignment, time.monotonic() - began)
            self._pulse.enter("checkpoint")
        if tally.agreed(Pending.STOP, pending.get(Pending.STOP), world):
            self._orders.take_stop()
            session.check.compare_at_boundary(session.group, session.state)
            return False
        if tally.agreed(Pending.PLANNED_GENERATION, pending.get(Pending.PLANNED_GENERATION), world):
            self._orders.take_planned()
            raise GenerationEnded("a planned generation takes over at this boundary")
        self._check_pair()
        return True

    def _validate(self, assignment: Assignment) -> None:
        found = self._seating.validate()
        if found is not None and assignment.rank < _REPORTERS:
            self._report(found)

    def _check_pair(self) -> None:
        """Take part in a pair check that is wanted: the other members wait at the next step's first collective."""
        order = self._orders.take_check()
        if order is not None:
            self._report(self._seating.check_pair(order))

    def _idle_work(self, assignment: Assignment) -> Callable[[], None]:
        """All members stand at the same step now, so that a checkpoint needs no vote."""

        def save() -> None:
            order = self._orders.take_checkpoint()
            if order is not None:
                self._saves.take(order, assignment)

        return save


def _refusal(assignment: Assignment, error: CheckpointDamaged | CheckpointMismatch) -> RestoreFailed:
    damaged = isinstance(error, CheckpointDamaged)
    return RestoreFailed(
        generation=assignment.number,
        name=assignment.restore_name,
        shard=error.shard if isinstance(error, CheckpointDamaged) else error.field,
        reason=str(error),
        damaged=damaged,
    )
