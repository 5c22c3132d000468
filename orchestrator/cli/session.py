"""One run on this machine, from the start of its controller to the report: watch, restart, interrupt, end.

The controller decides about the job; a session only keeps a controller alive, shows what it says, and sees to it
that nothing is left behind. Next: `launch.py` (the process), `watch.py` (the view), `screen.py` (the picture).
"""

from __future__ import annotations

import getpass
import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cli import processes, rows
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.connection import Admin, ClientTls, Target
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.interrupts import Interrupts
from orchestrator.cli.launch import (
    LONGEST_PAUSE_SECONDS,
    PROGRAM,
    Controller,
    Death,
    RestartBudget,
    pause_seconds,
)
from orchestrator.cli.live import ENDED, Aside
from orchestrator.cli.picture import Recorder
from orchestrator.cli.screen import Screen
from orchestrator.cli.watch import Sighting, Watch
from protos import admin_pb2

LOOK_SECONDS = 0.25
STOP_AGAIN_SECONDS = 1.0
"""A stop that no controller took is asked for again after this long."""
AWAY_SECONDS = 1.0
"""A controller that is away for less is not worth a word."""
END_SECONDS = 30.0
"""For controller and nodes to end by themselves once the job is over."""
GRACE_SECONDS = 3.0
"""From SIGTERM to SIGKILL, when we end nodes ourselves."""
KILL_SECONDS = 5.0

TAKE_UP_SECONDS = 10.0
"""For a controller to take up a job that had ended."""
SOUND_SECONDS = 60.0
"""A controller that lived for so long had a sound database."""
_MOST_SAID = 3

_HINT = "Ctrl-C stops at a step boundary, with a checkpoint"
_STOPPING = (
    "stopping: a checkpoint at the next step boundary, then the end (Ctrl-C again ends everything at once)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a session is to do."""

    workdir: Path
    resume: bool = False
    """The work directory holds a run already."""
    token_file: Path | None = None
    token: str = ""
    tls: ClientTls | None = None
    """What the session shows a controller that speaks TLS; the rest lies beside it in the work directory."""
    record_svg: Path | None = None
    listen: str = "127.0.0.1:0"
    """HOST:PORT of the controller; port 0 picks a free one."""
    labels: tuple[str, ...] = ()
    """Of nodes, as NODES:NAME=VALUE."""
    program: tuple[str, ...] = PROGRAM
    """How a controller is started."""
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    """Before it is started again, while its database fails."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a session ended. `view` and `summary` are None when it was ended before there was one."""

    view: admin_pb2.JobView | None = None
    summary: dict[str, Any] | None = None
    ended_at_once: bool = False
    checkpoints: list[rows.Row] = field(default_factory=list)
    """As last seen, by step."""
    notes: list[str] = field(default_factory=list)


class EndNow(Exception):
    """The second Ctrl-C: everything ends at once."""


class Session:
    """Use once: `run`."""

    def __init__(self, plan: Plan, screen: Screen, interrupts: Interrupts) -> None:
        self._plan = plan
        self._screen = screen
        self._interrupts = interrupts
        files = plan.tls.ca if plan.tls is not None else None
        folder = files.parent if isinstance(files, Path) else None
        self._controller = Controller(
            plan.workdir, plan.token_file, plan.program, tls_folder=folder, labels=plan.labels
        )
        self._budget = RestartBudget()
        self._database_failures = 0
        """In a row."""
        self._restart_at: float | None = None
        self._controller_began_at = time.monotonic()
        self._recorder = Recorder(plan.record_svg) if plan.record_svg else None
        self._outcome = Outcome()
        self._admin: Admin | None = None
        self._watch: Watch | None = None
        self._said: deque[str] = deque(maxlen=_MOST_SAID)
        self._stop_asked_at: float | None = None
        self._stop_taken = False
        self._stopping: Future[str] | None = None
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stop")
        self._began_at = time.time()

    def run(self) -> Outcome:
        """Until the job has ended or was ended. Raises CliError; whatever happens, no process stays behind."""
        orderly = False
        try:
            self._begin()
            self._outcome.view = self._follow()
            self._finish(self._outcome.view)
            orderly = True
        except EndNow:
            self._outcome.ended_at_once = True
            self._outcome.checkpoints = self._last_checkpoints()
        finally:
            self._close(orderly)
        return self._outcome

    def _last_checkpoints(self) -> list[rows.Row]:
        view = self._watch.look().view if self._watch is not None else None
        return sorted(map(rows.checkpoint, view.checkpoints), key=lambda each: each["step"]) if view else []

    # ---- begin ----

    def _begin(self) -> None:
        record = self._living() if self._plan.resume else None
        if record is None:
            self._controller.start(listen=self._plan.listen, resume=self._plan.resume)
            address = self._controller.wait_for_address(self._starting)
        else:
            address = record.address
            self._note(f"the controller lives (pid {record.pid}): watching it")
        self._listen_to(address)

    def _living(self) -> workdirs.ControllerRecord | None:
        """The controller that trains in the work directory already; one that only shows an ended job is ended."""
        record = self._controller.adopt()
        if record is None:
            return None
        with Admin(self._target(record.address), self._plan.token) as admin:
            if not all(job.state in ENDED for job in admin.jobs()):
                return record
            admin.shutdown(by=who(), force=True)
        self._controller.wait_for_death(END_SECONDS, lambda: self._interrupts.count > 0)
        self._controller.kill()
        return None

    def _target(self, address: str) -> Target:
        origin = str(self._plan.workdir / workdirs.CONTROLLER_FILE)
        return Target(address=address, origin=origin, workdir=self._plan.workdir, tls=self._plan.tls)

    def _starting(self, waited_seconds: float) -> None:
        self._screen.progress(f"starting the controller ({self._plan.workdir / workdirs.CONTROLLER_LOG})")
        if self._interrupts.count:
            raise EndNow  # nothing is trained yet that could be saved
        del waited_seconds

    def _listen_to(self, address: str) -> None:
        self._admin = Admin(self._target(address), self._plan.token)
        self._watch = Watch(self._admin)

    # ---- follow ----

    def _follow(self) -> admin_pb2.JobView:
        """Look, show, mind the controller, heed Ctrl-C; until a view shows that the job has ended."""
        assert self._watch is not None
        while True:
            sighting = self._watch.wait(LOOK_SECONDS)
            if sighting.refused is not None:
                raise sighting.refused
            if sighting.view is None:
                self._screen.progress("waiting for the controller's first word")
            else:
                self._screen.show(sighting.view, self._aside(sighting))
                if self._recorder is not None:
                    self._record(sighting.view)
                if sighting.away_since is None and self._has_ended(sighting.view.job):
                    return sighting.view
            self._heed_interrupts(sighting)
            self._mind_controller()

    def _has_ended(self, job: admin_pb2.Job) -> bool:
        """A job that is resumed still shows its last end until the controller has taken it up again."""
        old = job.ended_at < self._began_at and time.time() < self._began_at + TAKE_UP_SECONDS
        return job.state in ENDED and not (self._plan.resume and old)

    def _record(self, view: admin_pb2.JobView) -> None:
        assert self._recorder is not None
        try:
            if view.job.state in ENDED:
                self._recorder.end(view)
            else:
                self._recorder.see(view)
        except OSError as error:
            self._recorder = None
            self._note(f"no picture: {error}")

    def _aside(self, sighting: Sighting) -> Aside:
        away = None if sighting.away_since is None else time.monotonic() - sighting.away_since
        return Aside(
            notes=tuple(self._said),
            hint=_HINT if self._stop_asked_at is None else _STOPPING,
            away_seconds=away if away is not None and away >= AWAY_SECONDS else None,
        )

    def _heed_interrupts(self, sighting: Sighting) -> None:
        if self._interrupts.count >= 2:
            raise EndNow
        if self._screen.gone and not self._interrupts.count:
            self._interrupts.count = 1
        if not self._interrupts.count or self._stop_taken or not self._stop_answered():
            return
        now = time.monotonic()
        if self._stop_asked_at is None:
            self._screen.note(_STOPPING)
        elif now - self._stop_asked_at < STOP_AGAIN_SECONDS:
            return
        self._stop_asked_at = now
        if sighting.away_since is not None:
            return
        assert self._admin is not None
        self._stopping = self._background.submit(self._admin.stop, who())

    def _stop_answered(self) -> bool:
        """False while a controller thinks about it; a second Ctrl-C does not wait for that."""
        if self._stopping is None:
            return True
        if not self._stopping.done():
            return False
        try:
            self._say(self._stopping.result())
            self._stop_taken = True
        except CliError as error:
            self._say(error.message)
        self._stopping = None
        return not self._stop_taken

    def _mind_controller(self) -> None:
        death = self._controller.death()
        if death is None:
            return
        now = time.monotonic()
        if self._restart_at is None:
            self._restart_at = now + self._pause_before_restart(death, now)
        if now >= self._restart_at:
            assert self._admin is not None
            self._restart_at, self._controller_began_at = None, now
            self._controller.start(listen=self._admin.target.address, resume=False)

    def _pause_before_restart(self, death: Death, now: float) -> float:
        """Seconds. Raises CliError when it is not to be started again."""
        number = self._budget.take(now) if death.restartable else None
        said = self._controller.last_words()
        if number is None:
            log = self._plan.workdir / workdirs.CONTROLLER_LOG
            often = f", {self._budget.limit} times in a row" if death.restartable else ""
            raise CliError(
                f"the controller {death}{often}\n{said.message if said else self._controller.quoted()}",
                remedy=f"read {log}, then go on with `understudy run --resume {self._plan.workdir}`",
                exit_code=ExitCode.FAILED,
            )
        if now - self._controller_began_at > SOUND_SECONDS:
            self._database_failures = 0
        self._database_failures += death.of_its_database
        pause = pause_seconds(self._database_failures, self._plan.longest_pause_seconds)
        when = f" in {pause:.0f} s" if pause >= 1.0 else ""
        why = f". It said: {said.message}" if said and death.of_its_database else ""
        self._note(
            f"the controller {death}: training goes on; it is started again{when} "
            f"({number} of {self._budget.limit}){why}"
        )
        return pause

    def _note(self, words: str) -> None:
        """For the screen and for the report."""
        self._outcome.notes.append(words)
        self._say(words)

    def _say(self, words: str) -> None:
        """For the screen only."""
        self._said.append(words)
        self._screen.note(words)

    # ---- end ----

    def _finish(self, view: admin_pb2.JobView) -> None:
        """Keep what the controller knows, then have it end itself and its nodes."""
        assert self._admin is not None
        summary = json.loads(self._admin.summary())
        self._outcome.summary = summary
        self._keep(summary, view)
        self._screen.progress("ending controller and nodes")
        try:
            self._admin.shutdown(by=who(), force=False)
        except CliError as error:
            self._note(f"{error.message}; it is ended from here")
            return
        before = self._interrupts.count
        self._controller.wait_for_death(END_SECONDS, lambda: self._interrupts.count > max(1, before))

    def _keep(self, summary: dict[str, Any], view: admin_pb2.JobView) -> None:
        """Summary and stories, for when no controller can be asked any more. A full disk is not the job's failure."""
        assert self._admin is not None
        try:
            text = json.dumps(summary, indent=2, ensure_ascii=False)
            workdirs.write_atomically(self._plan.workdir / workdirs.SUMMARY_FILE, text + "\n")
            for incident in view.incidents:
                told = rows.explanation(self._admin.explain(incident.id))
                workdirs.write_story(self._plan.workdir, incident.id, told)
        except (OSError, CliError) as error:
            self._note(f"summary or stories could not be kept: {error}")

    def _close(self, orderly: bool) -> None:
        """The terminal first, then every process: the controller is asked, then killed; nodes likewise."""
        try:
            self._screen.close()
            if self._watch is not None:
                self._watch.close()
            if self._admin is not None:
                if not orderly and not self._outcome.ended_at_once:
                    self._force_shutdown(self._admin)
                self._admin.close()
            self._background.shutdown(wait=False)
        finally:
            if self._controller.pid is not None:
                self._controller.kill()
            grace = GRACE_SECONDS if self._interrupts.count < 2 else 0.0
            ended = processes.end_nodes(self._plan.workdir, grace_seconds=grace, kill_seconds=KILL_SECONDS)
        if ended and orderly:
            self._outcome.notes.append(f"nodes had to be ended from here: {', '.join(ended)}")

    def _force_shutdown(self, admin: Admin) -> None:
        """Best effort: who does not hear it is killed next."""
        if self._controller.death() is not None:
            return
        try:
            admin.shutdown(by=who(), force=True)
        except CliError:
            return
        self._controller.wait_for_death(GRACE_SECONDS, lambda: self._interrupts.count >= 2)


def who() -> str:
    """The name that goes into the audit log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
