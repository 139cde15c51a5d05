"""Derives the REST routes of each unit from its name and its input schema. Pure.

Most units of the domain `service` have the field `service_id`, which is the id in their routes:

    GET    /services            service.list            GET    /services/{id}           service.get
    POST   /services            service.create          DELETE /services/{id}           service.delete
    GET    /services/{action}   a query                 GET    /services/{id}/{action}  a query about one
    POST   /services/{action}   any unit                POST   /services/{id}/{action}  any unit about one

If a segment could be an action or an id, it counts as the action. The singular `/service/...` works like the plural. A
domain without an id field has only the routes in the left column, in the singular.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aima_core.bus.directory import UnitInfo

Units = Mapping[str, UnitInfo]


@dataclass(frozen=True)
class Route:
    """A route to a unit. `{id}` in `path` is the value of the unit's field `ident`. Without an id, `ident` is ""."""

    method: str
    path: str
    unit: UnitInfo
    ident: str = ""


@dataclass(frozen=True)
class RouteMatch:
    """The unit that a request calls, and the input in the request's path.

    Without a unit, `allowed` lists the methods that the path accepts. `allowed` is empty if no route has the path.
    """

    unit: UnitInfo | None = None
    path_input: Mapping[str, Any] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()


def ident_of(domain: str, units: Units) -> str:
    """Return the name of a domain's id field, such as `service_id`. Returns "" if the domain has no id field."""
    domain_units = [unit for unit in units.values() if unit.domain == domain]
    if any(f"{domain}_id" in fields_of(unit) for unit in domain_units):
        return f"{domain}_id"
    getter = units.get(f"{domain}.get")
    required = _required(getter) if getter else []
    if len(required) == 1:
        return required[0]
    ids = {name for unit in domain_units for name in _required(unit) if name.endswith("_id")}
    return ids.pop() if len(ids) == 1 else ""


def collection_of(domain: str, units: Units) -> str:
    """Return the first segment of a domain's paths, such as `services`."""
    return f"{domain}s" if ident_of(domain, units) else domain


def routes(unit: UnitInfo, units: Units) -> Iterator[Route]:
    """Yield all routes to a unit. The first one is the documented route."""
    ident = ident_of(unit.domain, units)
    base = f"/{collection_of(unit.domain, units)}"
    subject_field = ident if ident in fields_of(unit) else ""
    methods = ("GET", "POST") if unit.kind == "query" else ("POST",)
    match unit.action:
        case "list" if unit.kind == "query":
            yield Route("GET", base, unit)
        case "create":
            yield Route("POST", base, unit)
        case "get" if subject_field and unit.kind == "query":
            yield Route("GET", f"{base}/{{id}}", unit, subject_field)
        case "delete" if subject_field:
            yield Route("DELETE", f"{base}/{{id}}", unit, subject_field)
    if subject_field and unit.action not in ("get", "delete", "create", "list"):
        for method in methods:
            yield Route(method, f"{base}/{{id}}/{unit.action}", unit, subject_field)
    for method in methods:
        yield Route(method, f"{base}/{unit.action}", unit)


class Table:
    """Finds the unit that a request calls. A new table is built when the units on the bus have changed."""

    def __init__(self, units: Units) -> None:
        self._domains = {unit.domain for unit in units.values()}
        self._routes: dict[str, list[Route]] = {}
        for unit in units.values():
            self._routes.setdefault(unit.domain, []).extend(routes(unit, units))

    def resolve(self, method: str, segments: Sequence[str]) -> RouteMatch:
        """Return the unit that a request to `/api/v2/<segments>` calls, or the methods that the path allows."""
        if not 1 <= len(segments) <= 3 or not all(segments):
            return RouteMatch()
        matching = [
            (route, path_input)
            for route in self._routes.get(self._domain(segments[0]), ())
            if (path_input := _match(route, segments[1:])) is not None
        ]
        fixed = [(route, path_input) for route, path_input in matching if not path_input]
        by_method = {route.method: (route.unit, path_input) for route, path_input in reversed(fixed or matching)}
        if method not in by_method:
            return RouteMatch(allowed=frozenset(by_method))
        unit, path_input = by_method[method]
        return RouteMatch(unit, path_input)

    def _domain(self, first: str) -> str:
        return first if first in self._domains else first.removesuffix("s")


def _match(route: Route, segments: Sequence[str]) -> dict[str, Any] | None:
    """Return the input in the path, which is an id or empty. Returns None if the path does not match the route."""
    parts = route.path.split("/")[2:]
    if len(parts) != len(segments):
        return None
    path_input = {}
    for part, word in zip(parts, segments, strict=True):
        if part == "{id}":
            path_input[route.ident] = word
        elif part != word:
            return None
    return path_input


def fields_of(unit: UnitInfo) -> Mapping[str, Any]:
    """Return the schemas of a unit's fields. Empty if the schema is invalid: any program can offer units on the bus."""
    properties = unit.input.get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(unit: UnitInfo) -> list[str]:
    required = unit.input.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
