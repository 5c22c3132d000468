"""How a person's command gets its answer: the words that the core found for it, once they are durable.

`Witness` stands before the store as the controller sees it and tells those who wait what was committed; nothing is
changed on the way. Next: `admin_api.py`, which asks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future

from orchestrator.controller.ports import Clock, Store
from orchestrator.core.actions import Action
from orchestrator.core.events import CommandRefused, Event
from orchestrator.core.ids import ActionId, CauseId
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState
from orchestrator.service.causes import Causes
from orchestrator.service.interceptors import RefusedCommand
from orchestrator.service.worker_api import Inbox

log = logging.getLogger(__name__)


class Busy(Exception):
    """The controller did not take or handle a command in time; it may still come to pass when it was taken."""


class Witness:
    """A Store that passes everything on, and keeps the promise made to whoever waits for an event's outcome."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[CauseId, Future[Outcome]] = {}
        self._guard = threading.Lock()

    def await_outcome(self, cause_id: CauseId) -> Future[Outcome]:
        """The outcome of the event with this cause, once it is committed. Ask before the event is submitted."""
        promise: Future[Outcome] = Future()
        with self._guard:
            self._waiting[cause_id] = promise
        return promise

    def forget(self, cause_id: CauseId) -> None:
        """Nobody waits for it any more."""
        with self._guard:
            self._waiting.pop(cause_id, None)

    def load(self) -> ClusterState:
        return self._store.load()

    def commit(self, event: Event, outcome: Outcome) -> None:
        self._store.commit(event, outcome)
        if not self._waiting:
            return
        with self._guard:
            promise = self._waiting.pop(event.cause_id, None)
        if promise is not None and promise.set_running_or_notify_cancel():
            promise.set_result(outcome)

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        self._store.mark_done(actions)

    def unfinished(self) -> tuple[Action, ...]:
        return self._store.unfinished()


class Refusals:
    """Commands that were refused at the door become events all the same, for the audit log."""

    def __init__(self, *, inbox: Inbox, clock: Clock, causes: Causes) -> None:
        self._inbox = inbox
        self._clock = clock
        self._causes = causes

    def note(self, refused: RefusedCommand) -> None:
        """On their way; a controller that is too busy for that says so in its log."""
        event = CommandRefused(
            at=self._clock.now(),
            cause_id=self._causes.fresh("refusal"),
            by=refused.by,
            asker=refused.asker,
            command=refused.command,
            arguments=refused.arguments,
            code=refused.code,
            reason=refused.reason,
        )
        if not self._inbox.put(event):
            log.warning(
                "%s by %s was refused, which is not in the audit log: busy", refused.command, refused.by
            )


class Commands:
    """Submits an event and waits, bounded, for what the core made of it."""

    def __init__(self, *, inbox: Inbox, witness: Witness, limit_seconds: float) -> None:
        self._inbox = inbox
        self._witness = witness
        self._limit_seconds = limit_seconds

    async def ask(self, event: Event) -> Outcome:
        """The committed outcome of `event`. Raises Busy."""
        promise = self._witness.await_outcome(event.cause_id)
        try:
            if not self._inbox.put(event):
                raise Busy("the controller is busy or stopping and did not take the command: try again")
            async with asyncio.timeout(self._limit_seconds):
                return await asyncio.wrap_future(promise)
        except TimeoutError:
            raise Busy(
                f"the controller took the command but has not handled it within {self._limit_seconds:g} s: "
                "look at its events before you repeat it"
            ) from None
        finally:
            self._witness.forget(event.cause_id)
