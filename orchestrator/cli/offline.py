"""Commands that work on a checkpoint or on data alone: they need no controller, and run as `python -m worker`.

What must not live here: what they do, and their options (`worker/offline`); everything after the command's name is
handed on as it was typed. A job file that is to be inspected is read here, since the worker knows jobs only as
mappings.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import click

from orchestrator.cli import job
from orchestrator.core.spec_mapping import to_mapping

_JOB_FILES = (".yaml", ".yml")
_AS_TYPED = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def _handed_on(*program: str, short_help: str, job_files: bool = False) -> click.Command:
    """A command whose arguments, --help among them, are read by the worker's program of the same name."""

    def run(arguments: tuple[str, ...]) -> None:
        words, said = _with_job(arguments) if job_files else (list(arguments), None)
        command = [sys.executable, "-m", "worker", *program, *words]
        # Ctrl-C reaches both: the child tidies up and says how it ended. A handler, unlike SIG_IGN, is not inherited.
        signal.signal(signal.SIGINT, lambda *_: None)
        done = subprocess.run(command, check=False, input=said, text=said is not None or None)
        # A child that died of a signal has a negative code; shells count from 128.
        sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)

    return click.Command(
        program[-1],
        callback=run,
        short_help=short_help,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings=dict(_AS_TYPED),
    )


def _with_job(arguments: tuple[str, ...]) -> tuple[list[str], str | None]:
    """A job file among the arguments becomes the job itself, on standard input. Raises JobRefused."""
    others, overrides = _without_overrides(arguments)
    for place, word in enumerate(others):
        if word.endswith(_JOB_FILES) and Path(word).is_file():
            words = [*others[:place], "--job", "-", *others[place + 1 :]]
            return words, json.dumps(to_mapping(job.load(word, job.Changes(overrides=overrides))))
    return list(arguments), None


def _without_overrides(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Everything else, and what `--set` says, in either of its two forms."""
    others: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        elif word == "--set" and (following := next(words, None)) is not None:
            overrides.append(following)
        else:
            others.append(word)
    return others, overrides


show = _handed_on("checkpoint", "show", short_help="What a checkpoint holds.")
verify = _handed_on("checkpoint", "verify", short_help="Read every byte and compare hashes.")
export = _handed_on("checkpoint", "export", short_help="Write the model for Hugging Face transformers.")
generate = _handed_on("generate", short_help="Sample text from a checkpoint's model.")
evaluate = _handed_on("evaluate", short_help="Mean cross entropy of a text under a checkpoint's model.")
import_model = _handed_on("import", short_help="Make a checkpoint of a Mixtral from Hugging Face.")
affinity = _handed_on("affinity", short_help="Score experts on a task, to train those alone.")
merge = _handed_on("checkpoint", "merge", short_help="Write a base and an adapter as one model.")


@click.group(short_help="Prepare and inspect what is trained on.")
def data() -> None:
    """Turn text into token files, and look at either."""


data.add_command(_handed_on("data", "prepare", short_help="Turn text into token files."))
data.add_command(
    _handed_on("data", "inspect", short_help="Documents, tokens, samples, shares.", job_files=True)
)
