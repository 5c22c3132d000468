"""What every test session has: transcripts that can be rewritten, and no process left behind.

Time limits, markers and warnings-as-errors are in `pyproject.toml`. Fixtures of one suite live in its own conftest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.leaks import kill, mark_this_session, strays
from tests.waiting import wait_until

LEAK_GRACE_SECONDS = 5.0
_mark_key = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what happens into the scenario transcripts instead of comparing; review the diff",
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """True where transcripts are to be written anew instead of compared."""
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A new folder that others may look into and not write to (`tests/permissions.py`)."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder
        for each in folder.iterdir():
            each.chmod(0o755)


def pytest_configure(config: pytest.Config) -> None:
    # How long one example takes says more about the machine than about the code.
    settings.register_profile("house", deadline=None)
    settings.load_profile("house")
    if not runs_a_share(config):
        config.stash[_mark_key] = mark_this_session()


def runs_a_share(config: pytest.Config) -> bool:
    """Whether this process runs a share of a session's tests for pytest-xdist, and carries the mark of the session."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the session that leaves a process alive, name it, and end it; after those that ran shares of it are gone."""
    yield
    if runs_a_share(session.config):
        return
    mark = session.config.stash[_mark_key]
    try:
        wait_until(
            lambda: not strays(mark), within_seconds=LEAK_GRACE_SECONDS, what="an end of all processes"
        )
    except AssertionError:
        left = strays(mark)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for stray in left:
            kill(stray)
        lines = [
            f"a test left this process alive (killed now): {stray.pid} {stray.command}" for stray in left
        ]
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("")
            for line in lines:
                reporter.write_line(line, red=True)
