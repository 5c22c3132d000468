"""`understudy chaos`: becomes `python -m chaos`, which breaks jobs on purpose and judges how they take it.

Nothing of the chaos suite is imported by the programs that it breaks; its command line teaches by itself.
"""

from __future__ import annotations

import os
import sys

import click


@click.command(
    short_help="Break a job on purpose, and judge how it takes it.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def chaos(words: tuple[str, ...]) -> None:
    """All that is said is for `python -m chaos`."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "chaos", *words])
