"""`understudy snapshots`: what agents hold in host memory now, beside the checkpoints in storage.

A gRPC client and nothing more. Next: `lists.py`, the other lists; `orchestrator/core/snapshots.py`, what a snapshot is.
"""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli.options import Whom, controller_options, output_option
from orchestrator.cli.render import Column, Output, seconds, show, size


@click.command(short_help="Snapshots in host memory, and who holds them.")
@controller_options
@output_option
def snapshots(output: str, **options: Any) -> None:
    """Show the snapshots of the training state that agents hold in host memory now, newest first, and why they are
    taken as often as they are.

    Where the last replica of an expert is lost, training goes back to the newest of these that is whole, or to the
    newest sealed checkpoint if that is newer. They live as long as the agents that hold them.

    \b
    states:
      sealed    two agents hold each shard (or as many as there are)
      whole     each shard is held by somebody
      partial   being taken, or left behind by nodes that are gone: not restored

    \b
    examples:
      understudy snapshots
      understudy checkpoints                   # the other tier: sealed in storage
      understudy snapshots -o json | jq -r '.[0].step'

    \b
    fields of -o json (a list):
      name, state, step, generation, shards, shards_held, holders (agents that hold the shard which fewest hold),
      nodes, bytes, stall_seconds (for which training stood still)
      how often one is taken, and why that often: jobs -o json, the field snapshots
    """
    columns = (
        Column(header="SNAPSHOT", cell=lambda row: row["name"], keep=9),
        Column(header="STATE", cell=lambda row: row["state"], keep=8, state=True),
        Column(header="STEP", cell=lambda row: row["step"], right=True, keep=8),
        Column(header="SHARDS", cell=lambda row: f"{row['shards_held']}/{row['shards']}", right=True, keep=5),
        Column(header="HOLDERS", cell=lambda row: row["holders"], right=True, keep=4),
        Column(header="SIZE", cell=lambda row: size(row["bytes"]), right=True, keep=4),
        Column(header="STALL", cell=lambda row: seconds(row["stall_seconds"]), right=True, keep=3),
        Column(header="NODES", cell=lambda row: ", ".join(row["nodes"]), keep=6, elastic=True),
    )
    with Whom(**options).ask() as admin:
        found = [rows.snapshot(each) for each in admin.snapshots()]
        why = [each.snapshots.why for each in admin.jobs() if each.snapshots.why]
    console = Console(highlight=False)
    show(console, found, columns, Output(output), "no snapshots in host memory")
    for sentence in why if Output(output) is Output.TABLE else ():
        console.print(Text(sentence), soft_wrap=True)
