"""The schema: made by migrations, the same as the code's tables, up to date at once, and refused when it is newer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

import migrations
from orchestrator.store.engine import open_engine, reading, writing
from orchestrator.store.schema import SchemaTooNew, migrate, migrate_engine
from orchestrator.store.tables import metadata
from tests.integration.databases import Opened, child, disconnected, node, outcome


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    yield made
    made.dispose()


def test_the_migrations_make_the_tables_of_the_code(engine: Engine) -> None:
    migrate_engine(engine)
    with reading(engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_indexes_keys_and_constraints_have_the_same_names(engine: Engine) -> None:
    """What the comparison above does not look at."""
    migrate_engine(engine)
    found = inspect(engine)
    for table in metadata.sorted_tables:
        key = found.get_pk_constraint(table.name)
        assert key["constrained_columns"] == [each.name for each in table.primary_key.columns]
        assert key["name"] in (table.primary_key.name, None), "SQLite has no name for a key that counts up"
        assert {
            each["name"] for each in found.get_indexes(table.name) if not each.get("duplicates_constraint")
        } == {each.name for each in table.indexes}
        assert {each["name"] for each in found.get_foreign_keys(table.name)} == {
            each.name for each in table.foreign_key_constraints
        }


def test_migrating_again_changes_nothing(database_url: str) -> None:
    opened = Opened(database_url)
    opened.repository.commit(disconnected(), outcome(1, node()))
    migrate(database_url)
    assert opened.repository.load().nodes == {node().id: node()}
    opened.close()


def test_an_up_to_date_database_is_recognised_without_loading_alembic(tmp_path: Path) -> None:
    """A restarted controller is waited for."""
    url = f"sqlite:///{tmp_path / 'controller.db'}"
    migrate(url)
    code = """
        import sys
        from orchestrator.store.schema import migrate
        migrate(sys.argv[1])
        print("alembic" in sys.modules)
        """
    with child(code, url) as starting:
        said, _ = starting.communicate(timeout=60)
    assert said == "False\n"


def test_a_newer_database_is_refused_with_a_remedy_and_left_alone(engine: Engine) -> None:
    migrate_engine(engine)
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        SchemaTooNew, match=r"schema version 9999.*newest is .*Remedy: start it with the version"
    ):
        migrate_engine(engine)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_a_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    """A table of that name is in the way of one of the last steps: none of the others may remain."""
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE outbox (mine INTEGER)"))
    with pytest.raises(Exception, match="outbox"):
        migrate_engine(engine)
    assert inspect(engine).get_table_names() == ["outbox"]


def test_controllers_that_start_together_take_turns(database_url: str) -> None:
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait(timeout=30)
        migrate(database_url)

    with ThreadPoolExecutor(4) as pool:
        for started in [pool.submit(start) for _ in range(4)]:
            started.result(timeout=60)


def test_every_step_can_be_taken_back(engine: Engine) -> None:
    migrate_engine(engine)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate_engine(engine)
    assert set(inspect(engine).get_table_names()) == {"alembic_version", *metadata.tables}
