"""A pipeline over real groups computes what one process computes: the same loss, the same gradient of every weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.pipeline_ranks import Case, Result, plain, staged
from tests.unit.worker.data.corpora import random_documents, write_tokens
from tests.unit.worker.model.models import small_config
from worker.data.tokenfile import TOKENS_AT
from worker.model.config import Precision
from worker.parallel.schedule import Kind

CLOSE = 1e-12
"""Of float64: the order of sums differs, nothing else."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def assert_equal(results: list[Result], oracle: Result, case: Case) -> None:
    for result in results:
        assert torch.allclose(result.sums.loss, oracle.sums.loss, rtol=CLOSE, atol=0)
        for name, value in result.dense.items():
            scale = float(oracle.dense[name].abs().max())
            assert torch.allclose(value, oracle.dense[name], rtol=0, atol=CLOSE * scale), name
        for key, value in result.experts.items():
            scale = float(oracle.experts[key].abs().max())
            assert torch.allclose(value, oracle.experts[key], rtol=0, atol=CLOSE * scale), key
    assert {name for each in results for name in each.dense} == set(oracle.dense)
    assert {key for each in results for key in each.experts} == set(oracle.experts)


def assert_counts(results: list[Result], oracle: Result, case: Case) -> None:
    """Each sample once, where the loss is; each token's experts in every stage."""
    samples = [sample for result in results for sample in result.sums.samples]
    assert sorted(samples) == list(range(case.batch.samples_per_step))
    load = torch.stack([result.sums.expert_load for result in results]).sum(0)
    by_expert = load.view(len(case.widths), case.config.experts).sum(0)
    assert torch.equal(by_expert, oracle.sums.expert_load)
    by_layer = torch.stack([result.sums.layer_load_LE for result in results]).sum(0)
    assert torch.equal(by_layer, oracle.sums.layer_load_LE)


@pytest.mark.parametrize(
    "widths, microbatches, kind, chunks, layers",
    [
        ((1, 1), 4, Kind.ONE_F_ONE_B, 1, 2),
        ((2, 2), 4, Kind.GPIPE, 1, 3),
        ((2, 1), 5, Kind.ONE_F_ONE_B, 1, 2),
        ((1, 3), 4, Kind.ONE_F_ONE_B, 1, 4),
        ((1, 1, 1, 1), 5, Kind.ONE_F_ONE_B, 1, 4),
        ((2, 1, 2, 1), 5, Kind.ONE_F_ONE_B, 1, 5),
        ((1, 1), 4, Kind.INTERLEAVED, 2, 4),
        ((2, 1), 5, Kind.INTERLEAVED, 2, 5),
    ],
)
def test_a_pipeline_computes_what_the_plain_model_computes(
    text: Path, widths: tuple[int, ...], microbatches: int, kind: Kind, chunks: int, layers: int
) -> None:
    """Also with seats that have no microbatch in a round: their experts serve the others."""
    config = small_config(layers=layers, router_noise=0.05)
    case = Case(config=config, text=text, widths=widths, microbatches=microbatches, kind=kind, chunks=chunks)
    oracle, results = plain(case), staged(case)
    assert_equal(results, oracle, case)
    assert_counts(results, oracle, case)


def test_replicas_of_a_stage_have_equal_bits(text: Path) -> None:
    case = Case(config=small_config(), text=text, widths=(2, 3), microbatches=5)
    by_part: dict[tuple[int, object], torch.Tensor] = {}
    for result in staged(case):
        for key, value in [*result.dense.items(), *result.experts.items()]:
            first = by_part.setdefault((result.stage, key), value)
            assert torch.equal(first, value), key


def test_documents_stay_apart_in_every_stage(tmp_path: Path) -> None:
    """A middle stage sees no text, and yet where documents end."""
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_bytes(bytes(range(number, number + 3 + number % 9)))
    case = Case(config=small_config(layers=3), text=tmp_path, widths=(1, 2, 1), microbatches=3, apart=True)
    assert case.scale.step_tokens < case.batch.samples_per_step * case.config.sequence_length
    assert_equal(staged(case), plain(case), case)


def test_without_a_load_balance_loss_only_the_last_stage_has_an_objective(text: Path) -> None:
    case = Case(config=small_config(aux_loss=0.0), text=text, widths=(1, 1), microbatches=2)
    assert_equal(staged(case), plain(case), case)


def test_activations_travel_in_the_type_of_computation(text: Path) -> None:
    """bfloat16 between stages as inside them: nothing is rounded that was not rounded before."""
    config = small_config(Precision.BFLOAT16)
    case = Case(config=config, text=text, widths=(1, 1), microbatches=1)
    oracle, results = plain(case), staged(case)
    for result in results:
        for name, value in result.dense.items():
            assert torch.equal(value, oracle.dense[name]), name


@pytest.mark.parametrize("apart", [False, True], ids=["joined", "apart"])
@pytest.mark.parametrize("widths", [(2,), (2, 1)], ids=["flat", "two-stages"])
def test_a_rank_that_cannot_read_its_samples_lets_no_other_wait(
    widths: tuple[int, ...], apart: bool, tmp_path: Path
) -> None:
    """It computes on blank ones, and has in words what the vote will tell the others."""
    config = small_config(layers=2)
    path = write_tokens(
        tmp_path / "a.tokens", random_documents(40, vocabulary=200), vocabulary=config.vocabulary
    )
    case = Case(config=config, text=path, widths=widths, microbatches=5, apart=apart)
    content = bytearray(path.read_bytes())
    content[TOKENS_AT + 10] ^= 1
    path.write_bytes(content)
    results = staged(case)
    assert all("a.tokens is damaged in the" in result.sums.unreadable for result in results)
    assert all("copy it again" in result.sums.unreadable for result in results)
