"""The command line of `understudy chaos`, and when to stop playing. Next: `player.py`."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from chaos import plan as plans
from chaos import report
from chaos.job import STEPS, TINY
from chaos.kinds import TRAITS, Kind
from chaos.plan import SHORT, Draw
from chaos.player import Player, RunResult
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.jobfile import JobFileError, load_job_file

MOST_STAGES = 3
SEEDS = 1_000_000
FAULTS = "\n".join(f"      {kind.value:<28}{TRAITS[kind].words}" for kind in Kind)
HELP = f"""Break a job on purpose, again and again, and judge every run by what must be true of it.

Each run trains on real processes of this machine and suffers a few faults, drawn from the seed; after each it must
get over it: every sample once, the losses of an undisturbed run, replicas restored, every incident explained, phases
that add up to the downtime that the ledger shows, no process and no shared memory left behind. A run that does not is
kept, with the command that repeats it. Without a job file a tiny job of its own is used; yours is trained in float64,
where the losses can be compared exactly.

\b
examples:
  understudy chaos --minutes 5
  understudy chaos examples/stdlib-moe.yaml --seed 7 --minutes 30
  understudy chaos --seed 7 --run 12                  # one run of a seed again
  understudy chaos --only sigstop,torn-shard --runs 4

\b
faults (--only):
{FAULTS}

\b
exit codes:
  0 all runs survived     1 one did not     2 bad input
"""


def _nodes(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (low.isdecimal() and (high.isdecimal() or not dash) and 3 <= int(low) <= int(high or low) <= 8):
        raise click.BadParameter(f"{text!r}: write LOW-HIGH, from 3 to 8, for example 4-8")
    return int(low), int(high or low)


def _kinds(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[Kind, ...]:
    if text is None:
        return tuple(Kind)
    names = [each.strip() for each in text.split(",")]
    unknown = [each for each in names if each not in {kind.value for kind in Kind}]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: not a fault; the faults are listed in --help")
    return tuple(Kind(each) for each in names)


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("config", type=click.Path(exists=True, dir_okay=False), required=False)
@click.option("--short", is_flag=True, help="A fixed plan with every fault in it, in a few minutes.")
@click.option("--seed", type=int, help="What is drawn; printed when it is not given.")
@click.option("--minutes", type=float, default=20.0, show_default=True, help="Begin no run after so long.")
@click.option("--runs", type=int, help="Play at most so many.")
@click.option("--run", "only_run", type=int, help="Play this run of the seed, and no other.")
@click.option("--only", "kinds", callback=_kinds, metavar="FAULT,...", help="Draw these faults only.")
@click.option("--nodes", default="4-8", callback=_nodes, metavar="LOW-HIGH", show_default=True)
@click.option(
    "--strikes",
    type=click.IntRange(1, 8),
    default=plans.MOST_STRIKES,
    show_default=True,
    help="At most, in a run.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="For the runs [default: a new one in /tmp].",
)
@click.option("--keep", is_flag=True, help="Keep the folders of runs that survived, too.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(
    config: str | None,
    short: bool,
    seed: int | None,
    minutes: float,
    runs: int | None,
    only_run: int | None,
    kinds: tuple[Kind, ...],
    nodes: tuple[int, int],
    strikes: int,
    folder: Path | None,
    keep: bool,
    output: str,
) -> None:
    if short:
        seed, runs, nodes, strikes = SHORT.seed, SHORT.runs, SHORT.draw.nodes, SHORT.draw.most_strikes
    seed = random.SystemRandom().randrange(SEEDS) if seed is None else seed
    folder = (folder or Path(tempfile.mkdtemp(prefix="understudy-chaos-"))).absolute()
    said = sys.stderr if output == "json" else sys.stdout
    print(f"seed {seed}, runs in {folder}", file=said, flush=True)
    job = _job(config)
    own = job.get("pipeline", {}).get("stages", 1) > 1  # whoever names stages wants these
    most_stages = SHORT.draw.most_stages if short else MOST_STAGES
    most_stages = 1 if own else min(most_stages, job["model"]["layers"])
    draw = Draw(kinds=kinds, nodes=nodes, most_strikes=strikes, most_stages=most_stages)
    asked = _asked(config, kinds, nodes, strikes)
    results: list[RunResult] = []
    ends_at = time.monotonic() + 60.0 * minutes
    with (
        Player(folder, job, keep=keep) as player,
        suppress(KeyboardInterrupt),
    ):  # Ctrl-C: tell what was seen
        for plan in plans.runs(seed, draw):
            if only_run is not None and plan.number < only_run:
                continue
            result = player.play(plan)
            results.append(result)
            print(report.run_line(result), file=said, flush=True)
            if not result.survived:
                again = ["understudy", "chaos", *asked, "--seed", str(seed), "--run", str(plan.number)]
                print(report.failure(result, again), file=said, flush=True)
            if only_run is not None or len(results) == runs or time.monotonic() > ends_at:
                break
    print(report.as_json(seed, results) if output == "json" else report.table(results))
    sys.exit(0 if all(each.survived for each in results) else 1)


def _asked(
    config: str | None, kinds: tuple[Kind, ...], nodes: tuple[int, int], strikes: int
) -> tuple[str, ...]:
    """What of the command line decides what is drawn."""
    words = [config] if config else []
    words += ["--nodes", f"{nodes[0]}-{nodes[1]}"] if nodes != plans.NODES else []
    words += ["--strikes", str(strikes)] if strikes != plans.MOST_STRIKES else []
    words += ["--only", ",".join(each.value for each in kinds)] if kinds != tuple(Kind) else []
    return tuple(words)


def _job(config: str | None) -> dict[str, Any]:
    if config is None:
        return TINY
    try:
        spec = load_job_file(config, ["precision=float64", f"steps={STEPS}"])
    except JobFileError as error:
        raise click.UsageError(f"{config} cannot be run:\n{error}") from error
    return dict(to_mapping(spec))
