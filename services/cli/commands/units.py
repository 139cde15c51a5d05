"""`aima units`: what can be asked right now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape

from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError, UnitNotFound
from aima_core.suggestions import did_you_mean, nearest
from services.cli.domains import names
from services.cli.door.door import Door, DoorAddress, down
from services.cli.door.opening import open_door
from services.cli.shared_options import ApiKey, Config, Output, Url
from services.cli.show.console import Format, out
from services.cli.show.output import document
from services.cli.show.tables import rows
from services.cli.units import completion, unit_command
from services.cli.units.flags import Flag, flags_of, inner
from services.gateway.rest.routes import ident_of


def units(
    domain: Annotated[
        str,
        typer.Argument(help="Only of this domain; or one unit, to see its fields.", autocompletion=completion.units),
    ] = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """List the units that can be asked right now."""
    found, ident = asyncio.run(_units(domain, DoorAddress(url, api_key, config)))
    if output is not Format.TABLE:
        document([{"unit": unit.name, **_but_its_name(unit)} for unit in found], output)
        return
    if "." in domain:
        _one(found[0], ident)
        return
    rows(
        [{"unit": unit.name, "kind": unit.kind, "risk": unit.risk, "": unit.summary} for unit in found],
        ("unit", "kind", "risk", ""),
    )
    out.print(f"[dim]{len(found)} units; `aima units service.create` shows one with its fields[/]")


async def _units(name: str, reach: DoorAddress) -> tuple[list[UnitInfo], str]:
    """Return the units that were asked for, and of a single one the field that may be typed first."""
    domain = name.partition(".")[0]
    async with open_door(reach) as door:
        there = await door.domains(domain)
        if name and domain == name and name not in there:
            raise await _stranger(name, door)
        if domain == name:
            return [unit for info in there.values() for unit in info.units.values()], ""
        unit = await door.describe(name)
        return [unit], ident_of(domain, there[domain].units if domain in there else {name: unit})


async def _stranger(name: str, door: Door) -> AimaError:
    """Return the refusal of a name that no domain on the bus goes by, with the nearest that there are."""
    if name in names():
        return down(name)
    there = await door.domains()
    near = nearest(name, {*names(), *there, *(unit for info in there.values() for unit in info.units)})
    return UnitNotFound(f"there is no domain or unit {name}{did_you_mean(near)}", unit=name, near=near)


def _but_its_name(unit: UnitInfo) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(unit).items() if key != "name"}


def _one(unit: UnitInfo, ident: str) -> None:
    out.print(f"[bold]{unit.name}[/]  {unit.kind}, risk {unit.risk}\n{escape(unit.description)}\n", highlight=False)
    fields = [line for flag in flags_of(unit) for line in _lines(flag)]
    rows(fields, ("field", "takes", "default", ""))
    for given in unit.examples:
        words = "".join(f" {key}={unit_command.word(value)}" for key, value in given.items())
        out.print(f"\n  aima call {unit.name}{words}", markup=False, highlight=False)
        out.print(f"  {unit_command.example(unit, given, ident)}", markup=False, highlight=False)


def _lines(flag: Flag) -> Iterator[dict[str, Any]]:
    """Yield a line for a field, and one for each field of the object that it is."""
    for each in (flag, *inner(flag)):
        name = each.field + ("" if each.required else "?")
        yield {"field": name, "takes": each.takes, "default": each.default, "": each.description}
