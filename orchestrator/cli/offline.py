"""Commands that work on a checkpoint alone; they need torch and no controller, so they run as `python -m worker`.

What must not live here: what they do, and their options (`worker/offline/commands.py`); everything after the command's
name is handed on as it was typed.
"""

from __future__ import annotations

import subprocess
import sys

import click

_AS_TYPED = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def _handed_on(*program: str, short_help: str) -> click.Command:
    """A command whose arguments, --help among them, are read by the worker's program of the same name."""

    def run(arguments: tuple[str, ...]) -> None:
        done = subprocess.run([sys.executable, "-m", "worker", *program, *arguments], check=False)
        # A child that died of a signal has a negative code; shells count from 128.
        sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)

    return click.Command(
        program[-1],
        callback=run,
        short_help=short_help,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings=dict(_AS_TYPED),
    )


show = _handed_on("checkpoint", "show", short_help="What a checkpoint holds.")
verify = _handed_on("checkpoint", "verify", short_help="Read every byte and compare hashes.")
export = _handed_on("checkpoint", "export", short_help="Write the model for Hugging Face transformers.")
generate = _handed_on("generate", short_help="Sample text from a checkpoint's model.")
evaluate = _handed_on("evaluate", short_help="Mean cross entropy of a text under a checkpoint's model.")
import_model = _handed_on("import", short_help="Make a checkpoint of a Mixtral from Hugging Face.")
affinity = _handed_on("affinity", short_help="Score experts on a task, to train those alone.")
merge = _handed_on("checkpoint", "merge", short_help="Write a base and an adapter as one model.")
