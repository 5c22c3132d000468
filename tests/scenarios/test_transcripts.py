"""Every story in `transcripts/` is told by the core as it is written; `pytest tests/scenarios --rewrite` writes anew.

A changed line is a changed decision: review the diff as you would review the code.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios import play

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_core_answers_as_the_transcript_says(path: Path, rewrite: bool) -> None:
    """Invariants hold after every event of the story, and the answers are those in the file."""
    blocks = play.read(path.read_text(encoding="utf-8"))
    play.play(blocks)
    answered = play.write(blocks)
    if rewrite:
        path.write_text(answered, encoding="utf-8")
    assert answered == path.read_text(encoding="utf-8"), (
        "review the change, then: pytest tests/scenarios --rewrite"
    )


def test_a_story_is_played_the_same_way_twice() -> None:
    """The core has no hidden inputs: the same events give the same words, actions and generations."""
    text = next(path for path in TRANSCRIPTS if path.stem == "two_nodes_at_once").read_text(encoding="utf-8")
    first, second = play.read(text), play.read(text)
    play.play(first)
    play.play(second)
    assert play.write(first) == play.write(second)
