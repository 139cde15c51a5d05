"""Whatever stands in a folder `rules/` is pure: no await, clock, chance, log, or anything outside."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# read as plain data: one counts CPUs, only where an engine is started; one is read when it is imported
DATA = {"engine/manifests/manifest_schema.py", "service/rules/resource_table.py"}
ROLES = ("decider.py", "state.py", "views.py")  # of the gateway, whose own files stand at its root

IMPURE_MODULES = {
    *("aiosqlite", "asyncio", "concurrent", "ctypes", "getpass", "glob", "http", "httpx2", "importlib", "io"),
    *(
        "locale",
        "logging",
        "mmap",
        "multiprocessing",
        "nats",
        "os",
        "platform",
        "psutil",
        "pynvml",
        "random",
        "requests",
    ),
    *(
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
    ),
    *("threading", "time", "urllib", "uuid", "warnings"),
}
IMPURE_CORE = {
    *("bus.client", "bus.connection", "bus.nats_server", "bus.peers"),
    *("process.domain_process", "process.effects", "process.follower", "process.relay", "process.resource_bucket"),
    *("process.idempotency", "process.watchers"),
    *("process.writer", "store.log", "store.sqlite", "structured_logs"),
}
PURE_OF_CORE = {("store.log", "Recorded"), ("store.log", "Statement"), ("store.log", "Meta")}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "compile", "breakpoint", "__import__", "id", "hash"}
IMPURE_METHODS = {
    *("now", "utcnow", "today", "getenv", "urandom"),  # clocks, the environment, chance
    *("read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir", "stat", "lstat"),
    *("iterdir", "rglob", "mkdir", "rmdir", "unlink", "touch", "resolve", "expanduser", "cwd", "home"),
}


def pure_files() -> list[Path]:
    """Return the files of `rules/` with whatever of their own domain they import, and every module that claims it."""
    files = list(ROOT.glob("services/*/**/*.py"))
    pure, reached = {file for file in files if _claims(file)}, set[Path]()
    left = [file for file in files if "rules" in file.parts or (file.name in ROLES and file.parent.name == "gateway")]
    while left:
        file = left.pop()
        if file not in reached and str(file.relative_to(ROOT / "services")) not in DATA:
            reached.add(file)
            left += _own_imports(file)
    return sorted(pure | reached)


def _claims(file: Path) -> bool:
    return bool(re.search(r"\bPure\b", ast.get_docstring(ast.parse(file.read_text())) or ""))


def _own_imports(file: Path) -> list[Path]:
    domain = f"services.{file.relative_to(ROOT / 'services').parts[0]}"
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(domain):
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names if name.name.startswith(domain)}
    files = [ROOT / f"{module.replace('.', '/')}.py" for module in modules]
    return [found for found in files if found.is_file()]


def impurities(source: str) -> list[str]:
    """Return what is not pure in a module, each with its line."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        what = _impurity(node)
        if what:
            found.append((node.lineno, what))  # type: ignore[attr-defined]
    return [f"line {line}: {what}" for line, what in sorted(found)]


def _impurity(node: ast.AST) -> str:
    match node:
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            return "awaits"
        case ast.ListComp(generators=parts) | ast.SetComp(generators=parts) | ast.DictComp(generators=parts):
            return "awaits" if any(part.is_async for part in parts) else ""
        case ast.GeneratorExp(generators=parts):
            return "awaits" if any(part.is_async for part in parts) else ""
        case ast.Global() | ast.Nonlocal():
            return f"changes {', '.join(node.names)} outside of it"
        case ast.Import(names=names):
            return ", ".join(f"imports {name.name}" for name in names if name.name.partition(".")[0] in IMPURE_MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            return _imported(module, [name.name for name in names])
        case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
            return f"calls {name}"
        case ast.Call(func=ast.Attribute(attr=name)) if name in IMPURE_METHODS:
            return f"calls .{name}"
    return ""


def _imported(module: str, names: list[str]) -> str:
    top, _, rest = module.partition(".")
    if top in IMPURE_MODULES:
        return f"imports {module}"
    if top == "aima_core" and rest in IMPURE_CORE and any((rest, name) not in PURE_OF_CORE for name in names):
        return f"imports {module}"
    if top == "aima_core" and (impure := {name for name in names if f"{rest}.{name}".lstrip(".") in IMPURE_CORE}):
        return f"imports {module}.{', '.join(sorted(impure))}"
    if top == "services" and "outside" in (*module.split("."), *names):
        return f"imports {module}"
    return ""


def test_every_domain_has_rules_to_check() -> None:
    domains = {file.parent.name for file in ROOT.glob("services/*/domain.py")}
    for role in ("decider.py", "views.py"):
        assert {file.relative_to(ROOT / "services").parts[0] for file in pure_files() if file.name == role} >= domains


@pytest.mark.parametrize("file", pure_files(), ids=lambda file: str(file.relative_to(ROOT / "services")))
def test_deciding_and_projecting_is_pure(file: Path) -> None:
    assert impurities(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time", "line 1: imports time"),
        ("import json, os.path", "line 1: imports os.path"),
        ("from datetime import datetime\nx = datetime.now()", "line 2: calls .now"),
        ("import datetime\nx = datetime.datetime.utcnow()", "line 2: calls .utcnow"),
        ("from random import choice", "line 1: imports random"),
        ("import asyncio", "line 1: imports asyncio"),
        ("import logging", "line 1: imports logging"),
        ("from aima_core.structured_logs import logger", "line 1: imports aima_core.structured_logs"),
        ("from aima_core.store.log import Log, Recorded", "line 1: imports aima_core.store.log"),
        ("from aima_core.bus import client", "line 1: imports aima_core.bus.client"),
        ("from services.engine import outside", "line 1: imports services.engine"),
        (
            "from services.engine.outside.adapter import EngineOutside",
            "line 1: imports services.engine.outside.adapter",
        ),
        ("from pathlib import Path\ndef f(p):\n    return Path(p).read_text()", "line 3: calls .read_text"),
        ("def f(p):\n    return p.exists()", "line 2: calls .exists"),
        ("open('x')", "line 1: calls open"),
        ("print('x')", "line 1: calls print"),
        ("async def decide():\n    pass", "line 1: awaits"),
        ("def f(g):\n    return [x async for x in g]", "line 2: awaits"),
        ("def f():\n    import os", "line 2: imports os"),
        ("n = 0\ndef f():\n    global n\n    n += 1", "line 3: changes n outside of it"),
    ],
)
def test_what_is_not_pure_is_found(source: str, expected: str) -> None:
    assert impurities(source) == [expected]


def test_what_is_pure_passes() -> None:
    source = """
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from aima_core.call import Call, timestamp
from aima_core.errors import Conflict
from aima_core.store.log import Recorded, Statement
from services.engine import units as engine

def decide(world, command, call):
    return [datetime.fromtimestamp(call.at, UTC), PurePath(command.path).name, sorted(world)]
"""
    assert impurities(source) == []
