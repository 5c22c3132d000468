"""`understudy validate`: every problem of a job file at once, and what would run when there is none."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from orchestrator.cli import job
from orchestrator.cli.errors import ExitCode, JobRefused
from orchestrator.cli.options import job_options, output_option
from orchestrator.cli.render import Output, plural, show_one
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import to_mapping


@click.command(short_help="Check a job file, start nothing.")
@click.argument("config", type=click.Path())
@job_options
@output_option
def validate(config: str, output: str, **options: Any) -> None:
    """Check a job file without starting anything.

    All problems are told at once: the field, what it holds, and what to do about it. Exit code 0 means that
    `understudy run` would start it, 2 that it would not.

    \b
    examples:
      understudy validate examples/stdlib-moe.yaml
      understudy validate examples/stdlib-moe.yaml --set cluster.replicas=9 --set model.widht=3
      understudy validate job.yaml -o json | jq '.problems[].field'
      understudy validate job.yaml -o yaml        # the job with every default filled in

    \b
    fields of -o json:
      valid, problems (a list of field, value, remedy), job (null when it is not valid)
    """
    chosen = Output(output)
    console = Console(highlight=False)
    try:
        spec = job.load(config, job.Changes(**options))
    except JobRefused as refused:
        if chosen is Output.TABLE:
            raise
        found = [
            {"field": each.field, "value": each.value, "remedy": each.remedy} for each in refused.problems
        ]
        show_one(console, {"valid": False, "problems": found, "job": None}, chosen)
        sys.exit(ExitCode.BAD_INPUT)
    if chosen is Output.TABLE:
        console.print(f"{config}: valid: {in_words(spec)}", soft_wrap=True)
    else:
        show_one(console, {"valid": True, "problems": [], "job": to_mapping(spec)}, chosen)


def in_words(spec: JobSpec) -> str:
    """What a job is, in a sentence."""
    cluster, model = spec.cluster, spec.model
    devices = f" of {plural(cluster.devices_per_node, 'device')}" if cluster.devices_per_node > 1 else ""
    samples = spec.batch.microbatches * spec.batch.microbatch_size
    experts = f"{model.experts} experts"
    if spec.pipeline.stages > 1:
        experts = f"{spec.all_experts} experts in {spec.pipeline.stages} stages of {model.experts}"
    faults = f", {plural(len(spec.faults), 'failure')} to inject" if spec.faults else ""
    return (
        f"{spec.name}, {plural(spec.steps, 'step')} of {samples} samples in {spec.precision.value} "
        f"on {plural(cluster.nodes, 'node')}{devices} and {plural(cluster.spares, 'spare')}; "
        f"{experts} in {cluster.replicas} replicas, top {model.top_k}{faults}"
    )
