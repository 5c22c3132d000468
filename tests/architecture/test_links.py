"""What the pages point at is there: files, sections of files, and modules and tests that are named in passing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/**/*.md")))
)
NAMED_FROM = ("", "tests", "orchestrator", "orchestrator/core", "worker", "simulation")
"""Folders from which a page may name a file."""
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAMED = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|yml|txt|proto|svg))`")
_ELSEWHERE = re.compile(r"[a-z]+:")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@cache
def text_of(path: Path) -> str:
    return _CODE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    """Those that lead nowhere; what is on other hosts is not looked at."""
    broken = []
    for link in _LINK.findall(text_of(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if _ELSEWHERE.match(link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def missing_files(page: Path) -> list[str]:
    """Files that a page names and nobody has."""
    folders = [ROOT / each for each in NAMED_FROM] + [page.parent]
    return [
        name
        for name in _NAMED.findall(text_of(page))
        if not any((folder / name).exists() for folder in folders)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_is_there(page: str) -> None:
    assert broken_links(ROOT / page) == []
    assert missing_files(ROOT / page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[a](page.md#a-heading-here) [b](none.md) [c](#none) `worker/none.py` `core/ids.py`\n"
    )
    assert broken_links(page) == ["none.md", "#none"]
    assert missing_files(page) == ["worker/none.py"]
