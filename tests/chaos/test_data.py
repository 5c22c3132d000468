"""A mixture of token files, documents kept apart, a share held out: disturbed, and beside a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.job import TINY, TOLERANCE
from tests.chaos.oracle import plain_job, plain_ledger
from tests.chaos.runs import Run, assert_every_sample_once, fault, largest_difference
from tests.unit.worker.data.corpora import SAYINGS, tokenizer_json
from worker.data.tokenfile import BLOCK_BYTES, TOKENS_AT, TokenFileWriter, open_tokens
from worker.data.tokenizer import FileTokenizer

STEPS = 30

pytestmark = pytest.mark.timeout(600)


def write(path: Path, count: int, stride: int) -> Path:
    """Token files of short documents: most windows hold several."""
    tokenizer = FileTokenizer(tokenizer_json(), name="small")
    writer = TokenFileWriter(
        path, vocabulary=tokenizer.vocabulary.size, tokenizer_name="small", tokenizer=tokenizer_json()
    )
    for number in range(count):
        text = f"{number}: {SAYINGS[number * stride % 3][number % 11 :]}".encode()
        writer.add(tokenizer.encode([text])[0], text_bytes=len(text))
    writer.finish()
    return path


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    sources = [
        {"name": "one", "path": str(write(tmp_path / "one.tokens", 300, 1)), "weight": 3},
        {"name": "two", "path": str(write(tmp_path / "two.tokens", 90, 2)), "weight": 1},
    ]
    return {
        **TINY,
        "steps": STEPS,
        "data": {"documents": "apart", "sources": sources},
        "validation": {"share": 0.1},
    }


def damage(path: Path, share: float) -> bytes:
    """Change a byte of the tokens, so far into them; gives what was there."""
    header = open_tokens(path, path=str(path)).header
    size = header.tokens * header.item_bytes
    assert size > 2 * BLOCK_BYTES, "the block is one of several"
    before, place = path.read_bytes(), TOKENS_AT + int(size * share)
    path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    return before


@pytest.mark.parametrize(
    "pipeline", [{}, pytest.param({"stages": 2}, marks=pytest.mark.long)], ids=["flat", "two-stages"]
)
def test_a_damaged_token_block_is_one_error_and_nothing_is_lost(
    pipeline: dict[str, Any], tmp_path: Path
) -> None:
    """Damaged while the job is stopped, met in mid-run: it fails with a checkpoint, is mended, and goes on."""
    tokens = write(tmp_path / "one.tokens", 40_000, 1)
    job = {**TINY, "steps": STEPS, "data": {"path": str(tokens)}, "pipeline": pipeline}
    with Run(tmp_path / "run", "--steps", "4", job=job) as run:
        run.finish()
    sound = damage(tokens, 0.9)
    with Run(tmp_path / "run", "--steps", str(STEPS)) as run:
        summary = run.finish(exit_code=1)
        committed = len(run.ledger())
    assert 4 <= committed < STEPS
    assert summary["incidents"] == []
    assert summary["checkpoints"][-1]["step"] == committed
    block = f"one.tokens is damaged in the {BLOCK_BYTES} bytes after"
    assert block in run.output and "copy it again" in run.output
    tokens.write_bytes(sound)
    with Run(tmp_path / "run", "--steps", str(STEPS)) as run:
        run.finish()
        ledger = run.ledger()
    assert_every_sample_once(ledger, STEPS)
    assert largest_difference(ledger, plain_ledger(plain_job(tmp_path / "run.yaml"), STEPS)) <= TOLERANCE


def test_a_disturbed_mixture_is_the_plain_loop_s(job: dict[str, Any], tmp_path: Path) -> None:
    """A node dies in the reduction of a step; epochs of the small source end in the run."""
    with Run(tmp_path / "run", fault(12, "node-2", "reduce"), job=job) as run:
        summary = run.finish()
        ledger = run.ledger()
    assert [each["node"] for each in summary["incidents"]] == ["node-2"]
    assert_every_sample_once(ledger, STEPS)
    expected = plain_ledger(plain_job(tmp_path / "run.yaml"), STEPS)
    assert [line["tokens"] for line in ledger] == [line["tokens"] for line in expected]
    assert min(line["tokens"] for line in ledger) < 256, "there are borders in the windows"
    assert largest_difference(ledger, expected) <= TOLERANCE
    assert (tmp_path / "run" / "checkpoints" / "tokenizer.json").read_bytes() == tokenizer_json()
