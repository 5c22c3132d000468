"""Fixtures of the integration suite: databases, and an API server of Kubernetes.

Parametrised tests run on SQLite and on PostgreSQL alike. The PostgreSQL server is a throw-away one
(`chaos/postgres.py`). Where its programs are missing, tests that ask for it are skipped; with
UNDERSTUDY_REQUIRE_POSTGRES=1 they fail instead, for machines that are meant to have it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.postgres import NotInstalled, PostgresServer, running_server
from tests.integration.databases import Opened
from tests.integration.played_kubernetes import PlayedKubernetes, serving

REQUIRE_VARIABLE = "UNDERSTUDY_REQUIRE_POSTGRES"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session's own."""
    try:
        with running_server() as server:
            yield server
    except NotInstalled as error:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'controller.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.database()


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    """A migrated database, with the lease taken."""
    database = Opened(database_url)
    yield database
    database.close()


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedKubernetes]:
    """An API server that is played, to which the kubeconfig of this process leads."""
    with serving(tmp_path) as (played, config):
        # The client reads the environment once, when it is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield played
