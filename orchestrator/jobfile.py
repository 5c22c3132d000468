"""Job files: YAML from disk, overrides from the command line, one JobSpec or every problem at once.

The only place that reads a job file. Names and types are checked by `core/spec_mapping.py`, relations by
`core/spec_rules.py`; here is what needs the disk. Next: `core/spec.py`, the job itself.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.core import spec_rules
from orchestrator.core.problems import Problem
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import SpecError, from_mapping
from orchestrator.datafiles import token_file_facts

__all__ = ["JobFileError", "Problem", "load_job_file", "override", "read_mapping"]

BYTE_VALUES = 256
STANDARD_LIBRARY = "stdlib"
"""The data path that every machine with Python has."""
_NOTHING_THERE = f"nothing is there: name a file, a folder or a glob that exists, or {STANDARD_LIBRARY!r}"
LOOKED_AT_FILES = 10_000
"""Of more files than that, the rest is believed to be like the first."""

_SEALED = re.compile(r"step-\d{8,}\.g\d{4,}")
"""The folder of a sealed checkpoint (`worker/checkpointing/names.py`)."""
_FLOAT = re.compile(
    r"""^[-+]?(?: [0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
              | \.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
              | [0-9][0-9_]*[eE][-+]?[0-9]+
              | \.(?:inf|Inf|INF) )$ | ^\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)


class JobFileError(Exception):
    """A job file that cannot run. `problems` names each field, what it holds and what to do about it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def load_job_file(
    path: str, overrides: Sequence[str] = (), *, looks_at_data: bool = True, runs_here: bool = True
) -> JobSpec:
    """Read `path`, apply `KEY=VALUE` overrides (dotted names, YAML values) and check everything.

    A relative data path is taken from the current directory, as everywhere else on a command line, or from the
    folder of the job file when it exists only there; in the job it is absolute. `looks_at_data` is for jobs that have
    not begun: one that trains has its text already. A job that is only planned need not find what it `not_here` names;
    what is there is looked at all the same. Raises JobFileError.
    """
    mapping = read_mapping(path)
    problems = [problem for text in overrides for problem in override(mapping, text)]
    if problems:
        raise JobFileError(tuple(problems))
    _settle_data_paths(mapping, Path(path).parent)
    _settle_base(mapping, Path(path).parent)
    _settle_vocabulary(mapping)
    try:
        spec = from_mapping(mapping)
    except SpecError as error:
        raise JobFileError(error.problems) from error
    found = (*spec_rules.problems(spec), *_base_problems(spec))
    found += _data_problems(spec) if looks_at_data else ()
    if not runs_here:
        elsewhere = {each.field for each in not_here(spec)}
        found = tuple(each for each in found if each.field not in elsewhere)
    if found:
        raise JobFileError(found)
    return spec


def not_here(spec: JobSpec) -> tuple[Problem, ...]:
    """What a job names and this machine has nothing of: the machines that run it may have it."""
    base = spec.init.checkpoint
    found = [*_base_problems(spec)] if base and not _seen(Path(base)) else []
    return (*found, *(each for each in _data_problems(spec) if each.remedy == _NOTHING_THERE))


class _JobLoader(yaml.SafeLoader):
    """YAML without two surprises: `1e-5` is a number, and a name given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            name = key.value
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"{name!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


_JobLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_mapping(path: str, what: str = "job file") -> dict[str, Any]:
    """A YAML file that holds a mapping; `what` it is, for messages. Raises JobFileError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        remedy = f"{error.strerror or error}: give the path of a {what}"
        raise JobFileError((Problem(field=what, value=path, remedy=remedy),)) from error
    except UnicodeDecodeError as error:
        problem = Problem(field=what, value=path, remedy="is not UTF-8 text: give a YAML file")
        raise JobFileError((problem,)) from error
    try:
        mapping = yaml.load(text, _JobLoader)
    except yaml.YAMLError as error:
        remedy = f"is not valid YAML: {' '.join(str(error).split())}"
        raise JobFileError((Problem(field=what, value=path, remedy=remedy),)) from error
    if not isinstance(mapping, dict):
        remedy = f"a {what} is a mapping of names to values, with lines like 'name: mine'"
        raise JobFileError((Problem(field=what, value=path, remedy=remedy),))
    if {"apiVersion", "kind"} <= mapping.keys():
        remedy = f"is an object of Kubernetes, not a {what}: kubectl apply -f {path} (a job stands in its spec.job)"
        raise JobFileError((Problem(field="kind", value=mapping["kind"], remedy=remedy),))
    return mapping


def override(mapping: dict[str, Any], text: str) -> list[Problem]:
    """Set one dotted name in place; list entries go by their number (`faults.0.step=3`)."""
    name, equals, raw = text.partition("=")
    name = name.strip()
    if not equals or not name:
        return [
            Problem(field="--set", value=text, remedy="write it as KEY=VALUE, for example model.width=256")
        ]
    try:
        value = yaml.load(raw, _JobLoader)
    except yaml.YAMLError:
        return [Problem(field=name, value=raw, remedy="the value is not valid YAML: put it in quotes")]
    *parents, last = name.split(".")
    place: Any = mapping
    for parent in parents:
        if isinstance(place, dict):
            place = place.setdefault(parent, {})
            continue
        entry = _list_entry(place, parent)
        if entry is None:
            return [
                Problem(
                    field=name, value=value, remedy=f"{parent!r} is inside of a plain value or past a list"
                )
            ]
        place = entry
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    else:
        return [
            Problem(field=name, value=value, remedy=f"{last!r} is inside of a plain value or past a list")
        ]
    return []


def _list_entry(place: object, number: str) -> object | None:
    if isinstance(place, list) and number.isdigit() and int(number) < len(place):
        entry: object = place[int(number)]
        return entry
    return None


def _settle_data_paths(mapping: dict[str, Any], folder: Path) -> None:
    """Make the paths of data absolute: the trainers run in other directories."""
    for place, name in _named_data(mapping):
        path = place[name]
        if not path.strip() or path == STANDARD_LIBRARY or "://" in path:
            continue
        local = Path(path).expanduser()
        beside = folder / local
        chosen = beside if not local.is_absolute() and not _matches(local) and _matches(beside) else local
        place[name] = str(chosen.absolute())


def _named_data(mapping: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every mapping of a job that names data, and under which name."""
    yield from ((place, "path") for place in _data_places(mapping))
    trainable = mapping.get("trainable")
    affinity = trainable.get("affinity") if isinstance(trainable, dict) else None
    if isinstance(affinity, dict) and isinstance(affinity.get("sample"), str):
        yield affinity, "sample"


def _data_places(mapping: dict[str, Any]) -> list[dict[str, Any]]:
    """Every mapping of a job that names data under `path`."""
    data, validation = mapping.get("data"), mapping.get("validation")
    listed = data.get("sources") if isinstance(data, dict) else None
    places = [data, validation, *(listed if isinstance(listed, list) else [])]
    return [place for place in places if isinstance(place, dict) and isinstance(place.get("path"), str)]


def _settle_vocabulary(mapping: dict[str, Any]) -> None:
    """A model whose vocabulary is not given has that of the token files."""
    model = mapping.setdefault("model", {})
    if not isinstance(model, dict) or "vocabulary" in model:
        return
    facts = [token_file_facts(place["path"]) for place in _data_places(mapping)]
    sizes = [each.vocabulary for each in facts if each is not None]
    if sizes:
        model["vocabulary"] = max(BYTE_VALUES, *sizes)


def _settle_base(mapping: dict[str, Any], folder: Path) -> None:
    """Name the very checkpoint: of a workdir the newest sealed one now, which a later restart must find again."""
    init = mapping.get("init")
    if not isinstance(init, dict) or not isinstance(init.get("checkpoint"), str) or not init["checkpoint"]:
        return
    given = Path(init["checkpoint"]).expanduser()
    beside = folder / given
    root = (
        beside if not given.is_absolute() and not given.exists() and beside.exists() else given
    ).absolute()
    for place in (root / "checkpoints", root):
        sealed = [each for each in place.glob("step-*") if _SEALED.fullmatch(each.name)]
        if sealed:
            root = max(sealed, key=lambda each: tuple(map(int, re.findall(r"\d+", each.name))))
            break
    init["checkpoint"] = str(root)


def _base_problems(spec: JobSpec) -> tuple[Problem, ...]:
    path = spec.init.checkpoint
    if not path or (_SEALED.fullmatch(Path(path).name) and (Path(path) / "manifest.json").is_file()):
        return ()
    remedy = "no sealed checkpoint is there: name one, or a workdir that has one"
    if (Path(path) / "config.json").is_file():
        remedy = f"is a model in another format: make a checkpoint of it with 'understudy import {path} OUT'"
    return (Problem(field="init.checkpoint", value=path, remedy=remedy),)


def _data_problems(spec: JobSpec) -> tuple[Problem, ...]:
    named = [("data.path", spec.data.path), ("validation.path", spec.validation.path)]
    named += [("trainable.affinity.sample", spec.trainable.affinity.sample)]
    named += [(f"data.sources.{number}.path", each.path) for number, each in enumerate(spec.data.sources)]
    found = []
    for name, path in named:
        if not path.strip() or path == STANDARD_LIBRARY or "://" in path:
            continue
        facts = token_file_facts(path)
        if facts is None:
            remedy = _why_no_text(path, spec.model.sequence_length + 1)
            if remedy:
                found.append(Problem(field=name, value=path, remedy=remedy))
        elif facts.vocabulary > spec.model.vocabulary:
            remedy = (
                f"{name} is {path!r}, whose tokenizer {facts.tokenizer} has {facts.vocabulary} tokens: "
                f"set it to {facts.vocabulary} or more, or leave it out"
            )
            found.append(Problem(field="model.vocabulary", value=spec.model.vocabulary, remedy=remedy))
    return tuple(found)


def _why_no_text(path: str, needed_bytes: int) -> str | None:
    """What is wrong with the files there, as far as this machine can tell without reading them."""
    found_bytes = files = 0
    try:
        for file in _files(path):
            if not os.access(file, os.R_OK):
                return f"no permission to read {file}: make it readable, or name another text"
            files += 1
            found_bytes += file.stat().st_size
            if files >= LOOKED_AT_FILES and found_bytes >= needed_bytes:
                break
    except OSError as error:
        which = error.filename or path
        return f"{which} cannot be read ({error.strerror or error}): make it readable, or name another text"
    if not files:
        return _NOTHING_THERE
    if found_bytes < needed_bytes:
        return (
            f"{found_bytes} bytes are there, and one sample needs {needed_bytes}: name a longer text, or lower "
            "model.sequence_length"
        )
    return None


def _files(path: str) -> Iterator[Path]:
    """The files that a trainer would read. Raises OSError for a folder that cannot be looked into."""
    named = Path(path)
    if _seen(named) and named.is_dir():
        for folder, _, names in os.walk(named, onerror=_raised):
            yield from (file for file in map(Path(folder).joinpath, names) if file.is_file())
        return
    if _seen(named):
        yield named
        return
    above = next(folder for folder in (named, *named.parents) if _seen(folder))
    if above.is_dir() and not os.access(above, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))
    yield from (match for match in map(Path, glob.iglob(path, recursive=True)) if match.is_file())


def _raised(error: OSError) -> None:
    raise error


def _matches(path: Path) -> bool:
    return _seen(path) or next(glob.iglob(str(path), recursive=True), None) is not None


def _seen(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
