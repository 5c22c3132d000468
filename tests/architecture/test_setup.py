"""The set-up is the same everywhere: every dependency pinned, nothing tied to a machine or to an index."""

from __future__ import annotations

import re
import tomllib

from tests.architecture.sources import ROOT, text_files

PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")
# No registry is named anywhere: whoever runs this has configured one. In halves, so that the rule does not see itself.
REGISTRY = re.compile(
    r"://[^/\s]*(pyp"
    + r"i|pythonho"
    + r"sted|download\.pyt"
    + r"orch)|--(extra-)?index-"
    + "url|--find-"
    + "links"
)


def pins() -> dict[str, str]:
    """Normalised name -> version, from the lock."""
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    ]
    assert not [line for line in lines if not PIN.fullmatch(line)]
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = [_normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in direct]
    assert [name for name in names if name not in pins()] == []


def test_what_torch_brings_for_a_gpu_is_not_pinned() -> None:
    assert [name for name in pins() if re.match(r"nvidia-|cuda-|triton", name)] == []


def test_no_file_names_a_registry() -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in [*text_files(), ROOT / "requirements.lock"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if REGISTRY.search(line)
    ]
    assert offences == []


def test_the_registry_rule_sees_an_index() -> None:
    assert REGISTRY.search("pip install --index-" + "url somewhere torch")
    assert REGISTRY.search("https://files.pythonho" + "sted.org/torch.whl")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
