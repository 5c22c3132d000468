"""The README holds the tree, one line for each file: the first sentence of its docstring. Drift fails.

`pytest tests/architecture --rewrite` writes it anew.
"""

from __future__ import annotations

import ast

import pytest

from tests.architecture.sources import ROOT, modules

BEGIN, END = "<!-- tree -->", "<!-- end of tree -->"
SHOWN = ("orchestrator", "worker", "simulation", "benchmarks")
WIDTH = 118
README = ROOT / "README.md"


def tree() -> str:
    """Folders and files of the programs, with what each file is."""
    lines: list[str] = []
    folder = ""
    for source in sorted(modules(), key=lambda each: (each.path.rpartition("/")[0], each.path)):
        parent, _, name = source.path.rpartition("/")
        if parent.split("/")[0] not in SHOWN:
            continue
        if parent != folder:
            folder = parent
            lines.append(f"{parent + '/':<30}{_first_sentence(parent)}"[:WIDTH].rstrip())
        if name != "__init__.py":
            lines.append(f"  {name:<28}{_first_sentence(source.path)}"[:WIDTH].rstrip())
    return "\n".join(lines)


def _first_sentence(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        file = file / "__init__.py"
        if not file.exists():
            return ""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    return paragraph.split(". ", 1)[0].rstrip(".:")


def test_the_readme_shows_every_file(rewrite: bool) -> None:
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"README.md has no {BEGIN} ... {END}"
    fresh = f"{before}{BEGIN}\n\n```\n{tree()}\n```\n\n{END}{after}"
    if rewrite:
        README.write_text(fresh)
    elif fresh != text:
        pytest.fail(
            "the tree in README.md is not that of the repository: pytest tests/architecture --rewrite"
        )
