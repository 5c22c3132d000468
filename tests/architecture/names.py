"""Which dotted names a module refers to, through whatever alias it imported them by.

`from time import time as now; now()` is a reference to `time.time`. A value passed on under another name is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator


def references(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of every import and of every use of an imported or built-in name."""
    bound = _bindings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute | ast.Name) and (name := _dotted(node)):
            head, _, rest = name.partition(".")
            if head in bound:
                yield node.lineno, f"{bound[head]}.{rest}" if rest else bound[head]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                if node.id in {"open", "print"}:
                    yield node.lineno, node.id


def imported_modules(tree: ast.Module) -> set[str]:
    """Every dotted name that an import statement could mean as a module (`from a import b` may mean `a` or `a.b`)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _bindings(tree: ast.Module) -> dict[str, str]:
    """Local name -> full dotted name, for everything imported anywhere in the module."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                bound[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else None
    return None
