"""The few things a human may ask of a controller: drain, cordon, uncordon, a checkpoint, a stop, the end.

Each is one command and the controller's words about it; they land in its audit log with the name of who asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli import offline
from orchestrator.cli.connection import Admin
from orchestrator.cli.options import Whom, controller_options
from orchestrator.cli.session import who


def _command(options: dict[str, Any], command: Callable[[Admin], str]) -> None:
    with Whom(**options).ask() as admin:
        click.echo(command(admin))


@click.command(short_help="Empty a node, then give it no seat.")
@click.argument("node")
@controller_options
def drain(node: str, **options: Any) -> None:
    """Empty a node without hurting the job: its experts move first, then its seat, then it gets no new one.

    \b
    examples:
      understudy drain node-2
      understudy drain node-2 && understudy nodes      # watch it become empty
    """
    _command(options, lambda admin: admin.drain(node, who()))


@click.command(short_help="Give a node no seat from now on.")
@click.argument("node")
@controller_options
def cordon(node: str, **options: Any) -> None:
    """Give a node no seat from now on; the one that it has it keeps.

    \b
    examples:
      understudy cordon node-5
    """
    _command(options, lambda admin: admin.cordon(node, who()))


@click.command(short_help="Give a node back.")
@click.argument("node")
@controller_options
def uncordon(node: str, **options: Any) -> None:
    """Give a node back: it may have a seat again.

    \b
    examples:
      understudy uncordon node-5
    """
    _command(options, lambda admin: admin.uncordon(node, who()))


@click.group(short_help="Take, show, verify, export a checkpoint.")
def checkpoint() -> None:
    """Checkpoints by hand: take one of a running job; look at, verify or export one where nothing runs.

    \b
    examples:
      understudy checkpoint now
      understudy checkpoints                           # which a running job has
      understudy checkpoint verify DIR                 # the newest one of a workdir
      understudy checkpoint export DIR exported        # for Hugging Face transformers
    """


for _each in (offline.show, offline.verify, offline.export, offline.merge):
    checkpoint.add_command(_each)


@checkpoint.command()
@controller_options
def now(**options: Any) -> None:
    """Take a checkpoint at the next step boundary; training goes on while it is written.

    \b
    examples:
      understudy checkpoint now --workdir understudy-runs/stdlib-moe-20260101-120000
    """
    _command(options, lambda admin: admin.take_checkpoint(who()))


@click.command(short_help="Stop the job, with a checkpoint.")
@controller_options
def stop(**options: Any) -> None:
    """Stop the job at a step boundary, with a checkpoint to go on from.

    \b
    examples:
      understudy stop --workdir understudy-runs/stdlib-moe-20260101-120000
      understudy run --resume understudy-runs/stdlib-moe-20260101-120000     # and go on
    """
    _command(options, lambda admin: admin.stop(who()))


@click.command(short_help="End controller and nodes.")
@click.option("--force", is_flag=True, help="Also while the job runs: what is not in a checkpoint is lost.")
@controller_options
def shutdown(force: bool, **options: Any) -> None:
    """End the controller and all nodes of a job that has ended. Needed only where `understudy run` does not do it.

    \b
    examples:
      understudy shutdown --controller 127.0.0.1:7400
      understudy stop && understudy shutdown
    """
    _command(options, lambda admin: admin.shutdown(who(), force=force))


COMMANDS: tuple[click.Command, ...] = (drain, cordon, uncordon, checkpoint, stop, shutdown)
