"""A throw-away PostgreSQL server, in a temporary folder, as an ordinary user: for chaos runs and for the store's tests.

Needs nothing but the programs: `initdb` and `pg_ctl`, on the PATH or where Debian and Fedora keep them (`apt install
postgresql` is enough; no running service, no role, no configuration is touched). The server listens on a socket in its
own folder and on no port. PostgreSQL refuses to run as root, so root runs it as `postgres` or `nobody`.

By hand: `python -m chaos.postgres` starts one, prints its URL, and ends it when its input ends (Ctrl-D).
"""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
)
_START_SECONDS = 60
_USER = "understudy"


class NotInstalled(Exception):
    """There is no PostgreSQL server on this machine."""


class PostgresServer:
    """A running server; `database()` gives the URL of a fresh, empty database in it."""

    def __init__(self, folder: Path, programs: Path, account: str | None) -> None:
        self.folder = folder
        self._programs = programs
        self._account = account
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Make the files and start. Raises RuntimeError with the server's own words."""
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        self.restart()

    def restart(self) -> None:
        """Start it again after `stop`."""
        data, log = self.folder / "data", self.folder / "log"
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off -F"
        self._run(
            "pg_ctl", "-D", str(data), "-l", str(log), "-w", "-t", str(_START_SECONDS), "-o", options, "start"
        )

    def stop(self) -> None:
        """End it, connections or not."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def database(self) -> str:
        """URL of a fresh database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._run("createdb", "-h", str(self.folder), "-U", _USER, name)
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command,
            user=self._account,
            group=None if self._account is None else pwd.getpwnam(self._account).pw_gid,
            extra_groups=None if self._account is None else [],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server keeps it open; a pipe would never end
            stderr=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            timeout=_START_SECONDS + 10,
            check=False,
        )
        if done.returncode != 0:
            log = self.folder / "log"
            said = (done.stderr or b"").decode(errors="replace") or (log.read_text() if log.exists() else "")
            raise RuntimeError(f"{program} failed with {done.returncode}: {said.strip()}")


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server that is gone afterwards, with its folder. Raises NotInstalled."""
    programs = _programs()
    account = _account() if os.geteuid() == 0 else None
    folder = Path(
        tempfile.mkdtemp(prefix="understudy-pg-", dir="/tmp")
    )  # short: a socket's path has 107 letters
    try:
        if account is not None:
            os.chown(folder, pwd.getpwnam(account).pw_uid, pwd.getpwnam(account).pw_gid)
        server = PostgresServer(folder, programs, account)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_installed() -> bool:
    """Whether `running_server` would find one."""
    try:
        _programs()
        return os.geteuid() != 0 or bool(_account())
    except NotInstalled:
        return False


def _programs() -> Path:
    """The folder of the newest server's programs."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += [
        Path(each) for place in _PLACES for each in sorted(glob.glob(place), key=_version, reverse=True)
    ]
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "createdb", "postgres")):
            return folder
    raise NotInstalled("PostgreSQL is not installed here (initdb not found): apt install postgresql")


def _version(folder: str) -> list[int]:
    return [int(part) for part in folder.replace("-", "/").split("/") if part.isdigit()]


def _account() -> str:
    """An ordinary user for a session of root."""
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise NotInstalled("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


if __name__ == "__main__":
    with running_server() as started:
        print(started.database(), flush=True)
        sys.stdin.read()
