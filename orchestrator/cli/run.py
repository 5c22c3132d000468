"""`understudy run`: a whole job on this machine, watched until its end. What happens in between is in `session.py`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.panel import Panel

from orchestrator import expert_choice
from orchestrator.cli import job as jobs
from orchestrator.cli import rows
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.certificates import of_a_run
from orchestrator.cli.connection import TLS_FOLDER, ClientTls, read_token
from orchestrator.cli.errors import CliError, ExitCode, JobRefused
from orchestrator.cli.interrupts import Interrupts
from orchestrator.cli.listening import refuse_unlistenable
from orchestrator.cli.options import PATH, job_options, token_option
from orchestrator.cli.report import Ended, afterwards, report
from orchestrator.cli.screen import open_screen
from orchestrator.cli.session import Outcome, Plan, Session
from orchestrator.cli.validate import in_words
from orchestrator.core.spec import JobSpec
from orchestrator.jobfile import JobFileError

_PANEL_CELLS = 4
"""Border and padding of the report's panel."""


@click.command(short_help="Train a job on this machine, and watch it.")
@click.argument("config", type=click.Path(), required=False)
@job_options
@click.option(
    "--workdir",
    type=PATH,
    metavar="DIR",
    help=f"Folder for everything this run writes [default: ./{workdirs.DEFAULT_PARENT}/<job>-<time>].",
)
@click.option("--resume", type=PATH, metavar="DIR", help="Go on with the run in this work directory.")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    envvar="UNDERSTUDY_LISTEN",
    metavar="HOST:PORT",
    help="Where the controller listens [default: a free port on loopback; env: UNDERSTUDY_LISTEN].",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NODES:NAME=VALUE",
    help="Where nodes stand, such as 'node-[12]:rack=a' or 'node-3,node-4:rack=b'; may be repeated. Replicas are "
    "kept apart in what cluster.spread_over names: zone, rack, host. --resume remembers them.",
)
@click.option("--summary", type=PATH, metavar="FILE", help="Write the summary of the run there, as JSON.")
@click.option("--plain", is_flag=True, help="Lines instead of the live picture (the default in a pipe).")
@click.option("--record-svg", type=PATH, metavar="FILE", hidden=True, help="Save the live picture as SVG.")
@click.option(
    "--tls",
    is_flag=True,
    help="Mutual TLS between controller, nodes and this command, with certificates made for this run in DIR/tls.",
)
@token_option
def run(
    config: str | None,
    workdir: Path | None,
    resume: Path | None,
    listen: str,
    labels: tuple[str, ...],
    summary: Path | None,
    plain: bool,
    record_svg: Path | None,
    tls: bool,
    token_file: Path | None,
    **options: Any,
) -> None:
    """Train a job on this machine: a controller, its nodes, and a live view of both.

    The job file is checked first; nothing is started while anything is wrong with it. Ctrl-C stops at a step boundary
    with a checkpoint, a second Ctrl-C ends everything at once; --resume goes on afterwards either way. A controller
    that dies is started again while training goes on.

    \b
    examples:
      understudy run examples/stdlib-moe.yaml
      understudy run examples/stdlib-moe.yaml --fail 'step=60,kind=sigkill,node=node-2'
      understudy run examples/stdlib-moe.yaml --nodes 3 --spares 0 --steps 50 --set model.width=64
      understudy run job.yaml --workdir runs/a --summary runs/a.json --plain > runs/a.log
      understudy run --resume runs/a                # go on from the newest checkpoint
      understudy run --resume runs/a --steps 400    # and further than was planned

    \b
    failures to inject (--fail, repeatable), each the real thing at an exact point:
      step=60           the step in which it happens
      node=node-2       who; device=0
      kind=sigkill      the node dies; sigstop: it freezes, and no socket tells (target=trainer: only its trainer)
           exit         the trainer ends itself with status 3
           slow         it computes factor=3 times as long, for duration_steps=20
           nan          a gradient of it is no number: part=dense or part=expert-00003
           bitflip      one bit of a replica: part=, tensor=weights|m|v, bit=22
           disk-full    the next shard that it writes meets a full disk
           torn-shard   half a shard of the newest checkpoint is gone
      phase=forward     dispatch, backward, reduce, vote, optimizer, boundary, checkpoint, regroup, acquire

    \b
    exit codes:
      0 finished, or stopped in order     1 the job failed
      2 bad input, nothing was started    130 ended at once by a second Ctrl-C
    """
    changes = jobs.Changes(**options)
    token = read_token(token_file)
    if resume is not None:
        directory, spec = _resumed(resume, config, workdir, changes)
    elif config is None:
        raise click.UsageError("name a job file (run CONFIG) or a run to go on with (--resume DIR)")
    else:
        spec = jobs.load(config, changes)
        directory = workdirs.choose(spec.name, workdir, time.time())
    spec = _with_experts(spec)
    _refuse_unwritable_files(summary, record_svg)
    _make_ready(directory, spec, listen=listen, resumed=resume is not None, changed=not changes.none)
    plan = Plan(
        workdir=directory,
        tls=_certificates(directory, made=tls, resumed=resume is not None),
        resume=resume is not None,
        token_file=token_file,
        token=token,
        record_svg=record_svg,
        listen=listen,
        labels=labels,
    )
    words = (config, *changes.words()) if config else (str(directory / workdirs.JOB_FILE),)
    sys.exit(perform(plan, spec, job_words=words, summary=summary, plain=plain))


def _with_experts(spec: JobSpec) -> JobSpec:
    """The job with its experts chosen, if it leaves that to a sample. Raises JobRefused."""
    if not spec.trainable.open:
        return spec
    console = Console(highlight=False)
    _say(console, f"choosing experts by {spec.trainable.affinity.sample}")
    try:
        found = expert_choice.settled(spec)
    except JobFileError as error:
        raise JobRefused(spec.name, error.problems) from error
    _say(console, f"to be trained: experts {', '.join(map(str, found.trainable.experts))}")
    return found


def _make_ready(directory: Path, spec: JobSpec, *, listen: str, resumed: bool, changed: bool) -> None:
    """The work directory as its controller needs it, once nothing speaks against a controller. Raises CliError."""
    if not resumed or not workdirs.controller_alive(directory):
        refuse_unlistenable(listen)
    if changed or not resumed:
        workdirs.prepare(directory, spec)


def _certificates(directory: Path, *, made: bool, resumed: bool) -> ClientTls | None:
    """Those of this run: asked for now, or by the run that goes on."""
    return of_a_run(directory) if made or (resumed and (directory / TLS_FOLDER).is_dir()) else None


def perform(
    plan: Plan, spec: JobSpec, *, job_words: tuple[str, ...], summary: Path | None, plain: bool
) -> ExitCode:
    """A prepared run from start to report. Raises CliError."""
    console = Console(highlight=False)
    _say(console, f"{in_words(spec)}\nworkdir {plan.workdir}")
    with Interrupts() as interrupts:
        outcome = _outcome(Session(plan, open_screen(console, plain=plain), interrupts), plan)
    if outcome.ended_at_once or outcome.view is None or outcome.summary is None:
        _say(console, _what_stands(outcome, plan.workdir))
        return ExitCode.INTERRUPTED
    if summary is not None:
        _write_summary(summary, outcome.summary)
    ended = Ended(
        job=rows.job(outcome.view.job),
        summary=outcome.summary,
        workdir=plan.workdir,
        job_words=job_words,
        nodes=spec.cluster.nodes,
        steps=spec.steps,
        notes=tuple(outcome.notes),
    )
    if console.is_terminal and not plain:
        console.print(Panel(report(ended, console.width - _PANEL_CELLS), title="report", title_align="left"))
    else:
        console.print(report(ended, None), "", sep="\n", soft_wrap=True)
    console.print(afterwards(ended), soft_wrap=True)
    return ExitCode.FAILED if ended.job["state"] == "failed" else ExitCode.OK


def _outcome(session: Session, plan: Plan) -> Outcome:
    """Of the whole session. What was refused before anything was started leaves no trace. Raises CliError."""
    try:
        return session.run()
    except CliError as error:
        if error.exit_code == ExitCode.BAD_INPUT and not plan.resume:
            workdirs.withdraw(plan.workdir)
        raise


def _resumed(
    resume: Path, config: str | None, workdir: Path | None, changes: jobs.Changes
) -> tuple[Path, JobSpec]:
    """The directory and the job to go on with, changed where the command line says so."""
    if config is not None or workdir is not None:
        raise click.UsageError(
            "--resume DIR goes on with the job in DIR: it takes neither CONFIG nor --workdir"
        )
    directory = workdirs.resumable(resume)
    job_file = directory / workdirs.JOB_FILE
    spec = jobs.load(str(job_file), changes)
    if not changes.none and workdirs.controller_alive(directory):
        raise CliError(
            f"the run in {directory} is under way, its job cannot be changed now",
            remedy=f"stop it first: `understudy stop --workdir {directory}`; or leave the changes out to watch it",
        )
    return directory, spec


def _refuse_unwritable_files(*paths: Path | None) -> None:
    """Before hours of training, not after them."""
    for path in filter(None, paths):
        folder = path.absolute().parent
        if workdirs.nearest(folder) != folder or not folder.is_dir():
            raise CliError(f"{path} cannot be written: no such folder", remedy="name a file in a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CliError(
                f"{path} cannot be written: no permission to write to {folder}",
                remedy="name a file elsewhere",
            )
        if path.is_dir():
            raise CliError(f"{path} cannot be written: it is a folder", remedy="name a file in it")


def _say(console: Console, words: str) -> None:
    console.print(words, soft_wrap=True)


def _write_summary(path: Path, summary: dict[str, Any]) -> None:
    try:
        workdirs.write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CliError(
            f"the run is over, but its summary could not be written to {path}: {error.strerror or error}",
            remedy=f"it is also in the work directory, as {workdirs.SUMMARY_FILE}",
            exit_code=ExitCode.FAILED,
        ) from error


def _what_stands(outcome: Outcome, directory: Path) -> str:
    """After an end at once."""
    sealed = [each for each in outcome.checkpoints if each["state"] == "sealed"]
    if sealed:
        stands = f"the last checkpoint stands: step {sealed[-1]['step']}, {sealed[-1]['path']}"
    else:
        stands = "there is no checkpoint yet: it would go on from step 0"
    return f"ended at once; {stands}\ngo on with: understudy run --resume {directory}"
