"""The command line of what works on a checkpoint alone: `checkpoint show|verify|export`, `generate`, `evaluate`.

`understudy` hands these commands on to `python -m worker`, since they need torch and a model, and no cluster. Results
go to standard output, progress to standard error. What must not live here: what the commands compute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from worker.checkpointing.errors import CheckpointError
from worker.checkpointing.manifest import Manifest
from worker.checkpointing.names import dense_stage
from worker.data.corpus import open_corpus
from worker.data.encoded import as_tokens_of
from worker.data.errors import DataError
from worker.data.tokenizer import TokenizerError
from worker.model.fields import FieldError
from worker.offline import finetuning_commands
from worker.offline.evaluate import evaluate
from worker.offline.finetuning_commands import DTYPES, WHERE, adapter_of, new_folder
from worker.offline.generate import Sampling, generate, streamed
from worker.offline.mixtral import export
from worker.offline.opened import (
    Loaded,
    OfflineError,
    find,
    load,
    size_text,
    tokenizer_beside,
    tokenizer_for,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_PROGRESS_SECONDS = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run one command; gives the exit code. Nothing that the user can mend ends in a traceback."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.run(given)
        return code
    except (OfflineError, DataError, TokenizerError, FieldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 0


def _show(given: argparse.Namespace) -> int:
    with find(given.checkpoint).read() as reader:
        manifest = reader.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    parameters = sum(part.length for part in manifest.parts.values())
    base, model = manifest.base, _mapping(manifest.config["model"])
    values = {
        "job": manifest.job,
        "step": manifest.step,
        "generation": manifest.generation,
        "created": manifest.created,
        "precision": manifest.precision,
        "bytes": size,
        "parameters": parameters,
        "experts": model["experts"],
        "base": None if base is None else {"path": base.path, "sha256": base.sha256},
        "data_fingerprint": manifest.data_fingerprint,
        "layout": manifest.layout,
        "format_version": manifest.format_version,
        "shards": [
            {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256, "pieces": len(shard.pieces)}
            for shard in manifest.shards
        ],
        "config": manifest.config,
    }
    if given.output == "json":
        _print_json(values)
        return 0
    created = datetime.fromtimestamp(manifest.created).astimezone().isoformat(sep=" ", timespec="seconds")
    batch: Any = manifest.config["batch"]
    samples = manifest.step * batch["microbatches"] * batch["microbatch_size"]
    _print_rows(
        ("job", manifest.job),
        ("step", f"{manifest.step} (the next sample has id {samples})"),
        ("generation", manifest.generation),
        ("created", created),
        ("size", f"{size_text(size)} in {len(manifest.shards)} shards"),
        ("holds", f"{parameters:,} parameters and their AdamW moments, {manifest.precision}"),
        ("parts", _whole(manifest) if base is None else _trained(manifest)),
    )
    print(f"\n{'file':<22} pieces        size  sha256")
    for shard in manifest.shards:
        print(f"{shard.file:<22} {len(shard.pieces):>6}  {size_text(shard.bytes):>10}  {shard.sha256[:16]}")
    return 0


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping), "the config of a checkpoint was a job's"
    return value


def _whole(manifest: Manifest) -> str:
    dense = sum(dense_stage(part) is not None for part in manifest.parts)
    experts = f"{len(manifest.parts) - dense} experts"
    return (
        f"the dense part and {experts}" if dense == 1 else f"the dense parts of {dense} stages and {experts}"
    )


def _trained(manifest: Manifest) -> str:
    assert manifest.base is not None
    return f"{', '.join(sorted(manifest.parts))}; all else is in {manifest.base.path}"


def _verify(given: argparse.Namespace) -> int:
    place = find(given.checkpoint)
    began = time.perf_counter()
    progress = _Progress("verified")
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress.show(done, total)

    with place.read(after_chunk=read) as reader:
        total = sum(shard.bytes for shard in reader.manifest.shards)
        reader.verify(tuple(reader.manifest.parts))
    progress.end()
    seconds = time.perf_counter() - began
    if given.output == "json":
        _print_json({"checkpoint": str(place.folder), "sound": True, "bytes": total, "seconds": seconds})
    else:
        print(f"sound: every byte of {place.folder.name} ({size_text(total)}) has the hash of its manifest")
    return 0


def _export(given: argparse.Namespace) -> int:
    folder = Path(given.out)
    dtype = DTYPES[given.dtype]
    place = find(given.checkpoint)
    loaded = load(place, torch.device("cpu"))
    if given.adapter:
        return adapter_of(loaded, folder, dtype, given.output)
    new_folder(folder)
    ours = dict(loaded.model.named_parameters())
    progress, done = _Progress("exported"), 0
    total = sum(tensor.numel() for tensor in ours.values()) * dtype.itemsize

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress.show(done, total)

    files = export(
        loaded.config,
        ours,
        folder,
        dtype=dtype,
        after_tensor=wrote,
        tokenizer=tokenizer_beside(place),
    )
    progress.end()
    if given.output == "json":
        _print_json({"step": loaded.manifest.step, "bytes": done, "files": [str(file) for file in files]})
        return 0
    print(f"step {loaded.manifest.step} as Mixtral, {size_text(done)} of {given.dtype} weights:")
    for file in files:
        print(f"  {file}")
    print(f'\nload it with: transformers.AutoModelForCausalLM.from_pretrained("{folder}")')
    return 0


def _generate(given: argparse.Namespace) -> int:
    if given.tokens < 1 or given.temperature < 0 or given.top_k < 0:
        raise OfflineError("--tokens must be 1 or more, --temperature and --top-k 0 or more")
    if not given.prompt:
        raise OfflineError(
            "--prompt is '': a model predicts the token after another; give at least one character"
        )
    place = find(given.checkpoint)
    loaded = load(place, _device())
    tokenizer = tokenizer_for(place, loaded.config, given.tokenizer)
    prompt = tokenizer.encode_prompt(given.prompt)
    sampling = Sampling(
        temperature=given.temperature,
        top_k=given.top_k,
        seed=given.seed,
        vocabulary=tokenizer.vocabulary.size,
    )
    out = sys.stdout.buffer
    out.write(given.prompt.encode())
    out.flush()
    sampled = (
        token for _, token in zip(range(given.tokens), generate(loaded, prompt, sampling), strict=False)
    )
    for piece in streamed(tokenizer, sampled):
        out.write(piece)
        out.flush()
    out.write(b"\n")
    out.flush()
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    read = open_corpus(given.data, field="--data")
    place = find(given.checkpoint)
    loaded: Loaded = load(place, _device())
    corpus = as_tokens_of(read, tokenizer_for(place, loaded.config, given.tokenizer), field="--data")
    if corpus.tokens < 2:
        raise OfflineError(f"--data is {given.data!r}: it holds fewer than 2 tokens; name a longer text")
    progress = _Progress("evaluated")
    found = evaluate(
        loaded,
        corpus,
        windows_at_once=given.windows_at_once,
        limit_windows=given.limit_windows,
        after_windows=progress.show,
    )
    progress.end()
    values = {
        "loss": found.loss,
        "tokens": found.tokens,
        "context": found.context,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "step": loaded.manifest.step,
    }
    if given.output == "json":
        _print_json(values)
        return 0
    _print_rows(
        ("loss", f"{found.loss:.4f} nats a token"),
        ("perplexity", f"{found.perplexity:.3f}"),
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("tokens", f"{found.tokens:,} in windows of {found.context}, of {len(corpus.starts):,} documents"),
        ("step", loaded.manifest.step),
    )
    return 0


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _print_json(values: Mapping[str, object]) -> None:
    print(json.dumps(values, indent=2))


def _print_rows(*rows: tuple[str, object]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


class _Progress:
    """One line on a terminal, rewritten in place; nothing elsewhere."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._live = sys.stderr.isatty()
        self._next = 0.0

    def show(self, done: int, total: int) -> None:
        if self._live and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            print(f"\r{self._verb} {done / max(1, total):.0%}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="understudy", description="Work on a checkpoint; no cluster is needed."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checkpoint = commands.add_parser("checkpoint", help="look at, verify or export a checkpoint")
    checkpoints = checkpoint.add_subparsers(required=True, metavar="COMMAND")

    show = _command(checkpoints, "show", _show, "What a checkpoint holds.", "understudy checkpoint show DIR")
    _common(show)
    verify = _command(
        checkpoints,
        "verify",
        _verify,
        "Read every byte of a checkpoint and compare hashes. Exit code 1 names what is damaged.",
        "understudy checkpoint verify DIR/checkpoints/step-00000200.g0001",
    )
    _common(verify)
    out = _command(
        checkpoints,
        "export",
        _export,
        "Write the model as Mixtral for Hugging Face transformers: config, tokenizer, safetensors.",
        "understudy checkpoint export DIR exported --dtype bfloat16",
    )
    _common(out)
    out.add_argument("out", metavar="OUT", help="a new or empty folder")
    out.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="of the weights (default: %(default)s)"
    )
    out.add_argument(
        "--adapter", action="store_true", help="only the experts that were trained (trainable.experts)"
    )
    _ask_the_model(commands)
    finetuning_commands.add(commands, checkpoints, _command, _Progress)
    return parser


def _ask_the_model(commands: Any) -> None:
    sample = _command(
        commands,
        "generate",
        _generate,
        "Sample text from the model of a checkpoint.",
        "understudy generate --checkpoint DIR --prompt 'def ' --tokens 300 --temperature 0.7",
    )
    sample.add_argument("--checkpoint", required=True, metavar="CHECKPOINT", help=WHERE)
    _tokenizer(sample)
    sample.add_argument("--prompt", default="\n", help="the text to go on from (default: an empty line)")
    sample.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="new ones (default: %(default)s)"
    )
    sample.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default: %(default)s)"
    )
    sample.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest; 0 for all")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed, the same text")

    measure = _command(
        commands,
        "evaluate",
        _evaluate,
        "Mean cross entropy of a text under the model of a checkpoint.",
        "understudy evaluate --checkpoint DIR --data 'texts/*.txt' -o json",
    )
    measure.add_argument("--checkpoint", required=True, metavar="CHECKPOINT", help=WHERE)
    _tokenizer(measure)
    measure.add_argument(
        "--data",
        required=True,
        metavar="GLOB",
        help="text (a file, a folder, a glob, stdlib) or a token file",
    )
    measure.add_argument("--limit-windows", type=_count, metavar="N", help="only the first N windows")
    measure.add_argument(
        "--windows-at-once", type=_count, default=16, metavar="N", help="batch size (default: %(default)s)"
    )
    _output(measure)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more is needed")
    return value


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=WHERE)
    _output(command)


def _tokenizer(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json, or bytes (default: the one that lies beside the checkpoint)",
    )


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=("table", "json"), default="table")
