"""One writer: leases that are taken, kept, lost, inherited from the dead, and fought over by real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from orchestrator.controller.ports import LeaseLost, StoreError
from orchestrator.core.outcome import Outcome
from orchestrator.store.engine import open_engine, writing
from orchestrator.store.lease import ControllerLease, LeaseHeld, process_identity, process_is_gone
from orchestrator.store.queries import Queries
from orchestrator.store.repository import Repository
from orchestrator.store.schema import migrate_engine
from orchestrator.store.tables import controller_leases
from tests.integration.databases import child, disconnected, node, outcome
from tests.waiting import wait_until

LIMIT_SECONDS = 30.0


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    migrate_engine(made)
    yield made
    made.dispose()


def _elsewhere(engine: Engine) -> None:
    """Make the holder a process of another machine, of which nothing can be told from here."""
    with writing(engine) as connection:
        connection.execute(update(controller_leases).values(process="other-boot pid:[1] 7 7"))


def test_epochs_grow_with_every_holder(engine: Engine) -> None:
    for expected in (1, 2, 3):
        lease = ControllerLease(engine)
        assert lease.acquire() == lease.epoch == expected
        lease.release()


def test_a_second_controller_is_refused_by_name_and_age(engine: Engine) -> None:
    ControllerLease(engine, holder="alpha (pid 7)").acquire()
    with pytest.raises(
        LeaseHeld, match=r"alpha \(pid 7\), epoch 1, last heard \d+\.\d s ago .* Remedy: stop it first"
    ):
        ControllerLease(engine, holder="beta").acquire()


def test_a_silent_holder_elsewhere_loses_the_lease_when_it_has_run_out(engine: Engine) -> None:
    first = ControllerLease(engine, lease_seconds=0.3)
    first.acquire()
    _elsewhere(engine)
    second = ControllerLease(engine)
    assert second.acquire(wait_seconds=LIMIT_SECONDS) == 2
    with pytest.raises(LeaseLost, match=r"epoch 1\) is not in charge any more: .* took over with epoch 2"):
        first.keep()


def test_a_living_holder_is_not_waited_for(engine: Engine) -> None:
    """The waiting time is for the silent; whoever renews meanwhile is alive, and the answer comes at once."""
    first = ControllerLease(engine, holder="alpha", lease_seconds=60.0)
    first.acquire()
    _elsewhere(engine)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.05):
            first.keep()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        with pytest.raises(LeaseHeld, match="alpha"):
            ControllerLease(engine).acquire(wait_seconds=600.0)
    finally:
        ended.set()
        keeper.join()


def test_a_lease_that_was_lost_stores_nothing(engine: Engine) -> None:
    first = ControllerLease(engine)
    repository = Repository(engine, epoch=first.acquire())
    repository.commit(disconnected(1), outcome(1, node(reason="first")))
    repository.commit(disconnected(2), Outcome())
    first.release()
    second = Repository(engine, epoch=ControllerLease(engine).acquire())
    with pytest.raises(LeaseLost):
        repository.commit(disconnected(3), outcome(3, node(reason="late")))
    with pytest.raises(LeaseLost):
        repository.flush()
    with pytest.raises(LeaseLost):
        repository.trim()
    assert [each.reason for each in second.load().nodes.values()] == ["first"]
    assert [each.cause_id for each in Queries(engine).events()] == ["cause-1"]


def test_releasing_a_lost_lease_does_not_hurt_the_new_holder(engine: Engine) -> None:
    first = ControllerLease(engine)
    first.acquire()
    first.release()
    second = ControllerLease(engine, holder="beta")
    second.acquire()
    first.release()
    second.keep()
    with pytest.raises(LeaseHeld, match="beta"):
        ControllerLease(engine).acquire()


def test_a_commit_renews_the_lease(engine: Engine) -> None:
    lease = ControllerLease(engine, lease_seconds=5.0)
    repository = Repository(engine, epoch=lease.acquire())
    with writing(engine) as connection:
        connection.execute(update(controller_leases).values(renewed_at=1.0, process="other-boot pid:[1] 7 7"))
    repository.commit(disconnected(), outcome(1))
    with pytest.raises(LeaseHeld, match=r"last heard [0-4]\."):
        ControllerLease(engine).acquire()


_HOLDER = """
    import sys
    from tests.integration.databases import Opened, disconnected, outcome
    from orchestrator.controller.ports import LeaseLost
    from orchestrator.store.lease import ControllerLease
    from orchestrator.store.engine import open_engine
    from orchestrator.store.repository import Repository
    engine = open_engine(sys.argv[1])
    lease = ControllerLease(engine, lease_seconds=float(sys.argv[2]))
    repository = Repository(engine, epoch=lease.acquire())
    print("holds", flush=True)
    sys.stdin.readline()
    try:
        repository.commit(disconnected(99), outcome(99))
        print("committed")
    except LeaseLost as error:
        print("lost:", error)
"""


def test_a_killed_holder_on_this_machine_is_succeeded_at_once(engine: Engine, database_url: str) -> None:
    """Its lease has an hour to go, but everybody here can see that the process is gone."""
    with child(_HOLDER, database_url, "3600") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        with pytest.raises(LeaseHeld):
            ControllerLease(engine).acquire()
        holder.kill()
        holder.wait(LIMIT_SECONDS)
        assert ControllerLease(engine).acquire() == 2


def test_a_stopped_holder_wakes_up_fenced(engine: Engine, database_url: str) -> None:
    """SIGSTOP, its lease runs out, another takes over; after SIGCONT it commits nothing any more."""
    with child(_HOLDER, database_url, "0.5") as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "holds\n"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            assert ControllerLease(engine).acquire(wait_seconds=LIMIT_SECONDS) == 2
        finally:
            os.kill(holder.pid, signal.SIGCONT)
        holder.stdin.write("commit\n")
        holder.stdin.flush()
        assert holder.stdout.readline().startswith(
            "lost: this controller (epoch 1) is not in charge any more"
        )
        assert holder.wait(LIMIT_SECONDS) == 0
    assert Queries(engine).events() == ()


_FIGHTER = """
    import sys
    from tests.integration.databases import disconnected, fence, node
    from orchestrator.controller.ports import LeaseLost
    from orchestrator.core.outcome import Outcome
    from orchestrator.store.lease import ControllerLease, LeaseHeld
    from orchestrator.store.engine import ConnectionLimits, open_engine
    from orchestrator.store.repository import Repository
    # SQLite's queue of writers is not a fair one: among greedy ones a turn may be long in coming.
    engine = open_engine(sys.argv[1], ConnectionLimits(busy_seconds=60.0))
    sys.stdin.readline()
    wins = losses = refusals = 0
    while wins < 4:
        lease = ControllerLease(engine, lease_seconds=0.02)
        try:
            lease.acquire(wait_seconds=0.5)
        except LeaseHeld:
            refusals += 1
            continue
        wins += 1
        repository = Repository(engine, epoch=lease.epoch)
        try:
            for number in range(15):
                repository.commit(disconnected(lease.epoch), Outcome(changes=(node(reason=str(lease.epoch)),)))
        except LeaseLost:
            losses += 1
    print(wins, losses, refusals)
"""


def test_controllers_that_fight_never_write_at_the_same_time(engine: Engine, database_url: str) -> None:
    """Leases so short that they run out between two commits: whoever comes takes over in the middle of the other's
    work, many times. In the order of the log the epochs never go back, so nobody wrote after having lost."""
    fighters = [child(_FIGHTER, database_url) for _ in range(3)]
    try:
        for fighter in fighters:
            assert fighter.stdin is not None
            fighter.stdin.write("go\n")
            fighter.stdin.flush()
        said = [fighter.communicate(timeout=100)[0].split() for fighter in fighters]
    finally:
        for fighter in fighters:
            fighter.kill()
            fighter.wait()
    assert all(int(wins) == 4 for wins, _, _ in said)
    epochs = [each.epoch for each in Queries(engine).events(limit=10_000)]
    assert epochs == sorted(epochs) and len(set(epochs)) > 3, "they did take turns"


def test_a_database_that_does_not_answer_costs_the_lease_only_when_that_has_run_out(engine: Engine) -> None:
    lease = ControllerLease(engine, lease_seconds=1.0)
    lease.acquire()
    with writing(engine) as connection:
        connection.exec_driver_sql("ALTER TABLE controller_leases RENAME TO away")
    lease.keep()

    def given_up() -> bool:
        try:
            lease.keep()
        except LeaseLost:
            raise
        except StoreError as error:
            return "controller_leases" in str(error)
        return False

    wait_until(given_up, within_seconds=LIMIT_SECONDS, what="an error from a lease that has run out")


def test_a_process_is_known_by_more_than_its_number() -> None:
    mine = process_identity(os.getpid())
    assert not process_is_gone(mine)
    assert process_is_gone(f"{mine}0"), "the same pid, started at another time"
    assert not process_is_gone(""), "of what cannot be told nothing is believed"
    assert not process_is_gone(mine.replace(mine.split()[0], "other-boot"))
