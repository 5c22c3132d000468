"""What a controller begins with: the job that it is given, the folder that it works in, the first events of the core.

Nothing runs yet; what cannot begin is refused with the option, its value and a remedy. Next: `app.py`, which runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import assert_never

from orchestrator.cluster.processes import dead_nodes
from orchestrator.core.decision import ENDED
from orchestrator.core.events import ControllerStarted, Event, JobSubmitted, NodeDisconnected
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import ClusterState, Job
from orchestrator.jobfile import JobFileError, load_job_file
from orchestrator.service import whereabouts
from orchestrator.service.causes import Causes
from orchestrator.settings import DATABASE_FILE, Settings, SettingsError, default_database


class Beginning(Enum):
    """With what a controller begins."""

    SUBMIT = "a new job"
    RESUME = "a job that goes on from its newest checkpoint"
    RESTART = "a job that is under way, or has ended and is only shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """What the first events follow from."""

    begin: Beginning
    spec: JobSpec
    state: ClusterState
    workdir: Path


def job_file(settings: Settings) -> JobSpec | None:
    """The job of the file that was named; None without one. Raises SettingsError with every problem."""
    if settings.job_file is None:
        return None
    try:
        begun = (settings.workdir / whereabouts.CONTROLLER_FILE).exists()
        return load_job_file(settings.job_file, settings.overrides, looks_at_data=not begun)
    except JobFileError as error:
        raise SettingsError(
            "--job", settings.job_file, f"cannot run, nothing was started:\n{error}"
        ) from error


def prepare_workdir(settings: Settings) -> None:
    """Make the folder, unless there would be nothing to do in it."""
    in_workdir = settings.database == default_database(settings.workdir)
    named = settings.job_file is not None or settings.job_object is not None
    if not named and in_workdir and not (settings.workdir / DATABASE_FILE).exists():
        raise SettingsError(
            "--job", None, f"{settings.workdir} holds no job yet: name a job file with --job FILE"
        )
    try:
        settings.workdir.mkdir(parents=True, exist_ok=True)
        probe = settings.workdir / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        remedy = f"cannot be written to ({error.strerror}): name another folder"
        raise SettingsError("--workdir", str(settings.workdir), remedy) from error


def beginning(settings: Settings, spec: JobSpec | None, stored: Job | None, *, nodes_live: bool) -> Beginning:
    """What to begin with, from what was asked for and what is there. Raises SettingsError."""
    if stored is None:
        if spec is None:
            raise SettingsError(
                "--job", None, "the database holds no job yet: name a job file with --job FILE"
            )
        return Beginning.SUBMIT
    other = spec is not None and spec != stored.spec
    if other and not settings.resume:
        raise SettingsError(
            "--job",
            settings.job_file,
            f"{settings.workdir} holds another job ({stored.spec.name}, {stored.state.value}): name another --workdir, "
            "or add --resume to go on with that job under the new settings",
        )
    if nodes_live and stored.state not in ENDED:
        if other:
            raise SettingsError(
                "--job",
                settings.job_file,
                f"job {stored.spec.name} is training in {settings.workdir} right now, with other settings: stop it "
                "first, or leave --job out to take its control over",
            )
        return Beginning.RESTART
    if stored.state in ENDED and not settings.resume:
        return Beginning.RESTART
    return Beginning.RESUME


def first_events(first: First, causes: Causes, at: float) -> Iterator[Event]:
    """What the core hears before it hears from any node."""
    match first.begin:
        case Beginning.SUBMIT | Beginning.RESUME:
            resume = first.begin is Beginning.RESUME
            yield JobSubmitted(at=at, cause_id=causes.fresh("submission"), spec=first.spec, resume=resume)
        case Beginning.RESTART:
            yield ControllerStarted(at=at, cause_id=causes.fresh("start"))
            # Who died while there was no controller need not be waited for until a lease runs out.
            for node in dead_nodes(first.workdir):
                known = first.state.nodes.get(node)
                if known is not None:
                    yield NodeDisconnected(
                        at=at,
                        cause_id=causes.fresh("disconnected"),
                        node=node,
                        incarnation=known.incarnation,
                        reason="its process ended while there was no controller",
                    )
        case _:
            assert_never(first.begin)
