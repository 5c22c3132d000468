"""What data holds, in numbers: documents, tokens, samples, shares of a mixture, and the first samples as text.

What must not live here: options and the screen (`data_commands.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.data.config import DataConfig, Documents, SourceConfig, ValidationConfig
from worker.data.corpus import TokenCorpus, Vocabulary
from worker.data.tokenizer import TokenizerError, tokenizer_of
from worker.data.windows import Dataset, open_dataset

_ANY = 1 << 62
"""A model that has a row for every token."""
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """`values` are the fields of `-o json`."""

    values: dict[str, Any]
    dataset: Dataset

    def verify(self) -> None:
        """Read every byte of the token files. Raises DataDamaged."""
        for source in self.dataset.windows.sources:
            if isinstance(source.corpus, TokenCorpus):
                source.corpus.file.verify()
        self.values["verified"] = True

    def text(self) -> str:
        """For people."""
        values = self.values
        lines = [
            f"{values['tokens']:,} tokens in {values['documents']:,} documents",
            f"{values['tokenizer']}: {values['vocabulary']:,} kinds, {values['bytes_per_token']:.2f} bytes each",
            f"{values['samples_per_epoch']:,} samples of {values['sequence_length']} tokens in an epoch",
        ]
        if values["held_out_windows"]:
            lines.append(f"{values['held_out_windows']:,} windows are measured in a validation")
        lines += [f"fingerprint {values['fingerprint']}", ""]
        lines += _table(values["sources"])
        for window in values["first_samples"]:
            text = window["text"][:_SHOWN_CHARACTERS]
            lines.append(
                f"\nsample {window['sample']} of {window['source']}, window {window['window']}:\n{text!r}"
            )
        if values.get("verified"):
            lines.append("\nsound: every byte of the token files has the digest that was written with it")
        return "\n".join(lines)


def of_path(path: str, *, sequence_length: int, windows: int) -> Inspected:
    """A token file or a text. Raises DataError."""
    only = SourceConfig(path=path, name="", weight=1.0)
    data = DataConfig(sources=(only,), documents=Documents.JOINED)
    dataset = open_dataset(data, ValidationConfig(), sequence_length=sequence_length, vocabulary=_ANY, seed=0)
    return Inspected(values=_values(dataset, data, sequence_length, windows, samples=None), dataset=dataset)


def of_job(job: Mapping[str, Any], *, windows: int) -> Inspected:
    """The data of a job, as its trainers read it. Raises DataError, FieldError."""
    data = DataConfig.from_mapping(job["data"])
    model, batch = job["model"], job["batch"]
    dataset = open_dataset(
        data,
        ValidationConfig.from_mapping(job.get("validation")),
        sequence_length=model["sequence_length"],
        vocabulary=model["vocabulary"],
        seed=job["seed"],
    )
    samples = job["steps"] * batch["microbatches"] * batch["microbatch_size"]
    values = _values(dataset, data, model["sequence_length"], windows, samples=samples)
    return Inspected(values=values, dataset=dataset)


def _values(
    dataset: Dataset,
    data: DataConfig,
    sequence_length: int,
    windows: int,
    *,
    samples: int | None,
) -> dict[str, Any]:
    made = dataset.windows
    corpora = [source.corpus for source in made.sources]
    tokens = sum(corpus.tokens for corpus in corpora)
    counts = made.mixture.counts(samples) if samples is not None else None
    return {
        "tokens": tokens,
        "documents": sum(len(corpus.starts) for corpus in corpora),
        "text_bytes": sum(corpus.text_bytes for corpus in corpora),
        "bytes_per_token": sum(corpus.text_bytes for corpus in corpora) / tokens,
        "tokenizer": dataset.vocabulary.name,
        "tokenizer_sha256": dataset.vocabulary.digest,
        "vocabulary": dataset.vocabulary.size,
        "sequence_length": sequence_length,
        "samples_per_epoch": sum(source.count for source in made.sources),
        "held_out_windows": len(dataset.held_out.windows) if dataset.held_out else 0,
        "samples": samples,
        "fingerprint": dataset.fingerprint,
        "sources": [
            {
                "name": each.name or each.path,
                "path": each.path,
                "share": share / made.mixture.block,
                "tokens": source.corpus.tokens,
                "documents": len(source.corpus.starts),
                "samples_per_epoch": source.count,
                "samples": None if counts is None else counts[number],
                "epochs": None if counts is None else counts[number] / source.count,
            }
            for number, (each, source, share) in enumerate(
                zip(data.sources, made.sources, made.mixture.shares, strict=True)
            )
        ],
        "first_samples": _first(dataset, data, windows),
    }


def _first(dataset: Dataset, data: DataConfig, windows: int) -> list[dict[str, Any]]:
    decode = _decoder(dataset.vocabulary)
    found = []
    for sample in range(windows):
        number, _ = dataset.windows.mixture.locate(sample)
        source, window = dataset.windows.find(sample)
        tokens = source.tokens(window).tolist()
        each = data.sources[number]
        found.append(
            {"sample": sample, "source": each.name or each.path, "window": window, "text": decode(tokens)}
        )
    return found


def _decoder(vocabulary: Vocabulary) -> Any:
    """Tokens to text; as numbers where the tokenizer's library is not installed."""
    try:
        tokenizer = tokenizer_of(vocabulary)
    except TokenizerError:
        return lambda tokens: " ".join(map(str, tokens))
    return lambda tokens: tokenizer.decode(tokens).decode(errors="replace")


def _table(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("SOURCE", "SHARE", "TOKENS", "DOCUMENTS", "SAMPLES/EPOCH", "EPOCHS")]
    rows += [
        (
            str(each["name"]),
            f"{each['share']:.2%}",
            f"{each['tokens']:,}",
            f"{each['documents']:,}",
            f"{each['samples_per_epoch']:,}",
            "-" if each["epochs"] is None else f"{each['epochs']:.2f}",
        )
        for each in sources
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
