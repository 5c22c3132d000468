"""The store when the world breaks: killed writers, full and read-only disks, locks, a server that goes away.

Whatever happens, a commit is there as a whole or not at all, the error says which database and what to do, and the
next controller goes on from what is stored.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from chaos.postgres import PostgresServer, running_server
from orchestrator.controller.controller import Controller, Ports
from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ledger import FileLedger
from orchestrator.controller.ports import StoreError
from orchestrator.controller.runner import Runner
from orchestrator.core.ids import NodeId
from orchestrator.core.outcome import Outcome
from orchestrator.store.engine import ConnectionLimits, Durability, open_engine, reading, shown, writing
from orchestrator.store.lease import ControllerLease
from orchestrator.store.queries import Queries
from orchestrator.store.repository import Repository
from orchestrator.store.schema import migrate, migrate_engine
from tests.integration.databases import Opened, child, disconnected, node, outcome
from tests.unit.orchestrator.controller.fakes import Scripted, World
from tests.waiting import wait_until

LIMIT_SECONDS = 30.0

_WRITERS = """
    import os, sys
    from orchestrator.core.outcome import Outcome
    from tests.integration.databases import Opened, checkpoint, disconnected, fence, job, node
    for line in sys.stdin:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            print("ended", flush=True)
            continue
        opened = Opened(sys.argv[1])
        number = int(line)
        print(os.getpid(), flush=True)
        while True:
            number += 1
            said = str(number)
            changes = (job(reason=said), node("node-1", said), node("node-2", said), node("node-3", said))
            opened.repository.commit(disconnected(number), Outcome(changes=changes, actions=(fence(number),)))
            os.write(1, f"{number}\\n".encode())  # one write: SIGKILL leaves no half line
"""


def test_a_killed_writer_leaves_all_of_a_commit_or_nothing(database_url: str) -> None:
    """SIGKILL at a random moment between or inside commits, many times; each writer succeeds the one before at once."""
    migrate(database_url)
    engine = open_engine(database_url)
    dice = random.Random(7)
    rounds = 25 if engine.dialect.name == "sqlite" else 10
    told = 0
    with child(_WRITERS, database_url) as writers:
        assert writers.stdin is not None and writers.stdout is not None
        for _ in range(rounds):
            writers.stdin.write(f"{told}\n")
            writers.stdin.flush()
            pid = int(writers.stdout.readline())
            for _ in range(dice.randrange(1, 4)):
                told = int(writers.stdout.readline())
            until = time.perf_counter() + dice.uniform(0.0, 0.006)
            while time.perf_counter() < until:
                pass
            os.kill(pid, signal.SIGKILL)
            while (line := writers.stdout.readline()) != "ended\n":
                told = int(line)
            found = _numbers(engine)
            assert len(found) == 1, f"torn: {found}"
            assert found <= {told, told + 1}, "what was confirmed is there; one more may be"
            told = max(found)
        writers.stdin.close()
        assert writers.wait(LIMIT_SECONDS) == 0
    engine.dispose()


def _numbers(engine: Engine) -> set[int]:
    """The number of the newest commit, as every table tells it."""
    with reading(engine) as connection:
        state = connection.execute(
            text("SELECT reason FROM nodes UNION ALL SELECT reason FROM jobs")
        ).scalars()
        found = {int(each) for each in state}
        last = connection.execute(
            text("SELECT cause_id FROM events ORDER BY sequence DESC LIMIT 1")
        ).scalar_one()
        action = connection.execute(
            text("SELECT action_id FROM outbox ORDER BY sequence DESC LIMIT 1")
        ).scalar_one()
    return found | {int(last.rpartition("-")[2]), int(action.rpartition("-")[2])}


_CRASHES = """
    import os, sys
    from pathlib import Path
    from orchestrator.controller.controller import Controller, Ports
    from orchestrator.controller.ledger import FileLedger
    from orchestrator.core.outcome import Outcome
    from tests.integration.databases import Opened, node
    from tests.unit.orchestrator.controller.fakes import (
        Scripted, World, committed, disconnected, roll_back, start_node)

    class Dying(World):
        def start_node(self, node, in_place_of):
            os._exit(9)

    opened, ledger, world = Opened(sys.argv[1]), FileLedger(Path(sys.argv[2])), Dying()
    state = opened.repository.load()
    outcome = Outcome(changes=(node(),), actions=(start_node(1), roll_back(2, 1, 2)))
    machine = Scripted(state, lambda event: outcome if event == disconnected() else Outcome())
    ports = Ports(store=opened.repository, cluster=world, messenger=world, ledger=ledger, ending=world)
    controller = Controller(machine=machine, state=state, ports=ports)
    for step in (1, 2, 3):
        controller.handle(committed(step))
    controller.handle(disconnected())
"""


def test_a_crash_between_commit_and_perform_loses_no_action(database_url: str, tmp_path: Path) -> None:
    """The process dies in the first of two actions. Both are in the outbox, and the next process performs them."""
    migrate(database_url)
    with child(_CRASHES, database_url, str(tmp_path)) as crashing:
        assert crashing.wait(LIMIT_SECONDS) == 9
    opened, ledger, world = Opened(database_url), FileLedger(tmp_path), World()
    state = opened.repository.load()
    assert list(state.nodes) == ["node-1"] and ledger.reported_through == 3
    ports = Ports(store=opened.repository, cluster=world, messenger=world, ledger=ledger, ending=world)
    controller = Controller(machine=Scripted(state), state=state, ports=ports)
    assert controller.perform_unfinished() == 2
    assert world.diary == ["start node-1"] and ledger.reported_through == 1
    opened.repository.flush()
    assert opened.reopened().unfinished() == ()
    ledger.close()
    opened.close()


def test_a_store_that_fails_ends_the_runner_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """The disk fills up under a running controller; after room was made, a new one starts from the last commit."""
    opened = Opened(f"sqlite:///{tmp_path / 'controller.db'}")
    state, world, inbox = opened.repository.load(), World(), Inbox()
    numbers = iter(range(1, 1000))
    machine = Scripted(state, lambda event: _growing(next(numbers)))
    ports = Ports(store=opened.repository, cluster=world, messenger=world, ledger=world, ending=world)
    controller = Controller(machine=machine, state=state, ports=ports)
    errors: list[BaseException] = []
    runner = Runner(controller=controller, inbox=inbox, on_fatal=errors.append)
    runner.start()
    assert runner.submit(disconnected(1))
    wait_until(lambda: len(opened.queries.events()) == 1, within_seconds=LIMIT_SECONDS, what="a commit")
    make_room = _fill_the_disk(opened.engine)
    assert runner.submit(disconnected(2))
    wait_until(lambda: errors, within_seconds=LIMIT_SECONDS, what="the end of the runner")
    assert runner.stop(LIMIT_SECONDS)
    assert isinstance(errors[0], StoreError)
    assert "make room on its disk" in str(errors[0]) and "controller.db" in str(errors[0])
    make_room()
    successor = opened.reopened()
    assert [each.cause_id for each in opened.queries.events()] == ["cause-1"]
    assert len(successor.unfinished()) == 1
    successor.commit(disconnected(3), outcome(3))
    opened.close()


def _growing(number: int) -> Outcome:
    return outcome(number, node(reason="x" * 100_000 * number))


def _fill_the_disk(engine: Engine) -> Callable[[], None]:
    """Let SQLite find its disk full (its own code path, with a limit in place of a disk), until room is made."""

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    def make_room() -> None:
        event.remove(engine, "connect", limit)
        engine.dispose()

    event.listen(engine, "connect", limit)
    engine.dispose()
    return make_room


_LIMITED = """
    import resource, sys
    from orchestrator.controller.ports import StoreError
    from tests.integration.databases import Opened, disconnected, node, outcome
    opened = Opened(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        for number in range(1, 10_000):
            opened.repository.commit(disconnected(number), outcome(number, node(reason=str(number) + "x" * 5000)))
    except StoreError as error:
        print(number - 1, error)
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_commit_takes_none_of_it(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as on a full disk or beyond a quota."""
    url = f"sqlite:///{tmp_path / 'controller.db'}"
    with child(_LIMITED, url) as limited:
        said, _ = limited.communicate(timeout=LIMIT_SECONDS)
    stored, _, words = said.partition(" ")
    assert "controller.db" in words and "Remedy:" in words, said
    successor = Opened(url)
    assert successor.queries.last_sequence() == int(stored)
    assert len(successor.repository.unfinished()) == int(stored)
    assert successor.repository.load().nodes[NodeId("node-1")].reason.startswith(f"{stored}x")
    successor.close()


def test_a_read_only_database_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    opened = Opened(f"sqlite:///{path}")
    opened.lease.release()
    opened.close()
    engine = open_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(StoreError, match=r"readonly database.*Remedy: make the file and its folder writable"):
        ControllerLease(engine).acquire()
    assert Queries(engine).events() == (), "people can still read it"
    engine.dispose()


_LOCKING = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    sys.stdin.readline()
    connection.execute("COMMIT")
    connection.close()
    print("unlocked", flush=True)
"""


def test_a_lock_of_another_process_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    engine = open_engine(f"sqlite:///{path}", ConnectionLimits(busy_seconds=0.2))
    migrate_engine(engine)
    repository = Repository(engine, epoch=ControllerLease(engine).acquire())
    with child(_LOCKING, str(path)) as locking:
        assert locking.stdout is not None and locking.stdin is not None
        assert locking.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match=r"database is locked.*another process holds a lock"):
            repository.commit(disconnected(1), outcome(1))
        assert Queries(engine).events() == (), "readers are not locked out"
        locking.stdin.write("go\n")
        locking.stdin.flush()
        assert locking.stdout.readline() == "unlocked\n"
        assert locking.wait(LIMIT_SECONDS) == 0
    repository.commit(disconnected(1), outcome(1))
    engine.dispose()


def test_a_writer_waits_out_a_short_lock(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    opened = Opened(f"sqlite:///{path}")
    with child(_LOCKING, str(path)) as locking:
        assert locking.stdout is not None and locking.stdin is not None
        assert locking.stdout.readline() == "locked\n"
        locking.stdin.write("go\n")
        locking.stdin.flush()
        opened.repository.commit(disconnected(1), outcome(1))
        assert locking.wait(LIMIT_SECONDS) == 0
    opened.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    path.write_text("dear diary, " * 100)
    with pytest.raises(StoreError, match=r"not a database.*Remedy: the file is something else or damaged"):
        migrate(f"sqlite:///{path}")
    assert path.read_text() == "dear diary, " * 100


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing.*Remedy: check that its folder exists"):
        migrate(f"sqlite:///{tmp_path / 'missing' / 'controller.db'}")


@pytest.mark.parametrize(
    "url, says",
    [
        ("nonsense", "cannot be read; write sqlite"),
        ("sqlite://", "an SQLite database in memory"),
        ("mysql://user:secret@host/name", "a database of kind 'mysql'"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        open_engine(url)
    assert "secret" not in str(caught.value)


def test_no_server_is_a_typed_error_without_the_password() -> None:
    with pytest.raises(
        StoreError, match=r"postgresql\+psycopg://user:\*\*\*@127.0.0.1:1/name.*Remedy:"
    ) as caught:
        migrate("postgresql://user:secret@127.0.0.1:1/name?password=secret")
    assert "secret" not in str(caught.value)


def test_passwords_are_never_shown() -> None:
    engine = open_engine("postgresql://user:secret@host/name?password=secret&sslmode=require")
    assert shown(engine.url) == "postgresql+psycopg://user:***@host/name?sslmode=require"


# ---- PostgreSQL that goes away ----


@pytest.fixture
def own_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that this test may stop."""
    with running_server() as server:
        yield server


@pytest.mark.postgres
def test_a_server_that_goes_away_is_a_typed_error_and_one_that_is_back_is_used_again(
    own_server: PostgresServer,
) -> None:
    opened = Opened(own_server.database())
    opened.repository.commit(disconnected(1), outcome(1))
    own_server.stop()
    with pytest.raises(StoreError, match=r"cannot write to the database postgresql.*Remedy:"):
        opened.repository.commit(disconnected(2), outcome(2))
    own_server.restart()
    assert [each.cause_id for each in opened.queries.events()] == ["cause-1"]
    opened.repository.commit(disconnected(3), outcome(3))
    opened.close()


@pytest.mark.postgres
def test_a_connection_that_was_cut_between_two_commits_is_replaced(postgres_server: PostgresServer) -> None:
    opened = Opened(postgres_server.database())
    opened.repository.commit(disconnected(1), outcome(1))
    other = open_engine(opened.url)
    with writing(other) as connection:
        cut = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert connection.execute(text(cut)).scalar_one() >= 1
    other.dispose()
    opened.repository.commit(disconnected(2), outcome(2))
    assert len(opened.queries.events()) == 2
    opened.close()


# ---- what a commit survives ----


@pytest.mark.parametrize("durability", list(Durability))
def test_sqlite_syncs_as_far_as_it_was_told(tmp_path: Path, durability: Durability) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'controller.db'}", durability=durability)
    levels = {Durability.PROCESS_DEATH: 1, Durability.POWER_FAILURE: 2}
    for synced in (False, True, False):
        with writing(engine, synced=synced) as connection:
            level = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        assert level == (levels[Durability.POWER_FAILURE] if synced else levels[durability])
    with reading(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    engine.dispose()
