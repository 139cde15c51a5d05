"""`aima units`: the units on the bus, or the fields of one unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError, UnitNotFound
from aima_core.suggestions import did_you_mean, nearest
from services.cli.domains import names
from services.cli.door.door import Door, DoorAddress, down
from services.cli.door.session import with_door
from services.cli.shared_options import ApiKey, Config, Output, Url
from services.cli.show.console import Format, bold, dim, out
from services.cli.show.output import document
from services.cli.show.tables import rows
from services.cli.units import completion, unit_command
from services.cli.units.flags import Flag, flags_of, inner
from services.gateway.rest.routes import ident_of


def units(
    domain: Annotated[
        str,
        typer.Argument(
            help="A domain, to list its units; or a unit, to show its fields.", autocompletion=completion.units
        ),
    ] = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """List the units on the bus, or show one unit with its fields and examples."""
    selected, ident = with_door(DoorAddress(url, api_key, config), lambda door: _units(domain, door))
    if output is not Format.TABLE:
        document([{"unit": unit.name, **_without_name(unit)} for unit in selected], output)
        return
    if "." in domain:
        _show_unit(selected[0], ident)
        return
    rows(
        [{"unit": unit.name, "kind": unit.kind, "risk": unit.risk, "": unit.summary} for unit in selected],
        ("unit", "kind", "risk", ""),
    )
    out.print(dim(f"{len(selected)} units; `aima units service.create` shows the fields of one unit"))


async def _units(name: str, door: Door) -> tuple[list[UnitInfo], str]:
    """Return the units. If `name` is a unit, also return the field that is the positional argument of its command."""
    domain = name.partition(".")[0]
    serving = await door.domains(domain)
    if name and domain == name and name not in serving:
        raise await _unknown_name(name, door)
    if domain == name:
        return [unit for info in serving.values() for unit in info.units.values()], ""
    unit = await door.describe(name)
    return [unit], ident_of(domain, serving[domain].units if domain in serving else {name: unit})


async def _unknown_name(name: str, door: Door) -> AimaError:
    """Return the error for a name that no domain on the bus has, with suggestions."""
    if name in names():
        return down(name)
    serving = await door.domains()
    suggestions = nearest(name, {*names(), *serving, *(unit for info in serving.values() for unit in info.units)})
    return UnitNotFound(f"there is no domain or unit {name}{did_you_mean(suggestions)}", unit=name, near=suggestions)


def _without_name(unit: UnitInfo) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(unit).items() if key != "name"}


def _show_unit(unit: UnitInfo, ident: str) -> None:
    out.print(bold(unit.name), f"  {unit.kind}, risk {unit.risk}\n{unit.description}\n")
    fields = [line for flag in flags_of(unit) for line in _lines(flag)]
    rows(fields, ("field", "takes", "default", ""))
    for input_ in unit.examples:
        words = "".join(f" {key}={unit_command.word(value)}" for key, value in input_.items())
        out.print(f"\n  aima call {unit.name}{words}")
        out.print(f"  {unit_command.example(unit, input_, ident)}")


def _lines(flag: Flag) -> Iterator[dict[str, Any]]:
    """Yield a row for a field and, if the field is an object, a row for each field of the object."""
    for each in (flag, *inner(flag)):
        name = each.field + ("" if each.required else "?")
        yield {"field": name, "takes": each.takes, "default": each.default, "": each.description}
