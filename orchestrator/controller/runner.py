"""The one thread that owns the controller: it drains the inbox, answers questions, does chores. No decisions here.

Everything that touches the state or writes to the database happens on this thread, one thing after another: events in
order of arrival, between them questions about the state (`inspect`) and chores that are due (lease renewal, writing
what was batched, trying failed actions again). An error that nobody below could answer ends the thread and is handed
to the owner, who must end the process: the state in memory is not to be trusted any more, and the next process loads
it from the database. Training goes on meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.controller.controller import Controller
from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ports import StoreError
from orchestrator.core.events import Event, HeartbeatReceived
from orchestrator.core.state import ClusterState

log = logging.getLogger(__name__)

T = TypeVar("T")

QUESTION_LIMIT = 1024
"""Questions about the state that wait at most."""
HEARTBEATS_IN_A_TURN = 255
"""Behind the first: a few milliseconds, in which questions and chores wait."""
IDLE_SECONDS = 1.0
"""Longest sleep of the thread when no chore is due."""


class RunnerStopped(Exception):
    """The question came too late: the runner has ended."""


class RunnerBusy(Exception):
    """Too many questions wait already; ask again a little later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """Something to do regularly between events, on the runner's thread."""

    name: str
    period_seconds: float
    run: Callable[[], None]


class Runner:
    """`start`, then any thread may call `submit` and `inspect`; `stop` once."""

    def __init__(
        self,
        *,
        controller: Controller,
        inbox: Inbox,
        chores: Sequence[Chore] = (),
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._controller = controller
        self._inbox = inbox
        self._on_fatal = on_fatal
        self._questions: deque[tuple[Callable[[ClusterState], Any], Future[Any]]] = deque()
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        now = time.monotonic()
        self._chores = [(now + chore.period_seconds, chore) for chore in chores]
        self.fatal: BaseException | None = None
        """What ended the thread, if an error did."""

    def start(self) -> None:
        self._thread.start()

    def submit(self, event: Event) -> bool:
        """Put an event in the inbox; False when that is full or closed."""
        return self._inbox.put(event)

    def inspect(self, look: Callable[[ClusterState], T]) -> Future[T]:
        """Have `look` called with the state between two events. It must copy what it keeps, and change nothing.

        The future fails with RunnerStopped or RunnerBusy, or with what `look` raised.
        """
        answer: Future[T] = Future()
        with self._guard:
            if self._ended:
                answer.set_exception(RunnerStopped("the controller has stopped"))
            elif len(self._questions) >= QUESTION_LIMIT:
                answer.set_exception(RunnerBusy(f"{QUESTION_LIMIT} questions wait already; ask again later"))
            else:
                self._questions.append((look, answer))
        self._inbox.wake()
        return answer

    def stop(self, timeout: float) -> bool:
        """Close the inbox, handle what is in it, do every chore once more and end. False if that took too long."""
        self._inbox.close()
        self._stopping.set()
        self._inbox.wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            for _, chore in self._chores:
                chore.run()
        except BaseException as error:  # handed on whole: the owner ends the process with it
            self.fatal = error
            log.critical("the controller cannot go on: %s", error, exc_info=not isinstance(error, StoreError))
        finally:
            self._inbox.close()
            self._refuse_questions()
        if self.fatal is not None:
            self._on_fatal(self.fatal)

    def _turn(self) -> bool:
        """One event, or heartbeats that wait together, then what waits beside events. False when all is done."""
        event = self._inbox.take(timeout=0.0 if self._stopping.is_set() else self._until_next_chore())
        if event is not None:
            self._controller.handle(event)
        if isinstance(event, HeartbeatReceived):
            for another in self._inbox.take_heartbeats(HEARTBEATS_IN_A_TURN):
                self._controller.handle(another)
        self._answer_questions()
        self._do_chores()
        return event is not None or not self._stopping.is_set() or len(self._inbox) > 0

    def _answer_questions(self) -> None:
        for _ in range(len(self._questions)):
            look, answer = self._questions.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._controller.inspect(look))
            except Exception as error:  # noqa: BLE001 (the one who asked gets it)
                answer.set_exception(error)

    def _do_chores(self) -> None:
        now = time.monotonic()
        for index, (due, chore) in enumerate(self._chores):
            if due <= now:
                chore.run()
                self._chores[index] = (now + chore.period_seconds, chore)

    def _until_next_chore(self) -> float:
        now = time.monotonic()
        return max(0.0, min([due - now for due, _ in self._chores] + [IDLE_SECONDS]))

    def _refuse_questions(self) -> None:
        with self._guard:
            self._ended = True
            waiting = list(self._questions)
            self._questions.clear()
        for _, answer in waiting:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(RunnerStopped("the controller has stopped"))
