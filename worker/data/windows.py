"""Which tokens a sample is. A sample has a global number (its id), counted from 0 over the whole job.

An id alone says which source and which window of it are meant, so there is no position to keep, hand over or lose:
whoever is dealt a microbatch reads it. A corpus is cut into windows of one sequence (each also ends in the first
token of the next). In each epoch of a source every window of it comes once, in an order drawn from the job's seed;
windows that are held out for validation never come.

What must not live here: who computes which microbatch (the deal), and anything that is kept between calls.

Shapes: B sequences; S positions; C = S + 1 tokens of a window (input and the token after it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.data.config import DataConfig, Documents, SourceConfig, ValidationConfig
from worker.data.corpus import Corpus, Tokens, Vocabulary, open_corpus
from worker.data.errors import TO_TRAIN_ON, DataError
from worker.data.mixture import Mixture
from worker.data.permutation import mixed, permuted

HELD_OUT_KEY = 0x68656C64
"""Which windows are held out does not depend on the job's seed: two seeds are measured on the same ones."""
VALIDATION = "validation.path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows, and what of them may be seen and predicted."""

    window_BC: Tensor
    """Tokens, int64; [0, C] for none."""
    document_BC: Tensor | None = None
    """Where documents are kept apart: a number for each token, which changes where a document begins; int64."""

    def to(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same where `move` puts it."""
        document_BC = None if self.document_BC is None else move(self.document_BC)
        return Batch(window_BC=move(self.window_BC), document_BC=document_BC)


class SourceWindows:
    """One corpus cut into windows: those to train on by number of the sample, those held out by their own."""

    def __init__(
        self, corpus: Corpus, *, sequence_length: int, seed: int, held_share: float = 0.0, field: str
    ) -> None:
        """Raises DataError for less than one window."""
        self.corpus = corpus
        self._length = sequence_length
        self._seed = seed
        self._all = (corpus.tokens - 1) // sequence_length
        self.held = max(1, round(self._all * held_share)) if held_share else 0
        self.count = self._all - self.held
        if self.count < 1:
            unit = "tokens" if corpus.vocabulary.tokenizer else "bytes"
            also = f" and {held_share:g} of all are held out" if held_share else ""
            raise DataError(
                corpus.path,
                f"it holds {corpus.tokens} {unit}, one sample needs {sequence_length + 1}{also}",
                "name a longer text, or lower model.sequence_length",
                field=field,
            )

    def window_of(self, sample: int) -> int:
        """Which window a sample of this source is: each one once per epoch."""
        assert sample >= 0, f"samples count from 0, not {sample}"
        epoch, position = divmod(sample, self.count)
        chosen = permuted(position, self.count, mixed(self._seed, epoch))
        return self._spread(self.held + chosen) if self.held else chosen

    def held_window(self, number: int) -> int:
        """One of the windows that are held out."""
        assert 0 <= number < self.held, (number, self.held)
        return self._spread(number)

    def _spread(self, place: int) -> int:
        """A fixed shuffle of all windows: the first places are held out, the others trained on."""
        return permuted(place, self._all, HELD_OUT_KEY)

    def tokens(self, window: int) -> Tokens:
        """[C]. Raises DataDamaged."""
        start = window * self._length
        return self.corpus.read(start, start + self._length + 1)

    def documents(self, window: int) -> Tokens:
        """[C]: for each token the number of its document."""
        start = window * self._length
        places = np.arange(start, start + self._length + 1)
        return np.searchsorted(self.corpus.starts, places, side="right")

    def boundaries(self, window: int) -> int:
        """Tokens to predict that are the first of a document."""
        start = window * self._length
        ends = (start, start + self._length)
        before, after = np.searchsorted(self.corpus.starts, ends, side="right").tolist()
        return int(after - before)


_Found = tuple[SourceWindows, int]
"""A window: of which source, and its number there."""


class Windows:
    """All windows of a job, by sample id."""

    def __init__(
        self,
        sources: Sequence[SourceWindows],
        *,
        sequence_length: int,
        weights: Sequence[float] = (1.0,),
        documents: Documents = Documents.JOINED,
    ) -> None:
        assert len(sources) == len(weights)
        self.sources = tuple(sources)
        self.mixture = Mixture(weights)
        self.apart = documents is Documents.APART
        self._length = sequence_length

    def find(self, sample: int) -> _Found:
        """The window of a sample id."""
        source, number = self.mixture.locate(sample)
        return self.sources[source], self.sources[source].window_of(number)

    def batch(self, ids: Sequence[int]) -> Batch:
        """The tokens of some samples."""
        return batch_of([self.find(sample) for sample in ids], self._length, apart=self.apart)

    def blank(self, count: int) -> Batch:
        """In the shape of so many samples, for a step that will not count."""
        return blank(count, self._length, apart=self.apart)

    def targets(self, ids: Sequence[int]) -> int:
        """How many tokens some samples predict: what a whole step's loss is divided by, on every member."""
        whole = len(ids) * self._length
        if not self.apart:
            return whole
        found = [self.find(sample) for sample in ids]
        return whole - sum(source.boundaries(window) for source, window in found)


def batch_of(found: Sequence[_Found], length: int, *, apart: bool) -> Batch:
    """The tokens of some windows of `length` positions."""
    window_BC = np.empty((len(found), length + 1), dtype=np.int64)
    for row, (source, window) in enumerate(found):
        window_BC[row] = source.tokens(window)
    if not apart:
        return Batch(window_BC=torch.from_numpy(window_BC))
    document_BC = np.empty_like(window_BC)
    for row, (source, window) in enumerate(found):
        document_BC[row] = source.documents(window)
    return Batch(window_BC=torch.from_numpy(window_BC), document_BC=torch.from_numpy(document_BC))


def blank(count: int, length: int, *, apart: bool) -> Batch:
    """Windows of zeros."""
    window_BC = torch.zeros(count, length + 1, dtype=torch.int64)
    return Batch(window_BC=window_BC, document_BC=torch.zeros_like(window_BC) if apart else None)


class HeldOut:
    """The windows that are measured, always the same ones; evenly over what there is."""

    def __init__(
        self, sources: Sequence[SourceWindows], *, length: int, limit: int, whole: bool, apart: bool
    ) -> None:
        """`whole` takes all windows of the sources, else those that they hold out; at most `limit`, 0 for all."""
        self.length, self._apart = length, apart
        every = [
            (source, number if whole else source.held_window(number))
            for source in sources
            for number in range(source.count if whole else source.held)
        ]
        taken = min(limit, len(every)) if limit else len(every)
        self.windows: tuple[_Found, ...] = tuple(every[n * len(every) // taken] for n in range(taken))
        read = sum(source.corpus.tokens for source in sources)
        self.bytes_per_token = sum(source.corpus.text_bytes for source in sources) / read
        """Of the whole corpus: what bits per byte are computed with."""

        borders = sum(source.boundaries(window) for source, window in self.windows) if apart else 0
        self.targets = len(self.windows) * length - borders
        """Tokens that are predicted."""

    def blank(self, count: int) -> Batch:
        """In the shape of so many windows, for a measurement that will not count."""
        return blank(count, self.length, apart=self._apart)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Some of the windows."""
        return batch_of([self.windows[number] for number in numbers], self.length, apart=self._apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Everything that a job reads."""

    windows: Windows
    held_out: HeldOut | None
    vocabulary: Vocabulary
    fingerprint: str
    """Names what the samples mean, beside the seed."""


def open_dataset(
    data: DataConfig, validation: ValidationConfig, *, sequence_length: int, vocabulary: int, seed: int
) -> Dataset:
    """Opens what a job trains on and is measured on. `vocabulary` is the model's. Raises DataError."""
    corpora = [open_corpus(each.path, field=_field(data, number)) for number, each in enumerate(data.sources)]
    held = open_corpus(validation.path, field=VALIDATION) if validation.path else None
    first = corpora[0].vocabulary
    for number, corpus in enumerate([*corpora, *([held] if held else [])]):
        field = _field(data, number) if number < len(corpora) else VALIDATION
        _speak_alike(corpus, first, vocabulary, field)
    sources = [
        SourceWindows(
            corpus,
            sequence_length=sequence_length,
            seed=_seed(seed, each),
            held_share=validation.share,
            field=_field(data, number),
        )
        for number, (corpus, each) in enumerate(zip(corpora, data.sources, strict=True))
    ]
    measured = None
    if validation.wanted:
        own = held and SourceWindows(held, sequence_length=sequence_length, seed=seed, field=VALIDATION)
        measured = HeldOut(
            [own] if own else sources,
            length=sequence_length,
            limit=validation.windows,
            whole=own is not None,
            apart=data.documents is Documents.APART,
        )
    weights = [each.weight for each in data.sources]
    return Dataset(
        windows=Windows(sources, sequence_length=sequence_length, weights=weights, documents=data.documents),
        held_out=measured,
        vocabulary=first,
        fingerprint=_fingerprint(data, validation, corpora),
    )


def _field(data: DataConfig, number: int) -> str:
    return f"data.sources.{number}.path" if data.sources[number].name else TO_TRAIN_ON


def _seed(seed: int, source: SourceConfig) -> int:
    """Sources are shuffled independently, each by its name: another source beside it changes nothing in it."""
    if not source.name:
        return seed
    digest = hashlib.blake2b(source.name.encode(), digest_size=8).digest()
    return mixed(seed, int.from_bytes(digest, "little"))


def _speak_alike(corpus: Corpus, first: Vocabulary, model: int, field: str) -> None:
    """All corpora of a job have the same tokenizer, and the model a row for each of its tokens."""
    own = corpus.vocabulary
    if own.digest != first.digest:
        raise DataError(
            corpus.path,
            f"its tokens are of {own.name}, those of the first source of {first.name}",
            "prepare all of them with the same tokenizer",
            field=field,
        )
    if own.size > model:
        raise DataError(
            corpus.path,
            f"its tokenizer {own.name} has {own.size} tokens, model.vocabulary is {model}",
            f"set model.vocabulary to {own.size} or more, or leave it out",
            field=field,
        )


def _fingerprint(data: DataConfig, validation: ValidationConfig, corpora: Sequence[Corpus]) -> str:
    """A single corpus of which everything is trained on is named by itself."""
    prints = [corpus.fingerprint() for corpus in corpora]
    if len(prints) == 1 and not data.sources[0].name and data.documents is Documents.JOINED:
        if not validation.share:
            return prints[0]
    told = [(each.name, each.weight, own) for each, own in zip(data.sources, prints, strict=True)]
    words = repr((told, data.documents.value, validation.share))
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
