"""The README holds the tree, one line for each file: the first sentence of its docstring. Drift fails.

Each top-level folder is folded up, so that the page stays a page. `pytest tests/architecture --rewrite` writes it anew.
"""

from __future__ import annotations

import ast

import pytest

from tests.architecture.sources import ROOT, modules

BEGIN, END = "<!-- tree -->", "<!-- end of tree -->"
SHOWN = ("orchestrator", "worker", "simulation", "chaos", "benchmarks", "migrations")
WIDTH = 118
NAME_WIDTH = 28
README = ROOT / "README.md"


def tree() -> str:
    """Folders and files of the programs, with what each file is."""
    return "\n\n".join(_folded(folder) for folder in SHOWN)


def _folded(top: str) -> str:
    lines: list[str] = []
    below = [each.path for each in modules() if each.path.split("/")[0] == top]
    parents = sorted({path.rpartition("/")[0] for path in below})
    for parent in parents:
        if parent != top:
            lines.append(_line(f"{parent}/", parent))
        lines += [
            _line(f"  {path.rpartition('/')[2]}", path)
            for path in sorted(below)
            if path.rpartition("/")[0] == parent and not path.endswith("/__init__.py")
        ]
    summary = f"<summary><b>{top}/</b> {_first_sentence(top)}</summary>"
    return "\n".join(("<details>", summary, "", "```", *lines, "```", "", "</details>"))


def _line(shown: str, path: str) -> str:
    margin = f"{shown:<{NAME_WIDTH}}  "
    return (margin + shortened(_first_sentence(path), WIDTH - len(margin))).rstrip()


def shortened(sentence: str, width: int) -> str:
    """What of a sentence fits into the width: whole, or up to the end of a phrase, or at least of a word."""
    if len(sentence) <= width:
        return sentence
    fitting = sentence[: width + 1]
    phrase = max(fitting.rfind(sign) for sign in (", ", ": ", "; ", " ("))
    if phrase > width // 3:
        return sentence[:phrase]
    return fitting[: width - 1].rpartition(" ")[0] + " …"


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
    fresh = f"{before}{BEGIN}\n\n{tree()}\n\n{END}{after}"
    if rewrite:
        README.write_text(fresh)
    elif fresh != text:
        pytest.fail(
            "the tree in README.md is not that of the repository: pytest tests/architecture --rewrite"
        )


@pytest.mark.parametrize(
    "sentence, short",
    [
        ("Short enough", "Short enough"),
        ("A phrase that fits, and one that does not", "A phrase that fits"),
        ("Here: no phrase ends where it would be of use", "Here: no phrase ends …"),
    ],
)
def test_a_line_is_never_cut_within_a_word(sentence: str, short: str) -> None:
    assert shortened(sentence, 24) == short
