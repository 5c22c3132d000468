"""A work directory: what lies where, how one is chosen, and what may be written into it.

Nothing is written before everything has been checked. Next: `launch.py`, which starts a controller in it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.cli import processes
from orchestrator.cli.colours import natural
from orchestrator.cli.errors import CliError
from orchestrator.cli.rows import Row
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import to_mapping

DEFAULT_PARENT = "understudy-runs"
JOB_FILE = "job.yaml"
"""The effective job: the file that was given with every default and override in it."""
CONTROLLER_FILE = "controller.json"
CONTROLLER_LOG = Path("logs") / "controller.log"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
SUMMARY_FILE = "summary.json"
CURVES_FOLDER = "tensorboard"
INCIDENTS_FOLDER = "incidents"
NODES_FOLDER = "nodes"

_TRACES_OF_A_RUN = (
    JOB_FILE,
    CONTROLLER_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    NODES_FOLDER,
    "checkpoints",
    "controller.db",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRecord:
    """What a controller wrote about itself when it began to listen."""

    address: str
    pid: int
    tls: bool = False
    """It speaks TLS."""


def read_controller(directory: Path) -> ControllerRecord | None:
    """The newest controller of a work directory, or None when there is no (whole) record."""
    try:
        record = json.loads((directory / CONTROLLER_FILE).read_text(encoding="utf-8"))
        return ControllerRecord(
            address=str(record["address"]), pid=int(record["pid"]), tls=record.get("tls") is True
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def controller_alive(directory: Path) -> bool:
    """True while the controller that wrote the record is the process with its pid."""
    record = read_controller(directory)
    return record is not None and processes.is_controller(record.pid, directory)


def newest(parent: Path) -> Path | None:
    """The work directory below `parent` whose controller was started last."""
    try:
        found = [each.parent for each in parent.glob(f"*/{CONTROLLER_FILE}")]
        return max(found, key=lambda each: (each / CONTROLLER_FILE).stat().st_mtime, default=None)
    except OSError:
        return None


def choose(job_name: str, given: Path | None, at: float) -> Path:
    """An absolute path that can become the work directory of a new run. Writes nothing. Raises CliError."""
    if given is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(at))
        chosen = Path(DEFAULT_PARENT) / f"{job_name}-{stamp}"
        attempt = 2
        while chosen.exists():
            chosen = Path(DEFAULT_PARENT) / f"{job_name}-{stamp}-{attempt}"
            attempt += 1
    else:
        chosen = given
    chosen = chosen.expanduser().absolute()
    _refuse_taken(chosen)
    _refuse_unwritable(chosen)
    return chosen


def _refuse_taken(directory: Path) -> None:
    try:
        present = {each.name for each in directory.iterdir()} if directory.is_dir() else set()
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from error
    if present.intersection(_TRACES_OF_A_RUN):
        raise CliError(
            f"{directory} holds another run",
            remedy=f"go on with that run: `understudy run --resume {directory}`; or name another --workdir",
        )


def _refuse_unwritable(directory: Path) -> None:
    existing = nearest(directory)
    if not existing.is_dir():
        raise _unusable(directory, f"{existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unusable(directory, f"no permission to write to {existing}")


def nearest(path: Path) -> Path:
    """What is there of an absolute path, as far as we may look: the path itself, or the nearest folder above it."""
    while path != path.parent and not _seen(path):
        path = path.parent
    return path


def _seen(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _unusable(directory: Path, reason: str) -> CliError:
    return CliError(
        f"{directory} cannot be the work directory: {reason}",
        remedy="name one that you can write to with --workdir",
    )


def prepare(directory: Path, spec: JobSpec) -> Path:
    """Make the directory and write the effective job file. Returns the path of the file."""
    text = "# The job as it runs, with every default and override filled in.\n"
    text += yaml.safe_dump(to_mapping(spec), sort_keys=False, allow_unicode=True)
    path = directory / JOB_FILE
    try:
        (directory / CONTROLLER_LOG.parent).mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from error
    return path


def withdraw(directory: Path) -> None:
    """Take back what a run that never came about has written, so that the same command can be given again."""
    for name in (
        JOB_FILE,
        METRICS_FILE,
        "controller.db",
        "controller.db-wal",
        "controller.db-shm",
        "copy-token",
        "labels",
    ):
        (directory / name).unlink(missing_ok=True)
    (directory / CONTROLLER_LOG).unlink(missing_ok=True)
    for folder in (
        directory / CONTROLLER_LOG.parent,
        directory / NODES_FOLDER,
        directory / "checkpoints",
        directory,
    ):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_story(directory: Path, incident: str, explanation: Row) -> None:
    """Keep what `explain` needs, for when the controller has ended. Raises OSError."""
    text = json.dumps(explanation, indent=2, ensure_ascii=False)
    write_atomically(directory / INCIDENTS_FOLDER / f"{incident}.json", text + "\n")


def read_story(directory: Path, incident: str) -> Row | None:
    """A kept story; None when there is none of that incident."""
    if Path(incident).name != incident:
        return None
    try:
        story: Row = json.loads(
            (directory / INCIDENTS_FOLDER / f"{incident}.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return None
    return story


def stories(directory: Path) -> list[str]:
    """Incidents whose stories were kept, in order."""
    return sorted((each.stem for each in (directory / INCIDENTS_FOLDER).glob("*.json")), key=natural)


def resumable(given: Path) -> Path:
    """The absolute path of a work directory that a run can go on in. Raises CliError."""
    directory = given.expanduser().absolute()
    if not _seen(directory / JOB_FILE):
        raise CliError(
            f"{directory} is not the work directory of a run: it has no {JOB_FILE}",
            remedy="give the directory that `understudy run` printed at its start",
        )
    _refuse_unwritable(directory)
    return directory


def write_atomically(path: Path, text: str) -> None:
    """The whole text or the old file; never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
