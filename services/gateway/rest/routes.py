"""The rule that gives every unit its REST routes, from its name and its input schema. Pure.

For a domain `service` whose units are about one thing, identified by the field `service_id`:

    GET    /services            service.list            GET    /services/{id}           service.get
    POST   /services            service.create          DELETE /services/{id}           service.delete
    GET    /services/{action}   a query                 GET    /services/{id}/{action}  a query about one
    POST   /services/{action}   any unit                POST   /services/{id}/{action}  any unit about one

A fixed path wins over an id. The singular, `/service/...`, means the same. A domain without such a field has only the
routes in the left column, in the singular.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aima_core.bus.directory import UnitInfo

Units = Mapping[str, UnitInfo]


@dataclass(frozen=True)
class Route:
    """A route to a unit. `{id}` in `path` is the value of the unit's field `ident`; "" if the path has no id."""

    method: str
    path: str
    unit: UnitInfo
    ident: str = ""


@dataclass(frozen=True)
class RouteMatch:
    """The unit that a request means, with the input in its path; without a unit, the methods that the path allows."""

    unit: UnitInfo | None = None
    path_input: Mapping[str, Any] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()


def ident_of(domain: str, units: Units) -> str:
    """Return the field that identifies the thing that a domain's units are about; empty if there is none."""
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
    """Return the first segment of a domain's paths."""
    return f"{domain}s" if ident_of(domain, units) else domain


def routes(unit: UnitInfo, units: Units) -> Iterator[Route]:
    """Yield all routes to a unit; the first is the one to document."""
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
    """The routes of all units, for looking up requests; made once for each change of the units on the bus."""

    def __init__(self, units: Units) -> None:
        self._domains = {unit.domain for unit in units.values()}
        self._routes: dict[str, list[Route]] = {}
        for unit in units.values():
            self._routes.setdefault(unit.domain, []).extend(routes(unit, units))

    def resolve(self, method: str, segments: Sequence[str]) -> RouteMatch:
        """Return the unit that a request to `/api/v2/<segments>` means, or the methods that this path allows."""
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
    """Return the id in the path, as input; None if the path does not match the route."""
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
    """Return the schemas of a unit's fields; empty if the unit, which may be any program's, has no valid ones."""
    properties = unit.input.get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(unit: UnitInfo) -> list[str]:
    required = unit.input.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
