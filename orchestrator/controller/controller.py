"""Decide, remember, act: what happens to one event, in this order and no other.

`handle` asks the core, has the outcome committed, and then performs its actions. Nothing here decides, waits or
starts a thread; who calls whom is in `runner.py`, what the world must offer in `ports.py`.

**Order of ledger and commit.** A step report goes to the ledger before the core sees it, and so before the commit.
- A crash between the two leaves a line whose event was never handled. Nothing is lost and nothing is double: the step
  *is* committed, by the vote of the trainers and not by us, the ledger drops the report when it comes again, and what
  the core makes of a first commit (closing phases of an incident) it makes of the next report, one step later.
- The other order would be worse: a commit that says "first step after recovery" about a step that the ledger does not
  have, and that nobody sends again if the core then answers `Welcome(reported_through)` with a step too far.
- The reverse dependency is a checkpoint: it must never be ahead of the ledger, or a resume would leave a gap that
  nobody can fill. So the ledger is synced before the commit of `CheckpointSealed`.
- `RollBackLedger` is performed after its commit. A crash between leaves the action unfinished in the outbox, and it is
  performed at the next start, before the first report can arrive. It names the generation that restores, so doing it
  twice cannot move lines which that generation has written since.

**Actions that fail.** A failed commit is fatal: memory and database disagree, the process must end and reload. So is a
failed ledger. An action that the cluster or the messenger could not perform stays unfinished in the outbox and is
tried again by `retry_failed`, a bounded number of times; then the process ends, and its successor tries anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

from orchestrator.controller.ports import (
    Cluster,
    Decider,
    Ending,
    Ledger,
    LedgerError,
    Messenger,
    Store,
    StoreError,
)
from orchestrator.core import actions, credible
from orchestrator.core.actions import Action
from orchestrator.core.events import CheckpointSealed, Event, StepCommitted, Validated
from orchestrator.core.ids import NodeId
from orchestrator.core.state import ClusterState

log = logging.getLogger(__name__)

T = TypeVar("T")

ACTION_ATTEMPTS = 5
"""How often an action is tried before the controller gives up and ends."""


_OF_A_NODE = (actions.StartNode, actions.StopNode)


class ActionFailed(Exception):
    """An action could not be performed in `ACTION_ATTEMPTS` attempts; it stays in the outbox for the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The world, as the controller sees it."""

    store: Store
    cluster: Cluster
    messenger: Messenger
    ledger: Ledger
    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    action: Action
    attempts: int
    error: Exception


class Controller:
    """One owner of the state and of everything that follows from it. Not thread-safe: `runner.Runner` owns it."""

    def __init__(self, *, machine: Decider, state: ClusterState, ports: Ports) -> None:
        self._machine = machine
        self._state = state
        self._ports = ports
        self._failed: list[_Failed] = []

    def handle(self, event: Event) -> None:
        """Take one event through all three stages. Raises StoreError, LedgerError, or the bug that it met."""
        if isinstance(event, StepCommitted):
            self._report(event)
        elif isinstance(event, Validated):
            self._validated(event)
        elif isinstance(event, CheckpointSealed):
            self._ports.ledger.sync()
        self._tell_of_the_ledger()
        outcome = self._machine.handle(event)
        self._ports.store.commit(event, outcome)
        for reason in outcome.reasons:
            log.info("%s [%s]", reason.text, event.cause_id)
        for action in outcome.actions:
            self._perform(action, attempts=0)

    def perform_unfinished(self) -> int:
        """Perform what an earlier process stored but did not tick off; how many. Call once, before the first event."""
        unfinished = self._ports.store.unfinished()
        for action in unfinished:
            self._perform(action, attempts=0)
        return len(unfinished)

    def retry_failed(self) -> None:
        """Try failed actions again, oldest first. Raises ActionFailed when one has used up its attempts."""
        failed, self._failed = self._failed, []
        for each in failed:
            if each.attempts >= ACTION_ATTEMPTS:
                raise ActionFailed(
                    f"{type(each.action).__name__} {each.action.id} failed {each.attempts} times: {each.error}; "
                    "it stays in the outbox and is tried again when the controller is started again"
                ) from each.error
            self._perform(each.action, attempts=each.attempts)

    def inspect(self, look: Callable[[ClusterState], T]) -> T:
        """Show the state as it is between two events. `look` must copy what it keeps, and change nothing."""
        return look(self._state)

    def _tell_of_the_ledger(self) -> None:
        """The two volatile facts that the core takes from it: where it ends, and a generation that existed for sure.

        The second matters when the database was brought back from a copy: no number that the ledger knows is given
        again, however little the database remembers.
        """
        state, ledger = self._state, self._ports.ledger
        state.reported_through = ledger.reported_through
        state.memory.newest_seen = max(state.memory.newest_seen, ledger.newest_generation)

    def _report(self, event: StepCommitted) -> None:
        """A step goes to the ledger, unless this job cannot have it: then that is said."""
        record = event.record
        if credible.generation(self._state, record.generation) and credible.step(self._state, record.step):
            self._ports.ledger.append(record)
            return
        log.warning(
            "%s reports step %d of generation %d, which this job cannot have: it is not put down",
            event.trainer, record.step, record.generation,
        )  # fmt: skip

    def _validated(self, event: Validated) -> None:
        """A measurement goes to its file under the same conditions."""
        record = event.record
        known = credible.generation(self._state, record.generation)
        if known and credible.step(self._state, record.step):
            self._ports.ledger.measured(record)

    def _perform(self, action: Action, attempts: int) -> None:
        if isinstance(action, _OF_A_NODE):
            self._drop_superseded(action.node)
        try:
            self._act(action)
        except (StoreError, LedgerError, AssertionError):
            raise
        except Exception as error:
            log.exception("%s %s failed (attempt %d)", type(action).__name__, action.id, attempts + 1)
            self._failed.append(_Failed(action=action, attempts=attempts + 1, error=error))
        else:
            self._ports.store.mark_done((action.id,))

    def _drop_superseded(self, node: NodeId) -> None:
        """A failed start must not be made up for after a stop that came later, nor the other way round."""
        superseded = [
            each for each in self._failed if isinstance(each.action, _OF_A_NODE) and each.action.node == node
        ]
        for each in superseded:
            self._failed.remove(each)
            self._ports.store.mark_done((each.action.id,))

    def _act(self, action: Action) -> None:
        ports = self._ports
        match action:
            case actions.StartNode():
                ports.cluster.start_node(action.node, action.in_place_of)
            case actions.StopNode():
                ports.cluster.stop_node(action.node, action.reason)
            case actions.RollBackLedger():
                ports.ledger.roll_back(action.step, action.generation)
                self._tell_of_the_ledger()
            case actions.EndJob():
                ports.ending.job_ended(action.succeeded, action.reason)
            case (
                actions.Welcome()
                | actions.Assign()
                | actions.Fence()
                | actions.Acquire()
                | actions.RestartTrainer()
                | actions.SetTimeouts()
                | actions.CheckPair()
                | actions.TakeCheckpoint()
                | actions.TakeSnapshot()
                | actions.DropSnapshots()
                | actions.SealCheckpoint()
                | actions.DeleteCheckpoint()
                | actions.StopTraining()
            ):
                if not ports.messenger.send(action):
                    log.debug(
                        "%s %s dropped: node %s is not connected",
                        type(action).__name__,
                        action.id,
                        action.node,
                    )
            case _:
                assert_never(action)
