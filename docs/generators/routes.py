"""Writes the tables of routes into docs/http.md, from the units and the gateway's fixed paths: `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from aima_core.bus.directory import UnitInfo
from aima_core.standard_units import units_of
from services.cli import domains
from services.gateway.entrance.paths import DOORS
from services.gateway.rest.routes import routes as routes_of

FILE = Path(__file__).parents[2] / "docs" / "http.md"
_MARK = "<!-- {} of {}: written by `make docs` -->"


def written(text: str) -> str:
    """Return the document with both tables up to date."""
    for name, lines in (("doors", doors()), ("routes", routes())):
        begin, end = _MARK.format("begin", name), _MARK.format("end", name)
        head, _, rest_of = text.partition(begin)
        table = "\n".join(lines)
        text = f"{head}{begin}\n\n{table}\n\n{end}{rest_of.partition(end)[2]}"
    return text


def doors() -> Iterator[str]:
    """Yield the table of the fixed paths."""
    yield "| path | what it does | API |\n|---|---|---|"
    for door in DOORS:
        yield f"| `{door.method} {door.path}` | {door.summary} | {door.tag} |"


def routes() -> Iterator[str]:
    """Yield the table of the units: of each its main route, and the route for a single item if it has one."""
    units = all_units()
    yield "| unit | route under `/api/v2` | risk |\n|---|---|---|"
    for unit in units.values():
        every_route = list(routes_of(unit, units))
        main = every_route[0]
        listed = [route for route in every_route if route is main or (route.ident and route.method == main.method)]
        paths = ", ".join(f"`{route.method} {route.path}`" for route in listed)
        yield f"| `{unit.name}` | {paths} | {unit.risk} |"


def all_units() -> dict[str, UnitInfo]:
    """Return every unit of every domain by name, with the fields that its routes depend on."""
    infos = {}
    for name in domains.names():
        domain = domains.load(name)
        for unit in (*domain.units, *units_of(name, "asms://x", domain.log_risk)):
            spec = unit.spec
            infos[spec.name] = UnitInfo(
                name=spec.name, kind=spec.kind, risk=spec.risk, input=unit.model_json_schema(), timeout=spec.timeout
            )
    return infos


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
    sys.exit(0)
