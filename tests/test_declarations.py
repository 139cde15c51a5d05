"""What a domain declares is complete: each unit is in its union, each function takes the union, each view its version.

`mypy` then fails for a unit without a branch: the functions end in `assert_never`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from aima_core.domain import Domain
from aima_core.units import Command, Event, Query, View
from services.inference import units as inference
from services.inference.outside.engine_requests import REQUEST_KINDS
from services.model.units import GetCompatibility
from services.resource.units import Holder

ROOT = Path(__file__).parents[1]
NAMES = sorted(file.parent.name for file in ROOT.glob("services/*/domain.py"))
ONLY_A_RESOURCE = {GetCompatibility}  # queries without a subject on the bus
NO_STREAM_OF_ITS_OWN = {Holder}  # is also a detail of a refusal, which has no versions


def domain_of(name: str) -> Domain[Any]:
    module = importlib.import_module(f"services.{name}.domain")
    (domain,) = (value for value in vars(module).values() if isinstance(value, Domain))
    return domain


def declared(module: ModuleType, *bases: type[Any]) -> set[type[Any]]:
    """Return the classes of these kinds that a module declares."""
    names = {node.name for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)}
    return {cls for name in names if issubclass(cls := getattr(module, name), bases)}


def views_in(annotation: Any) -> Iterator[type[View]]:
    """Yield the views in a type, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, View):
        yield annotation
        for field in annotation.model_fields.values():
            yield from views_in(field.annotation)
    for argument in get_args(annotation):
        yield from views_in(argument)


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_and_event_of_a_domain_is_in_its_union(name: str) -> None:
    units = importlib.import_module(f"services.{name}.units")
    internal = importlib.import_module(f"services.{name}.internal")
    domain = domain_of(name)
    assert declared(units, Command) == set(get_args(units.Commands)) == set(domain.commands)
    assert declared(units, Query) - ONLY_A_RESOURCE == set(get_args(units.Queries)) == set(domain.queries)
    assert declared(units, Event) == set(get_args(units.Events)) == set(domain.events)
    assert declared(internal, Command) == set(domain.internal)
    assert len({unit.spec.name for unit in (*domain.units, *domain.internal)}) == len(domain.units) + len(
        domain.internal
    )


def test_every_request_to_an_engine_has_its_kind() -> None:
    assert REQUEST_KINDS.keys() == set(inference.REQUESTS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("function", "parameter"), [("decide", 1), ("reply", 1), ("prepare", 1), ("answer", 1)])
def test_a_function_takes_the_union_of_its_units_and_ends_in_assert_never(
    name: str, function: str, parameter: int
) -> None:
    domain = domain_of(name)
    part = getattr(domain, function, None) or getattr(domain.outside, function)
    annotation = list(inspect.signature(part).parameters.values())[parameter].annotation
    assert annotation not in ("Any", "Command[Any]", "Query[Any]", "Unit[Any]"), f"mypy cannot check {function}"
    tree = ast.parse(inspect.getsource(inspect.getmodule(part) or part))
    (defined,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    )
    unnamed = any(
        isinstance(case.pattern, ast.MatchAs)
        and case.pattern.pattern is None
        and case.pattern.name is None
        and not case.guard
        and not _never(case)
        and function in ("reply", "answer")
        for node in ast.walk(defined)
        if isinstance(node, ast.Match)
        for case in node.cases
    )
    assert not unnamed, f"{function} has a case for units that it does not name"


def _never(case: ast.match_case) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "assert_never" for node in ast.walk(case))


@pytest.mark.parametrize("name", NAMES)
def test_a_view_of_a_stream_that_commands_change_shows_its_version(name: str) -> None:
    domain = domain_of(name)
    if not any(unit.spec.stream for unit in domain.commands):
        return  # the streams of inference change with each request, and no command expects a version of them
    ids = {"id", *(event.stream_field for event in domain.events)}
    views = {view for unit in domain.units for view in views_in(unit.output)} - NO_STREAM_OF_ITS_OWN
    assert {view for view in views if ids & view.model_fields.keys() and not view.stream_field} == set()


def test_the_views_of_a_stream_are_of_one_domain_only() -> None:
    used = {name: {view for unit in domain_of(name).units for view in views_in(unit.output)} for name in NAMES}
    foreign = {
        f"{name}: {view.__name__}"
        for name, views in used.items()
        for view in views
        if view.stream_field and view.__module__ != f"services.{name}.units"
    }
    assert foreign == set()
