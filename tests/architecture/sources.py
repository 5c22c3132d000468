"""The repository as the architecture tests see it: every Python module, parsed once.

Reads files and nothing else; what is allowed is in `rules.py`.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = ("orchestrator", "worker", "simulation", "migrations", "protos")
_SKIPPED_FOLDERS = {"__pycache__", "build", "dist", "runs"}
_TEXT_SUFFIXES = {
    ".py",
    ".proto",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".txt",
    ".ini",
    ".mako",
    ".sh",
    ".html",
    ".js",
}
_TEXT_NAMES = {"Makefile", "Dockerfile", ".importlinter", ".gitignore", "run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One Python module. `path` is relative to the repository, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The dotted name; a package goes by its own name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def in_production(self) -> bool:
        return self.path.split("/")[0] in PRODUCTION


def parse(path: str, text: str) -> Source:
    """A source from its text, which need not exist on disk (rules are tried on planted ones)."""
    return Source(path=path, text=text, tree=ast.parse(text))


def text_files() -> Iterator[Path]:
    """Every text file of ours, generated code and what tools have made left out."""
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = sorted(name for name in subfolders if name == ".ci" or not _is_made(name))
        for name in sorted(names):
            path = Path(folder, name)
            if "_pb2" not in name and (path.suffix in _TEXT_SUFFIXES or name in _TEXT_NAMES):
                yield path


@cache
def modules() -> tuple[Source, ...]:
    """Every Python module of ours, by path."""
    return tuple(
        parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in text_files()
        if path.suffix == ".py"
    )


def _is_made(folder: str) -> bool:
    return folder.startswith(".") or folder in _SKIPPED_FOLDERS or folder.endswith(".egg-info")
