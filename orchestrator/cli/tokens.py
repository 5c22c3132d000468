"""`understudy token`: a token for somebody, and the line that lets it in.

The token itself goes to a file that only its owner can read; the access file of the controller gets its SHA-256 sum.
What a line means is defined in `service/access.py`; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

import click

from orchestrator.cli.authority import write_private
from orchestrator.cli.errors import CliError
from orchestrator.cli.options import PATH

TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@click.command(short_help="Make a token for an agent, a viewer or an operator.")
@click.argument("role", type=click.Choice(["agent", "viewer", "operator"]))
@click.argument("name")
@click.option(
    "--access-file",
    type=PATH,
    metavar="FILE",
    required=True,
    help="The controller's; made when it is not there.",
)
@click.option(
    "--out", type=PATH, metavar="FILE", required=True, help="Where the token goes; must not exist yet."
)
@click.option(
    "--node", default="", metavar="NODE", help="An agent's token with which only this node can register."
)
@click.option("--expires", default="", metavar="DAY", help="The last day on which it counts, as 2027-01-31.")
def token(role: str, name: str, access_file: Path, out: Path, node: str, expires: str) -> None:
    """Make a token for NAME, which may do what ROLE may do, and add its line to the access file.

    The controller notices the change by itself. To rotate a token, make another one for the same NAME, hand it out,
    and then remove the old line; to withdraw one at once, remove its line.

    \b
    examples:
      understudy token operator ada --access-file access.txt --out ada.token
      understudy token viewer grafana --access-file access.txt --out grafana.token --expires 2027-01-31
      understudy token agent node-1 --node node-1 --access-file access.txt --out node-1.token

    \b
    what a role may do:
      viewer    ask: nodes, experts, incidents, events, audit, ...
      operator  also command: drain, cordon, checkpoint, stop, shutdown
      agent     open the stream of a node, and nothing else
    """
    for said in filter(None, (name, node)):
        if not _NAME.fullmatch(said):
            raise CliError(f"{said!r} is no name", remedy="use letters, digits and . _ @ -, at most 63")
    if node and role != "agent":
        raise CliError("--node is for agents", remedy="leave it out")
    if expires and not _DAY.fullmatch(expires):
        raise CliError(f"--expires: {expires!r} is not a day", remedy="write it as 2027-01-31")
    made = secrets.token_urlsafe(TOKEN_BYTES)
    line = f"{role} {name} token=sha256:{hashlib.sha256(made.encode()).hexdigest()}"
    line += f" node={node}" if node else ""
    line += f" expires={expires}" if expires else ""
    try:
        write_private(out, made.encode() + b"\n")
        _append(access_file, line)
    except FileExistsError as error:
        raise CliError(f"{out} exists already; nothing was written", remedy="name another --out") from error
    except OSError as error:
        raise CliError(f"the token of {name} could not be written: {error}") from error
    click.echo(f"{out} holds the token of {name} ({role}); {access_file} lets it in")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        text = file.read()
        file.write(("" if not text or text.endswith("\n") else "\n") + line + "\n")
