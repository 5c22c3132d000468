"""The house rules: each a function from one module to the sentences that say what is wrong with it.

A sentence names the place and what to do instead. Rules about the whole tree are in `test_dead_modules.py` and
`test_import_contracts.py`; what ruff can say (`pyproject.toml`) is not said again here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from tests.architecture.names import references
from tests.architecture.sources import Source

Rule = Callable[[Source], list[str]]

FUNCTION_LINES = 70
MODULE_LINES = 500
BANNED_FILES = {"utils.py", "util.py", "common.py", "helpers.py", "helper.py", "base.py", "misc.py"}
# What crosses a boundary is frozen, slotted and keyword-only in these modules.
BOUNDARY_MODULES = {
    "orchestrator/core/events.py",
    "orchestrator/core/actions.py",
    "orchestrator/core/spec.py",
} | {
    "orchestrator/core/outcome.py",
    "worker/agent/messages.py",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

_AT = "take the time from the event (`event.at`)"
_ID = "derive the id from what it names, so that a replay gives the same one"
_DRAW = "the core draws nothing; let the event carry the value"
BANNED_IN_CORE = {
    "time": _AT,
    "datetime.datetime.now": _AT,
    "datetime.datetime.utcnow": _AT,
    "datetime.datetime.today": _AT,
    "datetime.date.today": _AT,
    "uuid": _ID,
    "secrets": _DRAW,
    "random": _DRAW,
    "os": "the core sees no operating system; let the event or the policy carry the value",
    "open": "the core reads no file; let the edge read it and send an event",
    "print": "the core does not log; return a reason in the Outcome",
    "logging": "the core does not log; return a reason in the Outcome",
}
_WAIT = "wait for a condition with a limit: tests.waiting.wait_until"
BANNED_IN_TESTS = {"time.sleep": _WAIT, "asyncio.sleep": _WAIT, "unittest.mock": "write a fake of the port"}
_NO_PICKLE = "nothing is pickled: JSON or protobuf on the wire, safetensors with a hashed manifest on disk"
BANNED_IN_PRODUCTION = dict.fromkeys(
    (
        "pickle",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "torch.save",
        "torch.load",
        "torch.distributed.all_gather_object",
        "torch.distributed.broadcast_object_list",
        "torch.distributed.gather_object",
        "torch.distributed.scatter_object_list",
        "torch.distributed.send_object_list",
        "torch.distributed.recv_object_list",
    ),
    _NO_PICKLE,
)
# Written in two halves, so that this file does not break its own rule.
MARKER_WORDS = re.compile(
    r"\b("
    + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "place" + "holder", "not " + "implemented"))
    + r")\b",
    re.IGNORECASE,
)


def long_functions(source: Source) -> list[str]:
    """Functions of more than 70 lines, docstring included."""
    return [
        f"{source.path}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}: split it"
        for node in ast.walk(source.tree)
        if isinstance(node, _FUNCTIONS) and (length := _lines(node)) > FUNCTION_LINES
    ]


def long_modules(source: Source) -> list[str]:
    """Modules of more than 500 lines."""
    length = len(source.text.splitlines())
    if length <= MODULE_LINES:
        return []
    return [f"{source.path}: {length} lines, more than {MODULE_LINES}: give one of its topics a module"]


def undocumented_modules(source: Source) -> list[str]:
    """Modules that do not open by saying what lives in them."""
    if (ast.get_docstring(source.tree) or "").strip():
        return []
    return [f"{source.path}: no module docstring: what lives here, what must not, where next"]


def banned_file_names(source: Source) -> list[str]:
    """Modules named after nothing in particular."""
    name = source.path.rpartition("/")[2]
    if name not in BANNED_FILES:
        return []
    return [f"{source.path}: name the module after its topic; what has none belongs to its only user"]


def impure_core(source: Source) -> list[str]:
    """Clocks, randomness, files and logs in the pure parts."""
    if not (source.path.startswith("orchestrator/core/") or source.path == "worker/agent/machine.py"):
        return []
    return _banned(source, BANNED_IN_CORE)


def impatient_tests(source: Source) -> list[str]:
    """Fixed pauses and mocks in tests."""
    return _banned(source, BANNED_IN_TESTS) if source.path.startswith("tests/") else []


def pickling_production(source: Source) -> list[str]:
    """Anything that could run code from bytes."""
    return _banned(source, BANNED_IN_PRODUCTION) if source.in_production else []


def swallowed_errors(source: Source) -> list[str]:
    """Bare `except`, and broad ones whose body does nothing."""
    found = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        place = f"{source.path}:{node.lineno}"
        if node.type is None:
            found.append(f"{place}: bare except: name the errors that are expected here")
        elif _is_broad(node.type) and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body):
            found.append(f"{place}: swallows every error: name the expected ones, or report it and go on")
    return found


def packages_with_code(source: Source) -> list[str]:
    """Packages whose `__init__` does something: importing one module must not load its neighbours.

    `migrations` has no modules that anybody imports; it lists its revisions.
    """
    package, _, name = source.path.rpartition("/")
    if not source.in_production or package == "migrations" or name != "__init__.py":
        return []
    code = [line for line in source.tree.body if not _is_inert(line)]
    return (
        [f"{source.path}:{code[0].lineno}: a package is its docstring; move the code to a module"]
        if code
        else []
    )


def loose_dataclasses(source: Source) -> list[str]:
    """Values that cross a boundary and could be changed on the way or built by position."""
    if source.path not in BOUNDARY_MODULES:
        return []
    wanted = {"frozen", "slots", "kw_only"}
    found = []
    for node in (node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)):
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            if ast.unparse(call.func if call else decorator).rpartition(".")[2] != "dataclass":
                continue
            given = (
                {word.arg for word in call.keywords if ast.unparse(word.value) == "True"} if call else set()
            )
            if missing := wanted - given:
                found.append(f"{source.path}:{node.lineno}: {node.name} lacks {', '.join(sorted(missing))}")
    return found


def unfinished_marks(path: str, text: str) -> list[str]:
    """Words that promise work instead of being it. For any text file, not only Python."""
    return [
        f"{path}:{number}: {match[0]!r}: finish it, or open an issue"
        for number, line in enumerate(text.splitlines(), 1)
        if (match := MARKER_WORDS.search(line))
    ]


def unfinished_modules(source: Source) -> list[str]:
    """`unfinished_marks` for a module."""
    return unfinished_marks(source.path, source.text)


RULES: tuple[Rule, ...] = (
    long_functions,
    long_modules,
    undocumented_modules,
    banned_file_names,
    impure_core,
    impatient_tests,
    pickling_production,
    swallowed_errors,
    packages_with_code,
    loose_dataclasses,
    unfinished_modules,
)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _is_inert(line: ast.stmt) -> bool:
    """A docstring, or `from __future__ import annotations`."""
    if isinstance(line, ast.ImportFrom):
        return line.module == "__future__"
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _is_broad(expression: ast.expr) -> bool:
    names = expression.elts if isinstance(expression, ast.Tuple) else [expression]
    return any(ast.unparse(name) in {"Exception", "BaseException"} for name in names)


def _banned(source: Source, table: dict[str, str]) -> list[str]:
    return [f"{source.path}:{line}: {name}: {table[key]}" for line, name, key in _matches(source, table)]


def _matches(source: Source, table: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """References to a name of the table or to anything inside it, one per line and name."""
    seen = set()
    for line, name in references(source.tree):
        for key in table:
            if (name == key or name.startswith(key + ".")) and (line, key) not in seen:
                seen.add((line, key))
                yield line, name, key
