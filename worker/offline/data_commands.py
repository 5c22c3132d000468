"""The command line of data: `data prepare` turns text into token files, `data inspect` looks at either.

`understudy` hands these commands on to `python -m worker`. Results go to standard output, progress to standard error.
What must not live here: what the commands compute (`worker/data`, `inspect.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from worker.data.documents import find_sources
from worker.data.errors import DataDamaged, DataError
from worker.data.prepare import EncoderDied, Plan, Prepared, prepare
from worker.data.tokenfile import TRAIN_FILE, VALIDATION_FILE, Header
from worker.data.tokenizer import TokenizerError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run one command; gives the exit code. Nothing that the user can mend ends in a traceback."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.run(given)
        return code
    except (DataDamaged, EncoderDied) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (DataError, TokenizerError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"error: {error.filename or 'OUT'}: {error.strerror}; nothing was left behind", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 0


def _prepare(given: argparse.Namespace) -> int:
    if not 0 <= given.validation_share < 1:
        raise ValueError(
            f"--validation-share is {given.validation_share:g}: give a share from 0 to less than 1"
        )
    if given.processes < 1:
        raise ValueError(f"--processes is {given.processes}: give 1 or more")
    out = Path(given.out)
    taken = [name for name in (TRAIN_FILE, VALIDATION_FILE) if (out / name).exists()]
    if taken or (out.exists() and not out.is_dir()):
        what = f"it holds {taken[0]} already" if taken else "it is no folder"
        raise ValueError(f"OUT is {given.out!r}: {what}; name a new folder")
    sources = find_sources(given.sources)
    plan = Plan(
        sources=tuple(sources),
        out=out,
        tokenizer=given.tokenizer,
        end_of_document=given.end_of_document,
        text_field=given.text_field,
        validation_share=given.validation_share,
        processes=given.processes,
    )
    out.mkdir(parents=True, exist_ok=True)
    try:
        made = _with_progress(plan, [source.bytes for source in sources])
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()
        raise
    _print_prepared(given, out, made)
    return 0


def _with_progress(plan: Plan, sizes: Sequence[int]) -> Prepared:
    console = Console(stderr=True)
    columns = (
        TextColumn("preparing"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[found]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(sizes) if all(sizes) else None, found="")

        def after_batch(read: int, documents: int, tokens: int) -> None:
            progress.update(task, completed=read, found=f"{documents:,} documents, {tokens:,} tokens")

        return prepare(plan, after_batch=after_batch)


def _print_prepared(given: argparse.Namespace, out: Path, made: Prepared) -> None:
    files: list[tuple[str, Header]] = [(TRAIN_FILE, made.train)]
    if made.validation is not None:
        files.append((VALIDATION_FILE, made.validation))
    if given.output == "json":
        print(
            json.dumps(
                {name: {"path": str(out / name), **asdict(header)} for name, header in files}, indent=2
            )
        )
        return
    for name, header in files:
        print(
            f"{out / name}: {header.documents:,} documents, {header.tokens:,} tokens of {header.tokenizer_name} "
            f"({header.text_bytes / header.tokens:.2f} bytes each), {header.dtype}"
        )
    print(f"\ntrain on it with: --set data.path={out}")
    if made.validation is not None:
        print(f"measure with:     --set validation.path={out / VALIDATION_FILE}")


def _inspect(given: argparse.Namespace) -> int:
    from worker.offline import inspection  # loads torch, which `prepare` does without

    if given.overrides:  # those of a job file are in the job by now
        raise ValueError(
            f"--set is {given.overrides[0]!r}: it overrides a field of a job file, and none is named"
        )
    if given.job is not None:
        job: Any = json.loads(sys.stdin.read() if given.job == "-" else given.job)
        found = inspection.of_job(job, windows=given.windows)
    else:
        found = inspection.of_path(given.data, sequence_length=given.sequence_length, windows=given.windows)
    if given.verify:
        found.verify()
    if given.output == "json":
        print(json.dumps(found.values, indent=2))
    else:
        print(found.text())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="understudy", description="Prepare and inspect data.")
    data = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("data", help="data")
    commands = data.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_inspect(commands)
    return parser


def _add_prepare(commands: Any) -> None:
    command = commands.add_parser(
        "prepare",
        help="turn text into token files",
        description="Turn text into token files: OUT/train.tokens, and OUT/validation.tokens if a share is held out.",
        epilog=(
            "SRC is a file, a folder, a glob in quotes, or stdlib. A file of text is a document; .jsonl has one in\n"
            "each line; both may end in .gz. .parquet, .arrow and what datasets.save_to_disk wrote are read through\n"
            "the library datasets, an extra.\n"
            "The result does not depend on --processes. Nothing is left of a run that was interrupted.\n\n"
            "examples:\n"
            "  understudy data prepare 'texts/*.txt' OUT --validation-share 0.01\n"
            "  understudy data prepare corpus.jsonl.gz OUT --tokenizer gpt2/tokenizer.json --text-field body"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("sources", nargs="+", metavar="SRC", help="what to read, in this order")
    command.add_argument("out", metavar="OUT", help="a folder for the token files")
    command.add_argument(
        "--tokenizer",
        default="bytes",
        metavar="FILE",
        help="a tokenizer.json, a folder with one, or bytes (default: %(default)s)",
    )
    command.add_argument(
        "--end-of-document",
        metavar="TOKEN",
        help="the token after each document, or none (default: the tokenizer's own, such as <|endoftext|>)",
    )
    command.add_argument(
        "--validation-share", type=float, default=0.0, metavar="SHARE", help="of the documents, such as 0.01"
    )
    command.add_argument(
        "--text-field", default="text", metavar="NAME", help="of records (default: %(default)s)"
    )
    command.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="that encode (default: one for each core, %(default)s)",
    )
    command.add_argument("-o", "--output", choices=("table", "json"), default="table")
    command.set_defaults(run=_prepare)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="documents, tokens, samples and shares of data",
        description="What a token file, a text or the data of a job holds, and what its first samples are.",
        epilog=(
            "DATA is what data.path may be, or a job file (.yaml), for the sources, weights and epochs of that job.\n\n"
            "examples:\n"
            "  understudy data inspect OUT --verify\n"
            "  understudy data inspect job.yaml -o json\n"
            "  understudy data inspect job.yaml --set data.path=OUT --set steps=5000"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("data", nargs="?", metavar="DATA", help="a token file, a text, or a job file")
    what.add_argument("--job", help=argparse.SUPPRESS)
    command.add_argument(
        "--sequence-length", type=int, default=128, metavar="S", help="of a sample (default: %(default)s)"
    )
    command.add_argument(
        "--windows", type=int, default=3, metavar="N", help="first samples to decode (default: %(default)s)"
    )
    command.add_argument("--verify", action="store_true", help="read every byte of token files")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a field of the job file, for example --set data.path=OUT; repeatable",
    )
    command.add_argument("-o", "--output", choices=("table", "json"), default="table")
    command.set_defaults(run=_inspect)
