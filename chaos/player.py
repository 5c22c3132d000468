"""Plays runs: start, strike, wait for rest, strike again, stop, judge. Everything that an invocation shares is here.

What is drawn is in `plan.py`, how it is inflicted in `strikes.py`, what must be true afterwards in `laws.py`.
Next: `report.py`, which tells.
"""

from __future__ import annotations

import copy
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from chaos import capabilities, laws, leftovers, rest
from chaos.databases import Database, Embedded, Servers
from chaos.disks import SmallDisk
from chaos.kinds import Aftermath, Kind, Need
from chaos.network import Namespaces, Network, NetworkError
from chaos.plan import RunPlan, Strike
from chaos.reference import Reference
from chaos.relays import Relays
from chaos.stage import Setting, Stage, pause
from chaos.strikes import STRIKES, Deed, Scene
from chaos.waiting import NeverCame
from orchestrator.cli.errors import CliError

MOST_NODES = 10
_CUTS = {Kind.CUT, Kind.CUT_OUT, Kind.CUT_IN, Kind.CUT_CONTROL}


@dataclass(slots=True, kw_only=True)
class StrikeResult:
    """A strike as it was played."""

    strike: Strike
    skipped: str = ""
    """Why it was not."""
    deed: Deed | None = None
    at: float = 0.0
    rest_seconds: float | None = None
    """From the strike until the run was whole again and had gone on; None where it was not."""
    incidents: list[str] = field(default_factory=list)
    """Ids; the incidents themselves are in the run's evidence."""


@dataclass(slots=True, kw_only=True)
class RunResult:
    """A run as it was played and judged."""

    plan: RunPlan
    workdir: Path
    strikes: list[StrikeResult] = field(default_factory=list)
    incidents: dict[str, dict[str, Any]] = field(default_factory=dict)
    offences: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0

    @property
    def survived(self) -> bool:
        return not self.offences


class Player:
    """One invocation: a folder, a job, a machine. Use as a context."""

    def __init__(self, folder: Path, job: dict[str, Any], *, keep: bool) -> None:
        self.folder = folder
        self.machine = capabilities.met()
        self._job = job
        self._keep = keep
        self._servers = Servers()
        self._network: Network | None = None
        self._reference = Reference(folder, job)

    def __enter__(self) -> Player:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *unused: object) -> None:
        self._servers.close()
        if self._network is not None:
            self._network.close()

    def play(self, plan: RunPlan) -> RunResult:
        """One run, from its start to its verdict. What goes wrong with the run is an offence, not an exception."""
        began = time.monotonic()
        workdir = self.folder / f"run-{plan.number:03d}"
        result = RunResult(plan=plan, workdir=workdir)
        mark = f"{self.folder.name}-{plan.number}-{time.time_ns()}"
        shared_before = leftovers.shared_names()
        code: int | None = None
        try:
            with ExitStack() as stack:
                stage = stack.enter_context(Stage(self._setting(plan, workdir, mark)))
                rest.start(stage, plan.nodes)
                # Before the first checkpoint, so that it hides nothing; a lazy unmount lets it go at any time.
                disk = stack.enter_context(SmallDisk(workdir / "checkpoints")) if self._fills(plan) else None
                for number, strike in enumerate(plan.strikes):
                    result.strikes.append(self._result(strike))
                    if not result.strikes[-1].skipped:
                        _strike(result.strikes[-1], stage, disk, f"strike-{number}")
                code = stage.stop()
        except (NeverCame, CliError, NetworkError, OSError, RuntimeError, SubprocessError) as error:
            result.offences.append(f"{type(error).__name__}: {error}")
        result.offences += leftovers.orphans(mark) + leftovers.forgotten(shared_before)
        if code is not None:
            self._judge(result, code)
        result.seconds = time.monotonic() - began
        if result.survived and not self._keep:
            _remove(workdir)
        return result

    def _result(self, strike: Strike) -> StrikeResult:
        return StrikeResult(strike=strike, skipped=capabilities.missing(strike.kind, self.machine))

    def _judge(self, result: RunResult, code: int) -> None:
        """By what the run left."""
        if code != 0:
            result.offences.append(f"the run ended with exit code {code}")
            return
        batch = self._job["batch"]
        deeds = [each.deed for each in result.strikes if each.deed is not None]
        evidence = laws.gather(
            result.workdir,
            result.workdir.with_suffix(".summary.json"),
            batch["microbatches"] * batch["microbatch_size"],
            deeds,
        )
        result.incidents = {each["id"]: each for each in evidence.incidents}
        result.steps = len(evidence.commits)
        try:
            reference = self._reference.upto(result.steps)
        except NeverCame as error:
            result.offences.append(str(error))
            return
        result.offences += laws.offences(evidence, reference)

    def _setting(self, plan: RunPlan, workdir: Path, mark: str) -> Setting:
        job = copy.deepcopy(self._job)
        cluster = {"nodes": plan.nodes, "spares": plan.spares, "replicas": plan.replicas}
        job["cluster"] = {**job.get("cluster", {}), **cluster}
        if plan.stages > 1:
            job["pipeline"] = {"stages": plan.stages}
        if Kind.BITFLIP in plan.kinds:
            # A step that is committed with a flipped bit is another trajectory: it must be found before the vote.
            job["integrity"] = {"interval_steps": 1}
        postgres = Kind.RESTARTED in plan.kinds and Need.POSTGRES in self.machine
        database: Database = self._servers.fresh() if postgres else Embedded(workdir)
        return Setting(
            workdir=workdir,
            job=job,
            database=database,
            network=self._cuttable() if plan.kinds & _CUTS else None,
            mark=mark,
            racks=plan.racks,
        )

    def _cuttable(self) -> Network:
        if self._network is None:
            whole = Need.NAMESPACES in self.machine
            self._network = Namespaces(MOST_NODES) if whole else Relays(MOST_NODES)
        return self._network

    def _fills(self, plan: RunPlan) -> bool:
        return Kind.DISK in plan.kinds and Need.TMPFS in self.machine


def _strike(result: StrikeResult, stage: Stage, disk: SmallDisk | None, name: str) -> None:
    """One fault, and the rest after it; `result` is filled in as it goes."""
    strike = result.strike
    stage.reach(stage.step() + strike.after_steps)
    pause(strike.after_seconds)
    before = frozenset(each["id"] for each in stage.incidents())
    scene = Scene(stage=stage, strike=strike, name=name, disk=disk, before=before)
    result.at = time.time()
    began = time.monotonic()
    result.deed = STRIKES[strike.kind](scene)
    rest.await_rest(scene, result.deed)
    result.rest_seconds = time.monotonic() - began
    result.incidents = [each["id"] for each in scene.incidents()]
    if result.deed.aftermath is Aftermath.NOTHING and result.incidents:
        raise NeverCame(f"{strike.kind.value}: nothing should have failed, but {scene.incidents()}")


def _remove(workdir: Path) -> None:
    """A run that kept the laws is not looked at again."""
    shutil.rmtree(workdir, ignore_errors=True)
    for each in workdir.parent.glob(f"{workdir.name}.*"):
        each.unlink()
