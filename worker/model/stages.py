"""How the layers of a model are divided over the stages of a pipeline. Pure arithmetic, no torch.

Each stage has one chunk of neighbouring layers, or several for an interleaved schedule: chunk 0 of every stage, then
chunk 1 of every stage, and so on, make up the model. The first chunk of all embeds the tokens, the last one predicts.
What must not live here: who fills the seats of a stage, and when a chunk is computed (`parallel/schedule.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Some of a model's layers, ascending, and whether the ends of the model go with them."""

    layers: tuple[int, ...]
    first: bool
    """With the embedding."""
    last: bool
    """With the last norm, the output and the loss."""


def whole(layers: int) -> Share:
    """All of a model."""
    return Share(layers=tuple(range(layers)), first=True, last=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A model of `layers` layers in `count` stages of `chunks` chunks each."""

    layers: int
    count: int = 1
    chunks: int = 1

    def __post_init__(self) -> None:
        assert self.count >= 1 and self.chunks >= 1, "a model has a stage, and a stage has a chunk"
        assert self.layers >= self.count * self.chunks, (
            f"{self.layers} layers cannot be divided like this: {self}"
        )

    def chunk(self, stage: int, chunk: int) -> Share:
        """As even as layers allow; what is left over goes to the first ones, since the last one has the output."""
        places = self.count * self.chunks
        place = chunk * self.count + stage
        each, more = divmod(self.layers, places)
        begin = place * each + min(place, more)
        return Share(
            layers=tuple(range(begin, begin + each + (place < more))),
            first=place == 0,
            last=place == places - 1,
        )

    def share(self, stage: int) -> Share:
        """Everything that a stage has."""
        chunks = [self.chunk(stage, chunk) for chunk in range(self.chunks)]
        return Share(
            layers=tuple(layer for chunk in chunks for layer in chunk.layers),
            first=any(chunk.first for chunk in chunks),
            last=any(chunk.last for chunk in chunks),
        )
