"""Reads a domain's source code and finds the units of other domains that the domain calls."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import services
from aima_core.domain import Domain
from aima_core.units import Unit


def calls_of(name: str, domains: Mapping[str, Domain[Any]]) -> frozenset[str]:
    """Return the units of other domains that a domain's source mentions: `engine.StopEngine`, `"service.list"`."""
    names = {unit.spec.name for domain in domains.values() for unit in domain.units}
    called = {unit for tree in _trees(name) for unit in _named(tree, names)}
    return frozenset(unit for unit in called if not unit.startswith(f"{name}."))


def _trees(name: str) -> Iterator[ast.AST]:
    for root in services.__path__:
        for file in sorted(Path(root, name).rglob("*.py")):
            yield ast.parse(file.read_text())


def _named(tree: ast.AST, names: Iterable[str]) -> Iterator[str]:
    """Yield the names of the units that a module mentions by class, or by a string in `names`."""
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("services."):
            module = importlib.import_module(node.module)
            imported |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text in names:
                yield text
            case ast.Attribute(value=ast.Name(id=module_name), attr=name):
                yield from _unit(getattr(imported.get(module_name), name, None))
            case ast.Name(id=class_name):
                yield from _unit(imported.get(class_name))
            case _:
                pass


def _unit(value: object) -> Iterator[str]:
    if isinstance(value, type) and issubclass(value, Unit) and "spec" in vars(value):
        yield value.spec.name
