"""Writes the tables of routes into docs/http.md, from the units and the fixed paths that the gateway goes by."""

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
    """Return the document with both tables as the code has them now."""
    for name, lines in (("doors", doors()), ("routes", routes())):
        begin, end = _MARK.format("begin", name), _MARK.format("end", name)
        head, _, rest_of = text.partition(begin)
        table = "\n".join(lines)
        text = f"{head}{begin}\n\n{table}\n\n{end}{rest_of.partition(end)[2]}"
    return text


def doors() -> Iterator[str]:
    """Yield the table of the fixed paths."""
    yield "| path | what it does | of |\n|---|---|---|"
    for door in DOORS:
        yield f"| `{door.method} {door.path}` | {door.summary} | {door.tag} |"


def routes() -> Iterator[str]:
    """Yield the table of the units, each with the route to show first and with that about one thing, if it has one."""
    units = all_units()
    yield "| unit | route under `/api/v2` | risk |\n|---|---|---|"
    for unit in units.values():
        found = list(routes_of(unit, units))
        shown = [route for route in found if route is found[0] or (route.ident and route.method == found[0].method)]
        paths = ", ".join(f"`{route.method} {route.path}`" for route in shown)
        yield f"| `{unit.name}` | {paths} | {unit.risk} |"


def all_units() -> dict[str, UnitInfo]:
    """Return every unit of every domain, with what decides its routes."""
    found = {}
    for name in domains.names():
        domain = domains.load(name)
        for unit in (*domain.units, *units_of(name, "asms://x", domain.log_risk)):
            spec = unit.spec
            found[spec.name] = UnitInfo(
                name=spec.name, kind=spec.kind, risk=spec.risk, input=unit.model_json_schema(), timeout=spec.timeout
            )
    return found


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
    sys.exit(0)
