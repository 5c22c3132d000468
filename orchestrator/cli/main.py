"""The `understudy` program: its commands, and the one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

import click

from orchestrator.cli.certificates import certificates
from orchestrator.cli.chaos import chaos
from orchestrator.cli.control import COMMANDS
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.lists import LISTS
from orchestrator.cli.offline import affinity, data, evaluate, generate, import_model
from orchestrator.cli.plan import plan
from orchestrator.cli.run import run
from orchestrator.cli.screen import swallow_output
from orchestrator.cli.simulate import simulate
from orchestrator.cli.snapshots_list import snapshots
from orchestrator.cli.tokens import token
from orchestrator.cli.validate import validate

_PROGRAM = "understudy"


def _version() -> str:
    try:
        return metadata.version(_PROGRAM)
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


class _InOrder(click.Group):
    """Commands in the order in which they are needed, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(_version(), prog_name=_PROGRAM)
def understudy() -> None:
    """Train Mixture-of-Experts language models on machines that fail, and keep the training going.

    \b
    start here:
      understudy run examples/stdlib-moe.yaml                      # four nodes and a spare, on this machine
      understudy run examples/stdlib-moe.yaml --fail 'step=60,kind=sigkill,node=node-2'
    while it runs, from another terminal (DIR is the workdir that it printed):
      understudy nodes --workdir DIR
      understudy incidents --workdir DIR
    afterwards:
      understudy explain inc-0001 --workdir DIR
      understudy run --resume DIR --steps 400
    """


for _each in (
    run,
    validate,
    plan,
    *LISTS,
    snapshots,
    *COMMANDS,
    data,
    generate,
    evaluate,
    import_model,
    affinity,
    simulate,
    chaos,
    certificates,
    token,
):
    understudy.add_command(_each)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: never a traceback for what the user can mend."""
    # A controller that restarts is daily business here; gRPC's own log lines would tear the live picture.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        sys.exit(understudy.main(args=arguments, prog_name=_PROGRAM, standalone_mode=False))
    except CliError as error:
        click.echo(error.text(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        swallow_output()  # whoever read this has seen enough
        sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
