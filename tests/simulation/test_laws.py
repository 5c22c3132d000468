"""The laws of the simulation can fail: a rule of the real program is broken on purpose, and the watcher must see it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from orchestrator.controller.ledger import FileLedger
from orchestrator.core import deal, repair, stages
from orchestrator.core.decision import Decision
from orchestrator.core.spec import ClusterSpec
from orchestrator.store import lease, repository
from orchestrator.store.repository import Repository
from simulation import trainer as simulated
from simulation.options import Faults, Options, options_of
from simulation.seeds import run_world
from worker.parallel import handshake
from worker.parallel.handshake import Resumption

TRIES = 25


def world(seed: int, faults: Faults) -> Options:
    """Four nodes and a spare, two replicas; what goes wrong is given."""
    drawn = options_of(Random(f"{seed}/options"))
    cluster = ClusterSpec(nodes=4, spares=1, replicas=2)
    spec = replace(drawn.spec, steps=100_000, cluster=cluster)
    return replace(drawn, spec=spec, faults=faults, safety_seconds=40.0, repaired=True, racks=2)


def found(faults: Faults, *, within: int = TRIES) -> str:
    """The first law that is seen broken in some seeds; empty if none is."""
    for seed in range(within):
        verdict = run_world(seed, world(seed, faults))
        if verdict.failure:
            return verdict.failure
    return ""


CRASHES = Faults(node_crash_rate=0.1, trainer_crash_rate=0.1, stream_break_rate=0.1)


def test_nothing_is_found_where_nothing_is_broken() -> None:
    assert found(CRASHES, within=3) == ""


def test_a_microbatch_that_is_dealt_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = deal.deal

    def twice(microbatches: int, world: int) -> tuple[tuple[int, ...], ...]:
        dealt = real(microbatches, world)
        return (*dealt[:-1], (*dealt[-1], 0)) if world > 1 else dealt

    monkeypatch.setattr(stages, "deal", twice)
    assert "microbatch" in found(Faults(), within=1)


def test_reasons_that_are_left_out_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decision, "say", lambda *_given: None)
    assert "L8" in found(CRASHES)


def test_a_step_that_is_skipped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resume rule claims that the step in flight was committed."""
    real = handshake.resume_from

    def ahead(*given: Any) -> Resumption:
        resumption = real(*given)
        return replace(resumption, committed=resumption.committed + 1, tally=None, transfers=())

    monkeypatch.setattr(simulated, "resume_from", ahead)
    assert "L2" in found(CRASHES)


def test_a_commit_that_is_taken_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = handshake.resume_from

    def behind(*given: Any) -> Resumption:
        resumption = real(*given)
        back = max(0, resumption.committed - 1)
        return replace(resumption, committed=back, tally=None, transfers=())

    monkeypatch.setattr(simulated, "resume_from", behind)
    assert "L3" in found(CRASHES)


def test_two_controllers_that_both_write_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fence in each transaction, a controller that was stopped and woke up goes on beside the next one."""
    monkeypatch.setattr(repository, "fence", lambda *_given: None)
    monkeypatch.setattr(lease, "fence", lambda *_given: None)
    assert found(Faults(controller_freeze_rate=0.3, second_controller_rate=0.3, node_crash_rate=0.1)) != ""


def test_a_ledger_that_is_not_rolled_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLedger, "roll_back", lambda _self, _step, _generation: None)
    assert found(Faults(mass_failure_rate=0.1, rack_loss_rate=0.1)) != ""


def test_redundancy_that_does_not_come_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "plan_repair", lambda *_given: None)
    assert found(CRASHES) != ""


def test_a_commit_that_is_not_stored_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh commit is lost, as if the transaction had not been waited for."""
    real, count = Repository.commit, 0

    def forgetful(self: Repository, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        return None if count % 7 == 0 else real(self, *given, **named)

    monkeypatch.setattr(Repository, "commit", forgetful)
    assert found(Faults(controller_crash_rate=0.2, node_crash_rate=0.1)) != ""
