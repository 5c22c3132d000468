"""What can be wrong with data: one error, which names the field of the job or the argument, and says what to do."""

from __future__ import annotations

TO_TRAIN_ON = "data.path"


class DataError(ValueError):
    """Data that cannot be used. `field` is where it was asked for: `data.path`, `validation.path`, `--data`."""

    def __init__(self, path: str, problem: str, remedy: str, *, field: str = TO_TRAIN_ON) -> None:
        super().__init__(f"{field} is {path!r}: {problem}; {remedy}")


class DataDamaged(DataError):
    """A token file whose bytes are not those that were written."""
