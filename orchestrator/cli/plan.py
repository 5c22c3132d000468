"""`understudy plan`: what a job needs of each device and node before anything starts, and ways to lay it out.

Figures come from the pure core (`core/memory.py`, `core/layouts.py`); how they look is in `plan_view.py`.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from orchestrator.cli import job as jobs
from orchestrator.cli.errors import CliError, ExitCode, JobRefused
from orchestrator.cli.options import job_options, output_option
from orchestrator.cli.plan_view import mapping, tables
from orchestrator.cli.render import Output, show_one
from orchestrator.core.layouts import KINDS, Layout, measure, propose
from orchestrator.core.memory import read_size
from orchestrator.core.problems import Problem
from orchestrator.core.spec import JobSpec
from orchestrator.jobfile import JobFileError, not_here, override, read_mapping

_UNKNOWN = 1 << 62
"""Room of a device whose memory is not known: everything fits."""


@click.command(short_help="What a job needs of each device, and ways to lay it out.")
@click.argument("config", type=click.Path())
@job_options
@click.option(
    "--devices", type=click.IntRange(min=1), metavar="N", help="Propose layouts for so many devices."
)
@click.option(
    "--device-memory",
    metavar="SIZE",
    help="Of each device, such as 80GB or 24GiB [default: cluster.device_memory, else that of --device].",
)
@click.option(
    "--device",
    "kind",
    type=click.Choice(sorted(KINDS)),
    default="h100",
    show_default=True,
    help="Whose speed and links the time of a step is estimated with.",
)
@output_option
def plan(
    config: str, devices: int | None, device_memory: str | None, kind: str, output: str, **options: Any
) -> None:
    """What a job needs of each device and node, before anything is started.

    Bytes of parameters, gradients, optimizer state, buffers, activations and temporaries, for each kind of trainer that
    the placement makes, and what backup replicas cost. With --devices, the layouts that so many devices allow: those
    that fit and lose nothing with any one node first, among them the faster ones. The time of a step is an estimate;
    the chances to lose nothing when 1, 2 or 3 nodes die at once are counted, not drawn. A job may be planned where its
    data and its checkpoint are not: what could not be looked at is said.

    \b
    examples:
      understudy plan examples/stdlib-moe.yaml
      understudy plan job.yaml --devices 64 --device h100
      understudy plan job.yaml --device-memory 24GiB --set compute.recompute=all --set precision=bfloat16
      understudy plan job.yaml --devices 16 -o json | jq '.layouts[0]'

    \b
    fields of -o json:
      job, precision, device_memory, fits, devices[]{stage, experts, backups, trainers, parameters, gradients,
      optimizer, communication, activations, temporaries, state, peak}, replicas, learning,
      trained{experts, of, at_most_by_affinity}, node{snapshot, held, donation}, checkpoint, whole_model,
      chances{1, 2, 3}, layouts[]{nodes, devices_per_node, stages, replicas, replica_layout, recompute, peak, fits,
      step_seconds, compute_seconds, exchange_seconds, reduce_seconds, chances{1, 2, 3}}, not_here[]{field, value},
      vocabulary{size, assumed}

    \b
    exit codes:
      0 it fits, or the memory of the devices is not known    1 no layout fits    2 the job is not valid
    """
    changes = jobs.Changes(**options)
    room = _room(config, changes, device_memory)
    unbounded = jobs.Changes(
        overrides=(*changes.all_overrides(), "cluster.device_memory=''"), faults=changes.faults
    )
    spec = jobs.load(config, unbounded, runs_here=False)
    chosen = KINDS[kind]
    if room is None and devices is not None:
        room = chosen.memory
    own = measure(spec, kind=chosen, device_memory=room or _UNKNOWN)
    layouts: tuple[Layout, ...] = ()
    if devices is not None:
        _check_devices(spec, devices)
        layouts = propose(spec, devices=devices, kind=chosen, device_memory=room or _UNKNOWN)
    console = Console(highlight=False)
    found = mapping(own, layouts, room) | _unseen(config, unbounded, spec)
    if Output(output) is Output.TABLE:
        for text in tables(found, console.width if console.is_terminal else None):
            console.print(text, soft_wrap=True)
    else:
        show_one(console, found, Output(output))
    if not any(each.fits for each in layouts or (own,)):
        sys.exit(ExitCode.FAILED)


def _room(config: str, changes: jobs.Changes, given: str | None) -> int | None:
    """Of a device: as the command line says, else the job; None where neither does. Raises JobRefused, CliError."""
    if given is not None:
        size = read_size(given)
        if size is None:
            raise CliError(
                f"--device-memory {given!r} is not a size", remedy="write it as 80GB, 24GiB or 512MB"
            )
        return size
    try:
        job = read_mapping(config)
    except JobFileError as error:
        raise JobRefused(config, error.problems) from error
    problems: list[Problem] = [each for text in changes.all_overrides() for each in override(job, text)]
    cluster = job.get("cluster")
    if problems or not isinstance(cluster, dict):
        return None  # loading the job tells what is wrong with it
    return read_size(str(cluster.get("device_memory", "")))


def _unseen(config: str, changes: jobs.Changes, spec: JobSpec) -> dict[str, Any]:
    """What the plan could not look at, and whether the vocabulary is one that token files elsewhere may contradict."""
    absent = not_here(spec)
    data = any(each.field.startswith("data.") for each in absent)
    return {
        "not_here": [{"field": each.field, "value": str(each.value)} for each in absent],
        "vocabulary": {
            "size": spec.model.vocabulary,
            "assumed": data and not _given(config, changes, "vocabulary"),
        },
    }


def _given(config: str, changes: jobs.Changes, name: str) -> bool:
    """The job file or the command line says this field of the model."""
    job = read_mapping(config)
    for text in changes.all_overrides():
        override(job, text)
    model = job.get("model")
    return isinstance(model, dict) and name in model


def _check_devices(spec: JobSpec, devices: int) -> None:
    per_node = spec.cluster.devices_per_node
    if devices % per_node:
        raise CliError(
            f"--devices {devices} is not a whole number of nodes of {per_node} devices",
            remedy=f"give a multiple of {per_node}, or another cluster.devices_per_node with --set",
        )
