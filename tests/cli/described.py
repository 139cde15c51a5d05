"""The descriptions of units as a door gets them, made from the code without a bus."""

from __future__ import annotations

import functools
from typing import Any

from aima_core.bus.directory import UnitInfo, read_info
from aima_core.bus.endpoints import describe
from aima_core.domain import Domain
from aima_core.standard_units import units_of
from services.cli import domains


def described(domain: Domain[Any]) -> dict[str, UnitInfo]:
    """Return a domain's units as in its answer to `$SRV.INFO`."""
    example = domain.resources[0].uri if domain.resources else f"asms://{domain.name}"
    common = units_of(domain.name, example)
    endpoints = [{"subject": f"aima.{unit.spec.name}", "metadata": describe(unit)} for unit in (*domain.units, *common)]
    return dict(read_info({"id": "1", "name": domain.name, "endpoints": endpoints}).units)


@functools.cache
def every_unit() -> list[UnitInfo]:
    """Return the units of all domains."""
    return [unit for name in domains.names() for unit in described(domains.load(name)).values()]
