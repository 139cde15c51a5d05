"""The rule that gives every unit its REST routes, from its name and its input alone. Pure.

For a domain `service` whose units are about one thing, named by the field `service_id`:

    GET    /services            service.list            GET    /services/{id}           service.get
    POST   /services            service.create          DELETE /services/{id}           service.delete
    GET    /services/{action}   a query                 GET    /services/{id}/{action}  a query about one
    POST   /services/{action}   any unit                POST   /services/{id}/{action}  any unit about one

A fixed path wins over an id. The singular, `/service/...`, means the same. A domain without such a field has the
routes on the left alone, in the singular.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aima_core.bus.directory import UnitInfo

Units = Mapping[str, UnitInfo]


@dataclass(frozen=True)
class Route:
    """A way to a unit. `path` has `{id}` where the id goes, which is the unit's `ident`."""

    method: str
    path: str
    unit: UnitInfo
    ident: str = ""


@dataclass(frozen=True)
class RouteMatch:
    """What a request means: a unit and what of its input stood in the path; or the methods that would mean one."""

    unit: UnitInfo | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()


def ident_of(domain: str, units: Units) -> str:
    """Return the field that names what a domain's units are about; empty when there is none."""
    own = [unit for unit in units.values() if unit.domain == domain]
    if any(f"{domain}_id" in fields_of(unit) for unit in own):
        return f"{domain}_id"
    getter = units.get(f"{domain}.get")
    required = _required(getter) if getter else []
    if len(required) == 1:
        return required[0]
    ids = {name for unit in own for name in _required(unit) if name.endswith("_id")}
    return ids.pop() if len(ids) == 1 else ""


def collection_of(domain: str, units: Units) -> str:
    """Return the first part of a domain's paths."""
    return f"{domain}s" if ident_of(domain, units) else domain


def routes(unit: UnitInfo, units: Units) -> Iterator[Route]:
    """Yield all routes to a unit, the one to show first."""
    ident = ident_of(unit.domain, units)
    base = f"/{collection_of(unit.domain, units)}"
    about = ident if ident in fields_of(unit) else ""
    methods = ("GET", "POST") if unit.kind == "query" else ("POST",)
    match unit.action:
        case "list" if unit.kind == "query":
            yield Route("GET", base, unit)
        case "create":
            yield Route("POST", base, unit)
        case "get" if about and unit.kind == "query":
            yield Route("GET", f"{base}/{{id}}", unit, about)
        case "delete" if about:
            yield Route("DELETE", f"{base}/{{id}}", unit, about)
    if about and unit.action not in ("get", "delete", "create", "list"):
        for method in methods:
            yield Route(method, f"{base}/{{id}}/{unit.action}", unit, about)
    for method in methods:
        yield Route(method, f"{base}/{unit.action}", unit)


class Table:
    """The routes of all units, to look a request up in: made once for each change of what is on the bus."""

    def __init__(self, units: Units) -> None:
        self._domains = {unit.domain for unit in units.values()}
        self._routes: dict[str, list[Route]] = {}
        for unit in units.values():
            self._routes.setdefault(unit.domain, []).extend(routes(unit, units))

    def resolve(self, method: str, segments: Sequence[str]) -> RouteMatch:
        """Return what a request to `/api/v2/<segments>` means."""
        if not 1 <= len(segments) <= 3 or not all(segments):
            return RouteMatch()
        matching = [
            (route, given)
            for route in self._routes.get(self._domain(segments[0]), ())
            if (given := _match(route, segments[1:])) is not None
        ]
        fixed = [(route, given) for route, given in matching if not given]
        found = {route.method: (route.unit, given) for route, given in reversed(fixed or matching)}
        if method not in found:
            return RouteMatch(allowed=frozenset(found))
        unit, given = found[method]
        return RouteMatch(unit, given)

    def _domain(self, first: str) -> str:
        return first if first in self._domains else first.removesuffix("s")


def _match(route: Route, rest: Sequence[str]) -> dict[str, Any] | None:
    """Return what stands in the path where the route has its id; None when it is another route's."""
    wanted = route.path.split("/")[2:]
    if len(wanted) != len(rest):
        return None
    given = {}
    for part, word in zip(wanted, rest, strict=True):
        if part == "{id}":
            given[route.ident] = word
        elif part != word:
            return None
    return given


def fields_of(unit: UnitInfo) -> Mapping[str, Any]:
    """Return the schemas of a unit's fields; whoever wrote the unit may have written anything there."""
    found = unit.input.get("properties")
    return found if isinstance(found, dict) else {}


def _required(unit: UnitInfo) -> list[str]:
    found = unit.input.get("required")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
