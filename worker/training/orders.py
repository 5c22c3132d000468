"""The orders of the agent as the training thread sees them: the newest counts, stale ones are gone.

The reader thread of the channel calls `receive`; the training thread asks at step boundaries. A newer immediate
generation ends the running one at once through the `Watch`. Work that needs no boundary (sealing, deleting,
copying parts) is handed on to its owners here. Next: `trainer.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from worker.agent.messages import (
    AcquireParts,
    Assignment,
    CheckPair,
    Configure,
    DeleteCheckpoint,
    Order,
    SealCheckpoint,
    StopTraining,
    TakeCheckpoint,
    TakeSeat,
    TakeSnapshot,
)
from worker.parallel.groups import Watch
from worker.training.tally import Pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """Owners of the work that goes on beside training. Called from the reader thread; they must not block."""

    configure: Callable[[Configure], None]
    acquire: Callable[[AcquireParts], None]
    seal: Callable[[SealCheckpoint], None]
    delete: Callable[[DeleteCheckpoint], None]
    foresee: Callable[[TakeSnapshot], None]
    """A snapshot is wanted at the next boundary: its memory can be made ready."""


class Orders:
    """What is wanted of this trainer now."""

    def __init__(self, watch: Watch, handlers: Handlers) -> None:
        self._watch = watch
        self._handlers = handlers
        self._condition = threading.Condition()
        self._seat: Assignment | None = None
        self._planned: Assignment | None = None
        self._checkpoint: TakeCheckpoint | None = None
        self._snapshot: TakeSnapshot | None = None
        self._stop: StopTraining | None = None
        self._check: CheckPair | None = None
        self.closed = False
        """The agent is gone."""

    def receive(self, order: Order) -> None:
        """Take one order (reader thread)."""
        match order:
            case Configure():
                self._handlers.configure(order)
            case TakeSeat(assignment=assignment):
                self._receive_seat(assignment)
            case TakeCheckpoint():
                self._keep(checkpoint=order)
            case TakeSnapshot():
                self._handlers.foresee(order)
                self._keep(snapshot=order)
            case StopTraining():
                self._keep(stop=order)
            case CheckPair():
                self._keep(check=order)
            case AcquireParts():
                self._handlers.acquire(order)
            case SealCheckpoint():
                self._handlers.seal(order)
            case DeleteCheckpoint():
                self._handlers.delete(order)
            case _:
                assert_never(order)

    def close(self) -> None:
        """The channel has ended (reader thread)."""
        with self._condition:
            self.closed = True
            self._condition.notify_all()

    def _receive_seat(self, assignment: Assignment) -> None:
        with self._condition:
            newest = max((a.number for a in (self._seat, self._planned) if a is not None), default=0)
            if assignment.number <= newest:
                return
            seated = self._seat is not None and self._seat.rank >= 0
            if assignment.kind == "planned" and seated:
                self._planned = assignment
            else:
                self._seat, self._planned = assignment, None
                self._watch.end_below(assignment.number)
            self._condition.notify_all()

    def _keep(
        self,
        *,
        checkpoint: TakeCheckpoint | None = None,
        snapshot: TakeSnapshot | None = None,
        stop: StopTraining | None = None,
        check: CheckPair | None = None,
    ) -> None:
        with self._condition:
            self._check = check or self._check
            self._checkpoint = checkpoint or self._checkpoint
            self._snapshot = snapshot or self._snapshot
            self._stop = stop or self._stop
            self._condition.notify_all()

    def pending(self, *, room: bool = True) -> dict[Pending, str]:
        """Labels of the orders that wait for a boundary; a checkpoint also waits until there is `room` for its copy.

        Unless it is the last one: nothing is held up by that any more.
        """
        with self._condition:
            labels: dict[Pending, str] = {}
            if self._planned is not None:
                labels[Pending.PLANNED_GENERATION] = str(self._planned.number)
            awaited = room or self._stop is not None
            if self._checkpoint is not None and awaited and self._is_of_today(self._checkpoint):
                labels[Pending.CHECKPOINT] = self._checkpoint.request
            if self._snapshot is not None:
                labels[Pending.SNAPSHOT] = self._snapshot.request
            if self._stop is not None:
                labels[Pending.STOP] = self._stop.request
            return labels

    def take_checkpoint(self) -> TakeCheckpoint | None:
        """The pending checkpoint order, which is thereby done with; none that an earlier generation has left."""
        with self._condition:
            order, self._checkpoint = self._checkpoint, None
            return order if order is not None and self._is_of_today(order) else None

    def _is_of_today(self, order: TakeCheckpoint) -> bool:
        return self._seat is not None and order.generation == self._seat.number

    def take_snapshot(self) -> TakeSnapshot | None:
        """The pending snapshot order, which is thereby done with."""
        with self._condition:
            order, self._snapshot = self._snapshot, None
            return order

    def take_check(self) -> CheckPair | None:
        """The pending pair check, which is thereby done with. Needs no vote: the others only wait a moment."""
        with self._condition:
            order, self._check = self._check, None
            return order

    def take_stop(self) -> None:
        """Training stops at this boundary."""
        with self._condition:
            self._stop = None

    def take_planned(self) -> None:
        """The planned generation takes over: it becomes the seat.

        Unless one has come since the vote that waits for no boundary: that one is the seat already, and is newer.
        """
        with self._condition:
            if self._planned is not None:
                self._seat, self._planned = self._planned, None
                self._watch.end_below(self._seat.number)

    def wait_for_seat(
        self,
        after: int,
        *,
        check: Callable[[], None] | None = None,
        save: Callable[[], None] | None = None,
    ) -> Assignment | None:
        """The newest assignment above `after` in which this trainer has a seat; None when the agent is gone.

        `check` and `save` are called when a pair check or a checkpoint is wanted of an idle trainer.
        """
        while True:
            with self._condition:
                while (seat := self._idle_seat(after)) is None and not (
                    self.closed or self._idle_work(check, save)
                ):
                    self._condition.wait()
                if self.closed:
                    return None
                if seat is not None:
                    return seat
                work = self._idle_work(check, save)
            assert work is not None
            work()

    def _idle_work(
        self, check: Callable[[], None] | None, save: Callable[[], None] | None
    ) -> Callable[[], None] | None:
        if check is not None and self._check is not None:
            return check
        return save if self._checkpoint is not None else None

    def seat_above(self, after: int) -> Assignment | None:
        """`wait_for_seat` without waiting: the seat that an idle trainer has to take now, if there is one."""
        with self._condition:
            return self._idle_seat(after)

    def _idle_seat(self, after: int) -> Assignment | None:
        """No step is running here whose boundary a planned generation could wait for: that is a seat like others."""
        if self._planned is not None:
            self._seat, self._planned = self._planned, None
        seat = self._seat
        return seat if seat is not None and seat.number > after and seat.rank >= 0 else None
