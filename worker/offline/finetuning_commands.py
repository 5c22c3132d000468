"""The command line of fine-tuning: `import`, `affinity`, `checkpoint merge`, and the adapter of `checkpoint export`.

Parsers and output only; what the commands compute is in `importing.py`, `affinity.py` and `adapter.py`. Next:
`commands.py`, which has the others and the house style of them all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from worker.data.corpus import open_corpus
from worker.data.encoded import as_tokens_of
from worker.offline.adapter import apply_adapter, export_adapter
from worker.offline.affinity import Score, affinity
from worker.offline.importing import import_mixtral
from worker.offline.mixtral import export
from worker.offline.opened import Loaded, OfflineError, find, load, size_text, tokenizer_for
from worker.training.base_checkpoint import manifest_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
WHERE = "a checkpoint's folder, or a workdir for its newest checkpoint"


class Command(Protocol):
    """Makes a parser in the house style (`commands.py`)."""

    def __call__(
        self, commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str, example: str
    ) -> argparse.ArgumentParser: ...


class Progress(Protocol):
    """One line that is rewritten."""

    def show(self, done: int, total: int) -> None: ...

    def end(self) -> None: ...


def add(commands: Any, checkpoints: Any, command: Command, progress: Callable[[str], Progress]) -> None:
    """The parsers of this module, beside the others."""
    out = command(
        commands,
        "import",
        lambda given: _import(given, progress("imported")),
        "Make a checkpoint of a Mixtral from Hugging Face (config.json and safetensors files).",
        "understudy import models/mixtral runs/base    # then: init: {checkpoint: runs/base}",
    )
    out.add_argument("model", metavar="MODEL", help="the folder of the model")
    out.add_argument("out", metavar="OUT", help="a folder: the checkpoint is made in OUT/checkpoints")
    _output(out)
    scores = command(
        commands,
        "affinity",
        lambda given: _affinity(given, progress("scored")),
        "Score every expert on a sample of a task (ESFT, arXiv 2407.01906), and propose which to train.",
        "understudy affinity --checkpoint DIR --data 'task/*.txt' --threshold 0.3",
    )
    scores.add_argument("--checkpoint", required=True, metavar="CHECKPOINT", help=WHERE)
    scores.add_argument("--data", required=True, metavar="GLOB", help="a sample of the task, as in data.path")
    scores.add_argument(
        "--score",
        choices=[each.value for each in Score],
        default=Score.GATE.value,
        help="gate: mean weight of the router; tokens: share of choices (default: %(default)s)",
    )
    scores.add_argument(
        "--threshold",
        type=_share,
        default=0.2,
        metavar="P",
        help="the fewest experts that together reach P (default: %(default)s)",
    )
    scores.add_argument(
        "--windows", type=_count, default=64, metavar="N", help="of the sample (default: %(default)s)"
    )
    scores.add_argument("--windows-at-once", type=_count, default=16, metavar="N")
    _output(scores)
    merged = command(
        checkpoints,
        "merge",
        lambda given: _merge(given, progress("merged")),
        "Write base and adapter together as one Mixtral; refused where the adapter belongs to another base.",
        "understudy checkpoint merge runs/base adapter merged",
    )
    merged.add_argument("base", metavar="BASE", help=WHERE)
    merged.add_argument("adapter", metavar="ADAPTER", help="a folder of checkpoint export --adapter")
    merged.add_argument("out", metavar="OUT", help="a new or empty folder")
    merged.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    _output(merged)


def adapter_of(loaded: Loaded, out: Path, dtype: torch.dtype, output: str) -> int:
    """`checkpoint export --adapter`."""
    new_folder(out)
    files = export_adapter(loaded, out, dtype=dtype)
    base = loaded.manifest.base
    assert base is not None, "an adapter has a base"
    size = sum(file.stat().st_size for file in files)
    if output == "json":
        _print(
            {
                "step": loaded.manifest.step,
                "bytes": size,
                "files": [str(file) for file in files],
                "base": {"path": base.path, "sha256": base.sha256},
            }
        )
        return 0
    print(f"step {loaded.manifest.step} as an adapter of {base.path}, {size_text(size)}:")
    for file in files:
        print(f"  {file}")
    return 0


def new_folder(folder: Path) -> None:
    """An empty one. Raises OfflineError where something is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OfflineError(f"OUT is {str(folder)!r}: it exists and is not an empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)


def _import(given: argparse.Namespace, progress: Progress) -> int:
    made = import_mixtral(Path(given.model), Path(given.out), wrote=progress.show)
    progress.end()
    if given.output == "json":
        _print({"checkpoint": str(made.folder), "parameters": made.parameters, "model": dict(made.model)})
        return 0
    print(f"{made.parameters:,} parameters in {made.folder}\n\na job that goes on from it:\n")
    print(f"init:\n  checkpoint: {given.out}\nmodel:")
    for name, value in made.model.items():
        print(f"  {name}: {value}")
    return 0


def _affinity(given: argparse.Namespace, progress: Progress) -> int:
    read = open_corpus(given.data, field="--data")
    if not read.tokens:
        raise OfflineError(f"--data is {given.data!r}: there is nothing in it; name a longer text")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = find(given.checkpoint)
    loaded = load(place, device)
    corpus = as_tokens_of(read, tokenizer_for(place, loaded.config, None), field="--data")
    found = affinity(
        loaded,
        corpus.read(0, corpus.tokens),
        Score(given.score),
        windows=given.windows,
        windows_at_once=given.windows_at_once,
        after_windows=progress.show,
    )
    progress.end()
    chosen = found.chosen(given.threshold)
    if given.output == "json":
        _print(
            {
                "score": given.score,
                "threshold": given.threshold,
                "tokens": found.tokens,
                "scores": list(found.scores),
                "scores_by_layer": found.scores_LE.tolist(),
                "experts": list(chosen),
            }
        )
        return 0
    print(f"{given.score} scores on {found.tokens:,} tokens, mean over layers:")
    for expert, score in sorted(enumerate(found.scores), key=lambda pair: -pair[1]):
        print(f"  expert {expert:>3}  {score:7.2%}{'  *' if expert in chosen else ''}")
    print(f"\nthose marked reach {given.threshold:g} together; to train them alone:\n")
    print(f"trainable:\n  experts: {list(chosen)}")
    return 0


def _merge(given: argparse.Namespace, progress: Progress) -> int:
    out = Path(given.out)
    new_folder(out)
    base = load(find(given.base), torch.device("cpu"))
    experts = apply_adapter(base, manifest_digest(base.manifest), Path(given.adapter))
    ours, dtype, done = dict(base.model.named_parameters()), DTYPES[given.dtype], 0
    total = sum(tensor.numel() for tensor in ours.values()) * dtype.itemsize

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress.show(done, total)

    files = export(base.config, ours, out, dtype=dtype, after_tensor=wrote)
    progress.end()
    if given.output == "json":
        _print({"experts": experts, "bytes": done, "files": [str(file) for file in files]})
        return 0
    print(f"{experts} experts of the adapter in the base, as Mixtral, {size_text(done)} in {out}")
    return 0


def _print(values: Mapping[str, object]) -> None:
    print(json.dumps(values, indent=2))


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=("table", "json"), default="table")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more is needed")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text}: more than 0 and at most 1 is needed")
    return value
