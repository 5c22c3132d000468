"""Every module keeps every house rule, and every rule sees the offence it is there for."""

from __future__ import annotations

import pytest

from tests.architecture import rules
from tests.architecture.rules import RULES, Rule
from tests.architecture.sources import ROOT, modules, parse, text_files

DOC = '"""Planted."""\n'
LONG_FUNCTION = DOC + "def story() -> None:\n" + "    print()\n" * 70
UNFINISHED = DOC + "# TO" + "DO later\n"

# rule, where the module would lie, what it would say
PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (rules.long_functions, "tests/unit/test_x.py", LONG_FUNCTION),
    (rules.long_functions, "worker/model/x.py", LONG_FUNCTION.replace("def", "async def")),
    (rules.long_modules, "benchmarks/x.py", DOC + "x = 1\n" * 500),
    (rules.undocumented_modules, "worker/model/x.py", "x = 1\n"),
    (rules.undocumented_modules, "worker/model/x.py", '""" """\n'),
    (rules.banned_file_names, "worker/model/utils.py", DOC),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "import time\nat = time.time()\n"),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "from time import monotonic as now\n"),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "import datetime as d\nat = d.datetime.now()\n"),
    (
        rules.impure_core,
        "orchestrator/core/x.py",
        DOC + "from datetime import datetime\nnow = datetime.now\n",
    ),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "def f() -> str:\n    import uuid\n    return ''\n"),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "text = open('x').read()\n"),
    (rules.impure_core, "worker/agent/machine.py", DOC + "import random\n"),
    (rules.impatient_tests, "tests/unit/test_x.py", DOC + "import time\ntime.sleep(1)\n"),
    (rules.impatient_tests, "tests/unit/test_x.py", DOC + "from asyncio import sleep as rest\n"),
    (rules.impatient_tests, "tests/unit/test_x.py", DOC + "from unittest import mock\n"),
    (rules.pickling_production, "worker/training/x.py", DOC + "import torch\ntorch.save({}, 'x')\n"),
    (rules.pickling_production, "worker/training/x.py", DOC + "import torch as t\nread = t.load\n"),
    (rules.pickling_production, "orchestrator/store/x.py", DOC + "from pickle import loads\n"),
    (
        rules.pickling_production,
        "worker/parallel/x.py",
        DOC + "import torch.distributed as dist\ndist.all_gather_object([], 1)\n",
    ),
    (rules.swallowed_errors, "worker/x.py", DOC + "try:\n    x()\nexcept:\n    raise\n"),
    (rules.swallowed_errors, "worker/x.py", DOC + "try:\n    x()\nexcept (OSError, Exception):\n    pass\n"),
    (rules.packages_with_code, "worker/model/__init__.py", DOC + "from worker.model.x import y\n"),
    (rules.loose_dataclasses, "orchestrator/core/events.py", DOC + "@dataclass\nclass A:\n    x: int\n"),
    (
        rules.loose_dataclasses,
        "worker/agent/messages.py",
        DOC + "@dataclasses.dataclass(frozen=True, slots=False, kw_only=True)\nclass A:\n    x: int\n",
    ),
    (rules.unfinished_modules, "worker/x.py", UNFINISHED),
)

# What a rule must leave alone: the same words where they are right.
INNOCENT: tuple[tuple[Rule, str, str], ...] = (
    (rules.long_functions, "worker/x.py", DOC + "def story() -> None:\n" + "    print()\n" * 69),
    (rules.long_modules, "worker/x.py", DOC + "x = 1\n" * 499),
    (rules.impure_core, "orchestrator/store/x.py", DOC + "import time\nat = time.time()\n"),
    (rules.impure_core, "orchestrator/core/x.py", DOC + "time = 1\nat = time\nprinted = event.open\n"),
    (rules.impatient_tests, "benchmarks/x.py", DOC + "import time\ntime.sleep(1)\n"),
    (rules.impatient_tests, "tests/unit/test_x.py", DOC + "import time\nat = time.monotonic()\n"),
    (
        rules.pickling_production,
        "worker/x.py",
        DOC + "from safetensors.torch import save, load\nload(save({}))\n",
    ),
    (rules.swallowed_errors, "worker/x.py", DOC + "try:\n    x()\nexcept KeyError:\n    pass\n"),
    (rules.packages_with_code, "worker/model/__init__.py", DOC + "from __future__ import annotations\n"),
    (rules.unfinished_modules, "worker/x.py", DOC + "todos = 1\n"),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    offences = [offence for source in modules() for offence in rule(source)]
    assert not offences, "\n".join(offences)


def test_no_text_file_promises_unfinished_work() -> None:
    offences = [
        offence
        for path in text_files()
        if path.suffix != ".py" and path.name != "LICENSE"
        for offence in rules.unfinished_marks(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        )
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("rule, path, text", PLANTED)
def test_the_rule_sees_a_planted_offence(rule: Rule, path: str, text: str) -> None:
    assert rule(parse(path, text))


@pytest.mark.parametrize("rule, path, text", INNOCENT)
def test_the_rule_leaves_the_innocent_alone(rule: Rule, path: str, text: str) -> None:
    assert rule(parse(path, text)) == []


def test_every_rule_has_a_planted_offence() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_the_rules_see_the_whole_house() -> None:
    seen = {source.path.split("/")[0] for source in modules()}
    assert {"orchestrator", "worker", "protos", "migrations", "tests"} <= seen
    assert not [source.path for source in modules() if "_pb2" in source.path]
