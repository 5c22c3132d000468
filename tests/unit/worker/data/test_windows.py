"""Windows by sample id, held-out windows, mixtures, documents kept apart, and refusals that say what to do.

Shapes: B sequences; C tokens of a window.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.worker.data.corpora import random_documents, tokenizer_json, write_tokens
from worker.data.config import DataConfig, Documents, ValidationConfig
from worker.data.corpus import TextCorpus, open_corpus
from worker.data.errors import DataError
from worker.data.text import Text
from worker.data.tokenfile import TokenFileWriter
from worker.data.windows import Dataset, SourceWindows, Windows, open_dataset
from worker.model.fields import FieldError

NONE = ValidationConfig()


def corpus_of(count: int) -> TextCorpus:
    content = np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)
    return TextCorpus("made up", Text.of(("made up",), [content]))


def source(count: int = 1001, length: int = 10, seed: int = 4, held_share: float = 0.0) -> SourceWindows:
    return SourceWindows(
        corpus_of(count), sequence_length=length, seed=seed, held_share=held_share, field="data.path"
    )


def dataset(
    data: dict[str, object], validation: ValidationConfig = NONE, *, seed: int = 4, length: int = 10
) -> Dataset:
    return open_dataset(
        DataConfig.from_mapping(data), validation, sequence_length=length, vocabulary=1000, seed=seed
    )


def test_windows_overlap_by_the_token_to_predict() -> None:
    made = source()
    window_BC = Windows([made], sequence_length=10).batch(range(made.count)).window_BC
    assert window_BC.dtype == torch.int64 and window_BC.shape == (100, 11)
    content = corpus_of(1001).read(0, 1001)
    for sample in range(made.count):
        start = made.window_of(sample) * 10
        assert window_BC[sample].tolist() == content[start : start + 11].tolist()


@given(st.integers(12, 3000), st.integers(1, 11), st.integers(0, 5), st.integers(0, 1 << 40))
@settings(deadline=None)
def test_each_epoch_has_every_window_once(count: int, length: int, epoch: int, seed: int) -> None:
    made = source(count, length, seed)
    seen = [made.window_of(epoch * made.count + position) for position in range(made.count)]
    assert sorted(seen) == list(range(made.count))


@given(st.integers(60, 3000), st.floats(0.05, 0.6), st.integers(0, 3), st.integers(0, 1 << 40))
@settings(deadline=None)
def test_held_out_windows_never_come_and_all_others_do(
    count: int, share: float, epoch: int, seed: int
) -> None:
    made = source(count, 10, seed, share)
    held = {made.held_window(number) for number in range(made.held)}
    seen = [made.window_of(epoch * made.count + position) for position in range(made.count)]
    assert len(held) == made.held >= 1
    assert sorted([*seen, *held]) == list(range((count - 1) // 10))


def test_which_windows_are_held_out_does_not_depend_on_the_seed() -> None:
    one, other = source(seed=1, held_share=0.1), source(seed=2, held_share=0.1)
    assert [one.held_window(n) for n in range(10)] == [other.held_window(n) for n in range(10)]
    assert [one.window_of(n) for n in range(10)] != [other.window_of(n) for n in range(10)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    made = source()
    first = [made.window_of(i) for i in range(100)]
    assert first != [made.window_of(100 + i) for i in range(100)]
    assert first != [source(seed=5).window_of(i) for i in range(100)]
    assert first == [source().window_of(i) for i in range(100)]


def test_no_samples_make_an_empty_batch() -> None:
    batch = Windows([source()], sequence_length=10, documents=Documents.APART).batch(range(0))
    assert batch.window_BC.shape == (0, 11)
    assert batch.document_BC is not None and batch.document_BC.shape == (0, 11)


def test_a_token_file_and_its_text_have_the_same_samples(tmp_path: Path) -> None:
    """Ids mean the same windows whatever holds the tokens."""
    content = corpus_of(1001).read(0, 1001)
    content.tofile(tmp_path / "text")
    writer = TokenFileWriter(tmp_path / "made.tokens", vocabulary=256, tokenizer_name="bytes", tokenizer=b"")
    for part in np.split(content, [3, 500, 777]):
        writer.add(part, text_bytes=len(part))
    writer.finish()
    found = [
        dataset({"path": str(tmp_path / name)}).windows.batch(range(120)).window_BC
        for name in ("text", "made.tokens")
    ]
    assert torch.equal(*found)


def test_a_mixture_takes_each_source_by_its_own_order(tmp_path: Path) -> None:
    """Every sample of a source is found in the order that it has alone, whoever stands beside it."""
    for number, name in enumerate(("a", "b", "c")):
        write_tokens(tmp_path / f"{name}.tokens", random_documents(40, seed=number))
    sources = [
        {"name": name, "path": str(tmp_path / f"{name}.tokens"), "weight": weight}
        for name, weight in (("a", 3.0), ("b", 1.0), ("c", 0.5))
    ]
    both = dataset({"sources": sources}).windows
    alone = dataset({"sources": sources[1:2]}).windows
    assert both.mixture.shares == (6, 2, 1)
    found = [both.find(sample) for sample in range(1350)]
    of_b = [window for at, window in found if at is both.sources[1]]
    assert len(of_b) == 300
    assert of_b == [alone.find(sample)[1] for sample in range(300)]
    # In each epoch of b every window of it comes once.
    count = both.sources[1].count
    assert sorted(of_b[:count]) == list(range(count))


def test_tokens_to_predict_are_counted_without_reading_them(tmp_path: Path) -> None:
    documents = random_documents(200, longest=25)
    write_tokens(tmp_path / "made.tokens", documents)
    made = dataset({"path": str(tmp_path / "made.tokens"), "documents": "apart"}).windows
    batch = made.batch(range(50))
    assert batch.document_BC is not None
    inside_BS = batch.document_BC[:, 1:] == batch.document_BC[:, :-1]
    assert 0 < made.targets(range(50)) == int(inside_BS.sum()) < 500
    joined = dataset({"path": str(tmp_path / "made.tokens")}).windows
    assert joined.targets(range(50)) == 500 and joined.batch(range(50)).document_BC is None


def test_documents_are_numbered_by_where_they_begin(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    write_tokens(tmp_path / "made.tokens", documents)
    made = dataset({"path": str(tmp_path / "made.tokens"), "documents": "apart"}, length=5).windows
    of_window = {made.find(sample)[1]: sample for sample in range(2)}
    batch = made.batch([of_window[0], of_window[1]])
    assert batch.window_BC.tolist() == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11]]
    assert batch.document_BC is not None
    assert batch.document_BC.tolist() == [[1, 1, 1, 2, 3, 3], [3] * 6]


def test_what_is_measured_is_spread_over_everything(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.tokens", random_documents(100))
    write_tokens(tmp_path / "other.tokens", random_documents(100, seed=1))
    data: dict[str, object] = {"path": str(tmp_path / "train.tokens")}
    own = dataset(data, ValidationConfig(path=str(tmp_path / "other.tokens"), windows=7)).held_out
    assert own is not None
    every = (open_corpus(str(tmp_path / "other.tokens")).tokens - 1) // 10
    assert [window for _, window in own.windows] == [n * every // 7 for n in range(7)]
    assert own.bytes_per_token == 2.0
    all_of_it = dataset(data, ValidationConfig(path=str(tmp_path / "other.tokens"), windows=0)).held_out
    assert all_of_it is not None and len(all_of_it.windows) == every
    shared = dataset(data, ValidationConfig(share=0.2, windows=1000))
    assert shared.held_out is not None and len(shared.held_out.windows) == shared.windows.sources[0].held
    seen = {shared.windows.find(sample)[1] for sample in range(shared.windows.sources[0].count)}
    assert not seen & {window for _, window in shared.held_out.windows}


def test_the_fingerprint_names_all_that_decides_what_a_sample_is(tmp_path: Path) -> None:
    path = str(write_tokens(tmp_path / "made.tokens", random_documents(100)))
    plain = dataset({"path": path}).fingerprint
    assert plain == open_corpus(path).fingerprint()
    assert dataset({"path": path}, ValidationConfig(path=path)).fingerprint == plain
    others = [
        dataset({"path": path, "documents": "apart"}),
        dataset({"path": path}, ValidationConfig(share=0.1)),
        dataset({"sources": [{"name": "a", "path": path, "weight": 1.0}]}),
        dataset({"sources": [{"name": "b", "path": path, "weight": 1.0}]}),
    ]
    assert len({plain, *(each.fingerprint for each in others)}) == 5


def test_too_little_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"0123456789")
    path = str(tmp_path / "short")
    assert dataset({"path": path}, length=9).windows.sources[0].count == 1
    with pytest.raises(DataError, match=r"data\.path is .*holds 10 bytes, one sample needs 11; .*lower"):
        dataset({"path": path}, length=10)
    with pytest.raises(DataError, match=r"validation\.path is .*holds 10 bytes"):
        dataset({"path": "stdlib"}, ValidationConfig(path=path), length=10)


def test_an_empty_file_is_too_little_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(DataError, match="holds 0 bytes"):
        dataset({"path": str(tmp_path / "none")})


def test_a_model_with_too_few_tokens_is_refused(tmp_path: Path) -> None:
    path = str(write_tokens(tmp_path / "made.tokens", random_documents(10), vocabulary=1001))
    with pytest.raises(
        DataError, match=r"1001 tokens, model\.vocabulary is 1000; set model\.vocabulary to 1001"
    ):
        dataset({"path": path})


def test_sources_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    made = write_tokens(tmp_path / "made.tokens", random_documents(10))
    writer = TokenFileWriter(
        tmp_path / "other.tokens", vocabulary=300, tokenizer_name="bpe", tokenizer=tokenizer_json()
    )
    writer.add(np.arange(50), text_bytes=50)
    writer.finish()
    sources = [
        {"name": "a", "path": str(made), "weight": 1.0},
        {"name": "b", "path": str(tmp_path / "other.tokens"), "weight": 1.0},
    ]
    with pytest.raises(
        DataError, match=r"data\.sources\.1\.path .*tokens are of bpe, .*of made up; prepare all"
    ):
        dataset({"sources": sources})


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, r"data\.path is ''"),
        ({"path": "a", "sources": [{"name": "a", "path": "a", "weight": 1.0}]}, "either data.path or"),
        ({"sources": [{"name": "a", "path": "a", "weight": 0.0}]}, r"data\.sources\.0\.weight is 0\.0"),
        ({"path": "a", "documents": "mixed"}, r"data\.documents is 'mixed': one of joined, apart"),
        ({"path": "a", "shuffle": True}, r"data\.shuffle is True: no such setting"),
    ],
)
def test_the_data_section_is_read_strictly(data: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        DataConfig.from_mapping(data)
