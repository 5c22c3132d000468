"""`--fail step=60,kind=sigkill,node=node-2`: text from the command line to entries of the job's `faults`.

Only names and numbers are checked here; whether the node and the step exist is a rule of the job (`spec_rules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches

from orchestrator.core.problems import Problem
from orchestrator.core.spec import FaultSpec

EXAMPLE = "step=60,kind=sigkill,node=node-2"

_NAMES = tuple(each.name for each in fields(FaultSpec))
_REQUIRED = tuple(each.name for each in fields(FaultSpec) if each.default is MISSING)
_NUMBERS: dict[str, tuple[type[int] | type[float], str]] = {
    "step": (int, "a whole number"),
    "device": (int, "a whole number"),
    "bit": (int, "a whole number"),
    "duration_steps": (int, "a whole number"),
    "factor": (float, "a number"),
}
"""Fields that are numbers: how they are read, and what to call them."""


def parse_faults(texts: Sequence[str]) -> tuple[tuple[FaultSpec, ...], tuple[Problem, ...]]:
    """All faults that make sense, and every problem of those that do not."""
    faults: list[FaultSpec] = []
    problems: list[Problem] = []
    for text in texts:
        found = _parse(text)
        if isinstance(found, FaultSpec):
            faults.append(found)
        else:
            problems += found
    return tuple(faults), tuple(problems)


def _parse(text: str) -> FaultSpec | list[Problem]:
    values: dict[str, str] = {}
    problems: list[Problem] = []
    for entry in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not value:
            problems.append(_problem(entry, f"write NAME=VALUE pairs with commas, for example {EXAMPLE}"))
        elif name not in _NAMES:
            near = get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known names are {', '.join(_NAMES)}"
            problems.append(_problem(entry, f"unknown name: {hint}"))
        elif name in values:
            problems.append(_problem(entry, f"{name!r} is given twice: use --fail again for another failure"))
        elif name in _NUMBERS and _number(name, value) is None:
            problems.append(_problem(entry, f"{name} is {_NUMBERS[name][1]}"))
        else:
            values[name] = value
    missing = [name for name in _REQUIRED if name not in values]
    if missing and not problems:
        problems.append(_problem(text, f"lacks {', '.join(missing)}: for example {EXAMPLE}"))
    if problems:
        return problems
    numbers = {name: _number(name, values.pop(name)) for name in _NUMBERS if name in values}
    return FaultSpec(**values, **numbers)  # type: ignore[arg-type]


def _number(name: str, value: str) -> int | float | None:
    """None for a text that is no such number."""
    try:
        return _NUMBERS[name][0](value)
    except ValueError:
        return None


def _problem(value: str, remedy: str) -> Problem:
    return Problem(field="--fail", value=value, remedy=remedy)
