"""No production module without a user: it is imported by production, or it is an entry point.

A module that only its test imports is dead code with a test.
"""

from __future__ import annotations

import tomllib

from tests.architecture.names import imported_modules
from tests.architecture.sources import ROOT, Source, modules, parse


def dead_modules(sources: tuple[Source, ...], entry_points: frozenset[str]) -> list[str]:
    """The modules of production that nothing in production reaches, by name. Packages are their docstrings."""
    production = [source for source in sources if source.in_production]
    used = set(entry_points)
    for source in production:
        used |= imported_modules(source.tree) - {source.module}
    return sorted(
        source.module
        for source in production
        if not source.path.endswith(("/__init__.py", "/__main__.py"))
        and not source.path.startswith("migrations/")  # Alembic finds these by their place
        and source.module not in used
    )


def entry_points() -> frozenset[str]:
    """The modules that the outside world starts."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return frozenset(target.partition(":")[0] for target in scripts.values())


def test_every_production_module_has_a_user() -> None:
    assert dead_modules(modules(), entry_points()) == []


def test_a_module_that_only_a_test_imports_is_dead() -> None:
    planted = (
        parse(
            "orchestrator/__main__.py",
            "from orchestrator.core import living\nimport orchestrator.core.plain\n",
        ),
        parse("orchestrator/core/living.py", "from orchestrator.core.deep import x\n"),
        parse("orchestrator/core/deep.py", "import orchestrator.core.deep\n"),
        parse("orchestrator/core/plain.py", ""),
        parse("orchestrator/core/dead.py", "import orchestrator.core.dead\n"),
        parse("worker/main.py", ""),
        parse("tests/test_dead.py", "import orchestrator.core.dead\n"),
    )
    assert dead_modules(planted, frozenset({"worker.main"})) == ["orchestrator.core.dead"]
